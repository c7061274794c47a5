"""Two photos, and how clients write them and their vectors as text."""

import base64

import numpy as np
from served import photo

PHOTOS = [photo(1), photo(2)]


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def part(url):
    """OpenAI's part of a content."""
    return {"type": "image_url", "image_url": {"url": url}}


BARE = [base64.b64encode(data).decode() for data in PHOTOS]
URIS = [uri(data) for data in PHOTOS]
