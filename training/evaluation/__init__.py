"""Measure masks and cascades: by probes with labels, and by signs without labels."""
