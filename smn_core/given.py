"""What a caller may give as images: paths, folders, bytes, PIL images, arrays, and any iterable of those."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import InvalidArgument, InvalidImage
from smn_core.imagefile import read_image_file

Image: TypeAlias = Any
"""One image: a path (text or Path), the bytes of a file, a PIL image, an array. A folder is all of its images.

Arrays are uint8 [h, w, 3] or [h, w], pixels; or float [3, h, w], a model input that is normalised already. With one
axis more in front they are several images. A torch tensor counts as the array that it holds.
"""
Images: TypeAlias = Image | Iterable[Image]
Content: TypeAlias = bytes | Float32[ndarray, "3 h w"]
"""What is left of an image: the bytes of a file, or a model input."""
PNG_LEVEL = 1
NO_RANGE = ("I", "F")
"""PIL's modes of 32 bits: nothing says which value is white."""


@dataclass(frozen=True)
class Item:
    """One image, not read yet: its number among all that were given, its name, and where it comes from."""

    number: int
    name: str
    source: Any

    def read(self) -> Content:
        """The bytes of an image file, or a model input, float32 [3, h, w].

        Raises:
            InvalidImage: a file that cannot be read or is too large for one, a PIL image that no file format holds.
        """
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Path):
            try:
                return read_image_file(self.source)
            except OSError as error:
                raise InvalidImage(f"cannot read it: {error.strerror}") from error
        if isinstance(self.source, ndarray):
            return self.source if self.source.dtype == np.float32 else _png_of_pixels(self.source)
        return _png(self.source)


def each_item(images: Images) -> Iterator[Item]:
    """The images one by one, as far as somebody asks for them: an iterable may be endless.

    Raises:
        InvalidArgument: something that is no image.
        InvalidData: a folder without an image.
    """
    for number, (name, source) in enumerate(_sources(images, nested=True)):
        yield Item(number, f"image {number}" if name is None else name, source)


def count_of(images: Any) -> int | None:
    """How many images they are, where that is known beforehand."""
    if isinstance(images, ndarray):
        return len(images) if images.ndim == 4 else 1
    if isinstance(images, bytes | bytearray | memoryview | str | Path) or _is_pil(images):
        return None if _is_folder(images) else 1
    if isinstance(images, Collection) and not any(map(_is_folder, images)):
        return len(images)
    return None


def _sources(images: Any, *, nested: bool) -> Iterator[tuple[str | None, Any]]:
    if isinstance(images, bytes | bytearray | memoryview):
        yield None, bytes(images)
    elif isinstance(images, str | Path):
        yield from _of_path(Path(images))
    elif _is_pil(images):
        yield getattr(images, "filename", None) or None, images
    elif hasattr(images, "__array__"):
        yield from ((None, array) for array in _of_array(np.asarray(images)))
    elif nested and isinstance(images, Iterable) and not isinstance(images, dict):
        for image in images:
            yield from _sources(image, nested=False)
    else:
        raise InvalidArgument(
            f"{type(images).__name__} is no image: give a path, a folder, bytes, a PIL image, an array, or an "
            "iterable of those"
        )


def _of_path(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield str(path), path
        return
    from smn_core.imageset import open_images

    for name in open_images(path).names:
        yield str(path / name), path / name


def _of_array(array: ndarray) -> Iterator[ndarray]:
    """The images of an array, each float32 [3,h,w] or uint8 [h,w] or [h,w,3]."""
    pixels = array.dtype == np.uint8
    if pixels and (array.ndim == 2 or (array.ndim in (3, 4) and array.shape[-1] == 3)):
        yield from array if array.ndim == 4 else (array,)
    elif array.dtype.kind == "f" and array.ndim in (3, 4) and array.shape[-3] == 3:
        inputs = np.ascontiguousarray(array, np.float32)
        yield from inputs if inputs.ndim == 4 else (inputs,)
    else:
        raise InvalidArgument(
            f"an array {array.dtype} {list(array.shape)} is no image: give uint8 [h,w,3] as pixels, or float32 "
            "[3,h,w] as a model input that is normalised already"
        )


def _is_pil(image: object) -> bool:
    """Whether it is a PIL image, asked without an import of PIL."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(image).__mro__)


def _is_folder(image: object) -> bool:
    return isinstance(image, str | Path) and Path(image).is_dir()


def _png_of_pixels(pixels: ndarray) -> bytes:
    from PIL import Image as PIL

    return _png(PIL.fromarray(np.ascontiguousarray(pixels)))


def _png(image: Any) -> bytes:
    """A PIL image as the file that decodes to its pixels, upright: what it says of its turn is not in a PNG."""
    from PIL import ImageOps

    if image.mode in NO_RANGE:
        raise InvalidImage(f"a PIL image of mode {image.mode} has no stated range: convert it to 8 or 16 bits")
    try:
        upright = ImageOps.exif_transpose(image)
        plain = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else upright.convert("RGB")
        buffer = io.BytesIO()
        plain.save(buffer, "PNG", compress_level=PNG_LEVEL)
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidImage(f"the PIL image cannot be read: {error}") from error
    return buffer.getvalue()
