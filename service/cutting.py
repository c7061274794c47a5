"""Images of any number -> requests that a server takes, and one image that it refuses among many left out.

Nothing here sends anything: `cut` makes lists of images that fit into a request, `ask` is the talk about one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from numpy import ndarray

from service.answers import Answered, ServerError, check
from service.calls import Asked, images_call
from service.talks import Talk
from smn_core.answers import Part, Skipped
from smn_core.errors import InvalidImage
from smn_core.given import Content, Item

T = TypeVar("T")
Read = Callable[[httpx2.Response], Answered[T]]
PART_BYTES = 256
"""Beside an image in a multipart body: its boundary and its headers."""
BODY_BYTES = 1024
"""Beside all images of a body."""
OF_IMAGES = ("invalid_image", "image_too_large", "not_finite")
"""Codes of refusals that one image is the cause of."""
SPLIT = ("body_too_large", "too_many_images", "deadline")
"""Codes of refusals that fewer images a request may avoid."""
_NUMBERED = re.compile(r"^image (\d+): |(?<=^the embedding) of image (\d+)")


@dataclass(frozen=True)
class Limits:
    """Most images and most bytes of a request."""

    images: int = 32
    body_bytes: int = 64 * 2**20

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Limits:
        """What a server tells; no more images than one of its forwards takes, so that no request waits for two."""
        sound = {key: value for key, value in told.items() if isinstance(value, int) and value > 0}
        images = min(sound.get("max_images", cls.images), sound.get("batch_size", cls.images))
        return cls(images, sound.get("max_body_bytes", cls.body_bytes))


@dataclass(frozen=True)
class Loaded:
    """An image that was read, or why it cannot be."""

    item: Item
    content: Content | None
    reason: str = ""

    @property
    def n_bytes(self) -> int:
        if self.content is None:
            return 0
        return PART_BYTES + (self.content.nbytes if isinstance(self.content, ndarray) else len(self.content))


def cut(items: Iterable[Item], limits: Limits) -> Iterator[list[Loaded]]:
    """Read the images, and yield those of one request after the other; no more of them is held at a time."""
    waiting: list[Loaded] = []
    n_bytes = BODY_BYTES
    for item in items:
        image = _load(item, limits)
        full = len(waiting) >= limits.images or n_bytes + image.n_bytes > limits.body_bytes
        if waiting and (full or not _alike(waiting, image)):
            yield waiting
            waiting, n_bytes = [], BODY_BYTES
        waiting.append(image)
        n_bytes += image.n_bytes
    if waiting:
        yield waiting


def ask(images: Sequence[Loaded], asked: Asked, read: Read[T], *, strict: bool) -> Talk[list[Part[T]]]:
    """The rows of the images of one request; those that the server refuses are left out, and the others sent again.

    Several parts come of a request that had to be divided.

    Raises:
        InvalidImage: with `strict`, an image that cannot be read.
        ServerError: with `strict`, an image that the server refuses; or a refusal that no single image is to blame for.
    """
    left = [Skipped(image.item.number, image.item.name, image.reason) for image in images if image.content is None]
    if left and strict:
        raise InvalidImage(str(left[0]))
    waiting = [image for image in images if image.content is not None]
    while waiting:
        response = yield images_call(asked, [image.content for image in waiting if image.content is not None])
        try:
            found = read(check(response))
        except ServerError as error:
            if error.code in SPLIT and len(waiting) > 1:
                half = len(waiting) // 2
                first = yield from ask(waiting[:half], asked, read, strict=strict)
                second = yield from ask(waiting[half:], asked, read, strict=strict)
                return [Part((), (), left), *first, *second]
            number, reason = _blame(error, len(waiting))
            if number is None:
                raise
            item = waiting.pop(number).item
            if strict:
                raise type(error)(error.status, error.code, f"{item.name}: {reason}") from error
            left.append(Skipped(item.number, item.name, reason))
            continue
        if len(found.rows) != len(waiting):
            said = f"the server answered {len(found.rows)} rows for {len(waiting)} images"
            raise ServerError(response.status_code, "unknown", said)
        items = [image.item for image in waiting]
        return [Part(items, list(found.rows), left, found.digest, found.space, found.server_timing)]
    return [Part((), (), left)]


def _load(item: Item, limits: Limits) -> Loaded:
    try:
        image = Loaded(item, item.read())
    except InvalidImage as error:
        return Loaded(item, None, str(error))
    if BODY_BYTES + image.n_bytes > limits.body_bytes:
        return Loaded(
            item, None, f"{image.n_bytes:,} bytes, and the server takes at most {limits.body_bytes:,} at once"
        )
    return image


def _alike(waiting: Sequence[Loaded], image: Loaded) -> bool:
    """Whether an image may be in one body with others: all files, or all arrays of one shape."""
    first = next((other.content for other in waiting if other.content is not None), None)
    if first is None or image.content is None:
        return True
    if isinstance(first, ndarray) and isinstance(image.content, ndarray):
        return first.shape == image.content.shape
    return type(first) is type(image.content)


def _blame(error: ServerError, n_images: int) -> tuple[int | None, str]:
    """Which image of a request the server refuses, and why; None: not because of one of them."""
    message = str(error)
    named = _NUMBERED.search(message) if error.code in OF_IMAGES else None
    if named is None:
        return (0 if error.code in OF_IMAGES and n_images == 1 else None), message
    number = int(named[1] or named[2])
    # The number is one in this request; who reads the reason has the image's name.
    return (number if number < n_images else None), _NUMBERED.sub("", message, count=1)
