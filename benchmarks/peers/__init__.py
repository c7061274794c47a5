"""What one would use instead of SMN for many tasks: one file a peer, servers of full copies and adapters in process."""
