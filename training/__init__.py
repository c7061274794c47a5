"""Learning masks, in the order a run takes (to come)."""
