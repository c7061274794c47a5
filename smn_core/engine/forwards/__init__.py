"""The forms in which the layers of a model run: what there is, how one is put on, and which one a start takes."""
