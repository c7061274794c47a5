"""Images as values of JSON bodies: every shape in which some client writes one.

An image is a text; an object that holds one under `image`, `image_url` or `image_base64`; or a content of parts, of
which one is an image. Whatever else a value has, each of them is one image and becomes one vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.errors import Rejected
from service.imagetext import decode_unless_text, text_input

FIELDS = ("image", "image_url", "image_base64")
INNER = ("url", "base64", "bytes")
"""Where the text is, if a field holds an object."""
SHAPES = 'base64 or a data URI, {"image": ...}, or a part {"type": "image_url", "image_url": {"url": ...}}'


@dataclass(frozen=True)
class Found:
    """What should be the text of an image, and what errors call it."""

    text: object
    param: str


def decode_values(values: Sequence[object], param: str) -> list[bytes]:
    """The images of values, one each; in a worker thread, for they may be long.

    Raises:
        Rejected: 400 text, a URL, no image, or several in one value.
    """
    return [_decode(_the_image(_parts(value, at), at)) for value, at in _named(values, param)]


def decode_conversation(messages: Sequence[object], param: str) -> bytes:
    """The image of a conversation: of all parts of its messages one is an image. Errors as `decode_values`."""
    parts = [part for message, at in _named(messages, param) for part in _parts(message, at)]
    return _decode(_the_image(parts, param))


def _named(values: Sequence[object], param: str) -> Iterator[tuple[object, str]]:
    for i, value in enumerate(values):
        yield value, f"{param}[{i}]"


def _parts(value: object, at: str) -> list[tuple[object, str]]:
    """What a value consists of: the parts of its content, or itself."""
    if not isinstance(value, dict) or "content" not in value:
        return [(value, at)]
    content, at = value["content"], f"{at}.content"
    return list(_named(content, at)) if isinstance(content, list) else [(content, at)]


def _the_image(parts: Sequence[tuple[object, str]], at: str) -> Found:
    found = [one for part, where in parts if (one := _find(part, where)) is not None]
    if not found and parts:  # blank texts, and nothing beside them
        raise text_input(at)
    if not found:
        raise Rejected(400, "no_images", f"{at} has no image: send {SHAPES}", at)
    if len(found) > 1:
        raise Rejected(400, "several_images", f"{at} has {len(found)} images: one becomes one vector", at)
    return found[0]


def _find(part: object, at: str) -> Found | None:
    """Where a part has its image; None, if it is a blank text."""
    if isinstance(part, str):
        return Found(part, at) if part.strip() else None
    if not isinstance(part, dict):
        raise Rejected(400, "no_images", f"{at} is no image: send {SHAPES}", at)
    text = part.get("text")
    if isinstance(text, str) and text.strip():
        raise text_input(f"{at}.text")
    for field in FIELDS:
        inside, where = part.get(field), f"{at}.{field}"
        if isinstance(inside, dict):
            name = next((name for name in INNER if inside.get(name) is not None), INNER[0])
            inside, where = inside.get(name), f"{where}.{name}"
        if inside is not None:
            return Found(inside, where)
    if isinstance(text, str):
        return None
    kind = part.get("type")
    what = f"a part of type {kind[:32]!r}" if isinstance(kind, str) else "an object"
    raise Rejected(400, "no_images", f"{at} is {what} without an image: send {SHAPES}", at)


def _decode(found: Found) -> bytes:
    return decode_unless_text(found.text, found.param)
