"""Several runs at once: side by side in processes, or as tasks of Ray."""
