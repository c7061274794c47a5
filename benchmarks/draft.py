"""What decoding JPEGs at a reduced scale (`draft()`) does to embeddings, and what it saves.

    python -m benchmarks.draft --images PHOTOS --backbone vit_tiny_patch16_224 --weights W.safetensors

Every JPEG goes through `smn_core.images` twice, with and without draft, in turn. Small photos become large ones in two
ways: `mosaic`, many different photos side by side (real detail down to the pixel, unreal composition), and `upscale`,
one photo enlarged (real composition, no fine detail). Without --images the photos are `synthetic`: overlapping discs
with a power law of sizes, textured with 1/f noise. The sizes: the first of 1/2, 1/4 and 1/8, where the drafted image
is smallest for its target and the effect therefore greatest, and 12 megapixels. `requantised`, the distance between
the two qualities of the same photo when both are fully decoded, is what ordinary recompression does to an embedding.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.rows import row
from smn_core.backbone import Backbone, load_backbone, wrap
from smn_core.images import ImageReader, decode, draft_side_px
from smn_core.imageset import open_images
from smn_core.spec import BackboneSpec

TILE_PX = 96
QUALITIES = (75, 92)
Maker = Callable[[int, int, np.random.Generator], Image.Image]


def main(
    images: Annotated[Path | None, typer.Option(help="folder of photos; synthetic ones without it")] = None,
    backbone: Annotated[str, typer.Option(help="timm name")] = "vit_tiny_patch16_224",
    weights: Annotated[Path | None, typer.Option(help="its weights; random ones without it")] = None,
    photos: Annotated[int, typer.Option(help="photos of each kind and size")] = 8,
    repeats: Annotated[int, typer.Option(help="timings of each photo")] = 3,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file")] = None,
) -> None:
    """Print the rows of draft()'s effect and of its decode time."""
    torch.set_num_threads(1)
    net = _backbone(backbone, weights)
    reader = ImageReader(net.preprocess)
    draft_px = draft_side_px(net.preprocess)
    makers: dict[str, Maker] = {"synthetic": synthetic} if images is None else makers_from(images)
    for kind, maker in makers.items():
        for width, height in sizes(draft_px):
            rng = np.random.default_rng(0)
            drawn = [maker(width, height, rng) for _ in range(photos)]
            named = {"kind": kind, "width": width, "height": height, "backbone": backbone}
            named["weights"] = "random" if weights is None else "pretrained"
            full: dict[int, Tensor] = {}
            for quality in QUALITIES:
                files = [_jpeg(photo, quality) for photo in drawn]
                params = {**named, "quality": quality}
                full[quality] = _effect(files, net, reader, draft_px=draft_px, params=params, out=out)
                _times(files, reader, draft_px=draft_px, repeats=repeats, params=params, out=out)
            _distance(full[QUALITIES[0]], full[QUALITIES[1]], "requantised", named, out)


def sizes(draft_px: int) -> Iterator[tuple[int, int]]:
    """4:3 sizes whose short side is just drafted by 2, 4 and 8, and 12 megapixels."""
    for factor in (2, 4, 8):
        yield -(-factor * draft_px * 4 // 3), factor * draft_px
    yield 4032, 3024


def makers_from(folder: Path) -> dict[str, Maker]:
    """Two ways to large photos from a folder of small ones."""
    small = open_images(folder)
    tiles = [small.image(i).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC) for i in range(len(small.names))]

    def mosaic(width: int, height: int, rng: np.random.Generator) -> Image.Image:
        canvas = Image.new("RGB", (width, height))
        places = [(x, y) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]
        for place, tile in zip(places, rng.choice(len(tiles), len(places)), strict=True):
            canvas.paste(tiles[tile], place)
        return canvas

    def upscale(width: int, height: int, rng: np.random.Generator) -> Image.Image:
        photo = small.image(int(rng.integers(len(small.names))))
        return photo.resize((width, height), Image.Resampling.BICUBIC)

    return {"mosaic": mosaic, "upscale": upscale}


def synthetic(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Discs that hide each other, radii with density ~ r**-3, under 1/f noise: edges and texture at every scale."""
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    radii = np.minimum(min(width, height) / 2, 3 / np.sqrt(rng.uniform(1e-6, 1, 40_000)))
    for radius in radii:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    textured = np.asarray(canvas, np.float32) + _one_over_f(width, height, rng)[..., None]
    return Image.fromarray(np.clip(textured, 0, 255).astype(np.uint8))


def _one_over_f(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise [height, width] with an amplitude spectrum of 1/f and a standard deviation of 20 grey levels."""
    side = 512
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / np.maximum(frequency, 1 / side)
    noise = np.fft.irfft2(spectrum, (side, side))
    noise *= 20 / noise.std()
    return np.tile(noise, (-(-height // side), -(-width // side)))[:height, :width].astype(np.float32)


def _backbone(name: str, weights: Path | None) -> Backbone:
    spec = BackboneSpec(name=name, weights=weights)
    if weights is not None:
        return load_backbone(spec)
    torch.manual_seed(0)
    return wrap(timm.create_model(name, num_classes=0), name, spec)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _effect(
    files: list[bytes], net: Backbone, reader: ImageReader, *, draft_px: int, params: dict[str, Any], out: Path | None
) -> Tensor:
    """Rows of the distance between drafted and full embeddings; returns the full ones [n, d]."""
    drafted = _embed(net, [reader.tensor(decode(data, draft_px=draft_px)) for data in files])
    full = _embed(net, [reader.tensor(decode(data)) for data in files])
    _distance(drafted, full, "draft", params, out)
    return full


def _embed(net: Backbone, pixels: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        embeddings: Tensor = net.model(torch.stack(pixels)).double()
    return embeddings


def _distance(a: Tensor, b: Tensor, variant: str, params: dict[str, Any], out: Path | None) -> None:
    """cos(a[i], b[i]) and |a[i] - b[i]| / |b[i]| over the photos, and the worst of each."""
    cosine = torch.cosine_similarity(a, b).tolist()
    error = ((a - b).norm(dim=1) / b.norm(dim=1)).tolist()
    row("draft", variant, params, "cosine", "1", cosine, out=out)
    row("draft", variant, params, "cosine_min", "1", [min(cosine)], out=out)
    row("draft", variant, params, "relative_l2", "1", error, out=out)
    row("draft", variant, params, "relative_l2_max", "1", [max(error)], out=out)


def _times(
    files: list[bytes], reader: ImageReader, *, draft_px: int, repeats: int, params: dict[str, Any], out: Path | None
) -> None:
    """Rows of the time to decode, and to decode and transform, full and drafted in turn."""
    decode_ms: dict[str, list[float]] = {"full": [], "draft": []}
    tensor_ms: dict[str, list[float]] = {"full": [], "draft": []}
    for data in files * repeats:
        for variant, side in (("full", None), ("draft", draft_px)):
            begin = time.perf_counter()
            image = decode(data, draft_px=side)
            decoded = time.perf_counter()
            reader.tensor(image)
            tensor_ms[variant].append((time.perf_counter() - begin) * 1e3)
            decode_ms[variant].append((decoded - begin) * 1e3)
    for metric, times in (("decode", decode_ms), ("decode+transform", tensor_ms)):
        for variant, values in times.items():
            row("draft", variant, params, metric, "ms", values, out=out)
        ratio = [full / draft for full, draft in zip(times["full"], times["draft"], strict=True)]
        row("draft", "full/draft", params, metric, "ratio", ratio, out=out)


if __name__ == "__main__":
    typer.run(main)
