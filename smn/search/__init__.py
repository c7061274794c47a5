"""Search over one's own photos: `smn index`, `smn search`, `smn dedupe`, and the collections that they keep."""
