"""Codec `context`: bits by adaptive arithmetic coding, with chances that the backbone's weights and bits so far tell."""
