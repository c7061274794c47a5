"""Learning a cascade: clusters, an expert for each, a fusion."""
