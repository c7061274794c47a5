"""A linear classifier into a mask: labels as answers."""
