"""`smn adapt`: from a folder of images to a mask that was judged, within a time: look, timing, race, ending."""
