"""One forward for a batch that mixes masks."""
