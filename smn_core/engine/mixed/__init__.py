"""Batches that mix masks: one forward for all (mixed), a shared product and its correction (correction, lists)."""
