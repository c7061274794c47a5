"""`smn probe --cascade`: a linear classifier of the fused embeddings into a cascade's file, one for each mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from smn_core.backbone import load_backbone
from smn_core.cascade.cascade import Cascade, fuse
from smn_core.cascade.file import FILE_NAME, CascadeFolder, check_fits, open_folder, write_cascade
from smn_core.cascade.router import route
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.imageset import ImageSet
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained
from training.cascade.fusion import inputs
from training.data import name_data
from training.features import EMBEDDINGS, Cache, Features
from training.metrics import add_metrics
from training.probe.fit import PROBE, Fitted, fit_head
from training.progress import Bar, Tell


@dataclass(frozen=True)
class ProbedCascade:
    """The cascade with its classifiers, as written, and how each mode's did."""

    cascade: Cascade
    fitted: Mapping[str, Fitted]
    unreadable: tuple[str, ...]


def probe_cascade(
    spec: BackboneSpec, images: ImageSet, folder: Path, out: Path, data: str, *, batch_size: int, seed: int, bar: Bar,
    say: Tell,
) -> ProbedCascade:  # fmt: skip
    """Fit a classifier of every mode's fused embeddings and write the cascade to the folder `out`, with its masks.

    Embeddings that `smn cascade` or `smn evaluate` left in the cascade's folder are read from there.

    Args:
        images: with labels.
        folder: of the cascade; `out` may be the same, or one that holds nothing else.

    Raises:
        InvalidCascade, InvalidMask, WrongBackbone: the cascade cannot be read or does not fit.
        InvalidArgument: `out` cannot take it.
        InvalidData: too few labels, or no image can be read.
    """
    found = open_folder(folder)
    _prepare_out(folder, out)
    masks = found.masks()
    backbone = load_backbone(as_trained(spec, masks[0], found.files[0]))
    check_fits(found.cascade, backbone)
    parts = _embed(Engine(backbone, slots=1), found, images, batch_size, bar, say)
    labels = parts[0].labels
    assert labels is not None
    each, cascade = [part.z for part in parts], found.cascade
    routed = route(cascade.router, each[0]) if cascade.router is not None else None
    fitted = {
        mode: fit_head(fuse(cascade, mode, x), labels, images.classes, seed)
        for mode, x in inputs(each, routed, cascade.modes).items()
    }
    scores = {mode: each.as_json() for mode, each in fitted.items()} | {"data": name_data(data)}
    made = replace(
        cascade,
        heads={mode: each.head for mode, each in fitted.items()},
        metadata=add_metrics(cascade.metadata, PROBE, scores),
        digest=None,
    )
    return ProbedCascade(_write(made, found, out), fitted, parts[0].skipped)


def _prepare_out(folder: Path, out: Path) -> None:
    """Make the folder, before the work. What lies in it must be a cascade."""
    try:
        out.mkdir(exist_ok=True)
        strange = out.resolve() != folder.resolve() and any(out.iterdir()) and not (out / FILE_NAME).exists()
    except OSError as error:
        raise InvalidArgument(f"--out {out}: cannot make this folder: {error.strerror}") from error
    if strange:
        raise InvalidArgument(f"--out {out} holds other files: a cascade is written to a folder of its own")


def _embed(
    engine: Engine, found: CascadeFolder, images: ImageSet, batch_size: int, bar: Bar, say: Tell
) -> list[Features]:
    """Embeddings through root and experts, in order; each mask runs once."""
    cache, by_digest = Cache([found.folder / EMBEDDINGS]), dict[str, Features]()
    for file, mask in zip(found.files, found.masks(engine.backbone.layout), strict=True):
        digest = str(mask.digest)
        if digest not in by_digest:
            for warning in engine.prepare(mask):
                say(f"warning: {file.name}: {warning}")
            with bar(f"embedding through {file.stem}", len(images.names)) as on_batch:
                by_digest[digest] = cache.embed(engine, digest, images, batch_size, on_batch)
            engine.release(digest)
    return [by_digest[digest] for digest in found.cascade.masks]


def _write(cascade: Cascade, found: CascadeFolder, out: Path) -> Cascade:
    """The masks first: a folder with the cascade's file is whole."""
    if out.resolve() != found.folder.resolve():
        for file in dict.fromkeys(found.files):
            write_bytes(out / file.name, file.read_bytes())
    return write_cascade(cascade, out / FILE_NAME)
