"""What a mask is and what it does to a backbone. No HTTP, no Redis, no environment, no training loop."""
