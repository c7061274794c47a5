"""Codec `context`: a mask's bits by adaptive arithmetic coding, each with a chance that the backbone's weights tell of."""
