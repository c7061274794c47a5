"""What `benchmarks.soak` is made of: files and their references, the traffic, hostile inputs, samples of processes."""
