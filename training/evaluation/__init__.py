"""What a mask is worth: probes with labels, signs without."""
