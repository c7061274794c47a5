"""Codec `context`: bits by adaptive arithmetic coding, with chances that weights and bits so far tell."""
