"""Learning masks from images: recipes, data and objectives in, a run that can be resumed, mask files out."""
