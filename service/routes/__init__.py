"""One module for every group of routes; each exports `router`."""
