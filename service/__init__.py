"""Serving: the same path as a request takes it (to come)."""
