"""The same mask, or the masks of a cascade, in other bytes: `smn repack`. Bits, map, head and texts stay.

The statistics stay too, unless they are to be rounded: that makes another mask, whose vectors are a little off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from smn_core import codec, tensorfile
from smn_core.backbone import Backbone, load_backbone
from smn_core.cascade.file import FILE_NAME, open_folder, serialise_cascade
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.mask import CodedMask, TaskMask
from smn_core.maskfile import read_mask, serialise_mask, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained

STATES = ("float32", "float16")
PICTURES, COARSE_PX = 8, 7
"""How many pictures tell how far rounded statistics move embeddings, and how many coarse pixels each is drawn from."""


@dataclass(frozen=True)
class Repacked:
    """Bytes of the whole file, or of all files of a folder, before and after; the digest of the mask or cascade.

    `moved` is how far the embeddings of PICTURES pictures move at most, as a part of their length; 0 where they do not.
    """

    before: int
    after: int
    digest: str
    moved: float = 0.0


def repack(
    spec: BackboneSpec, file: Path, out: Path, codec_name: str, parent: Path | None = None, state: str = STATES[0]
) -> Repacked:
    """Write a mask under another codec, or a cascade's folder with all its masks.

    The backbone is loaded where one of the codecs needs its weights. A cascade names its masks by their digests, so its
    file is written anew with theirs; what it makes of images stays the same, and its space too.

    Args:
        parent: the mask that codec `context` codes against, of a folder one of its own; it also serves to read `file`.
        state: float16 rounds the statistics to its 11 significant bits.

    Raises:
        InvalidArgument: smn-mask/1 does not have the codec or the statistics; a cascade is to be written over itself.
        InvalidMask, InvalidCascade, WrongBackbone: a file cannot be read, or was made for other weights.
    """
    require_codec(codec_name)
    if state not in STATES:
        raise InvalidArgument(f"--state {state}: choose {' or '.join(STATES)}")
    if file.is_dir():
        if state != STATES[0]:
            raise InvalidArgument(
                f"--state {state} is for one mask: a cascade's fusion was fitted to its masks' vectors"
            )
        return _repack_folder(spec, file, out, codec_name, parent)
    mask = read_mask(file, parent=parent)
    against = read_mask(parent) if parent is not None and codec_name == codec.CONTEXT else None
    backbone = _backbone_for(spec, mask, file, needed=codec_name == codec.CONTEXT or state != STATES[0])
    whole = with_bits(mask, backbone) if backbone is not None else mask
    rounded = with_rounded_state(whole) if state != STATES[0] else whole
    made = serialise_mask(rounded, codec_name, backbone, against)
    moved = moved_by(backbone, whole, rounded) if backbone is not None and rounded is not whole else 0.0
    before = file.stat().st_size
    write_bytes(out, made)
    return Repacked(before, len(made), tensorfile.digest_of(made), moved)


def require_codec(name: str) -> None:
    """Raise InvalidArgument unless smn-mask/1 has the codec."""
    if name not in codec.CODECS:
        raise InvalidArgument(f"--codec {name}: smn-mask/1 has {', '.join(codec.CODECS)}")


def with_rounded_state(mask: TaskMask) -> TaskMask:
    """The mask with statistics of 11 significant bits, as float16 has them, and float32's range of sizes."""
    return replace(mask, state={name: _rounded(values) for name, values in mask.state.items()}, digest=None)


def _rounded(values: Float32[ndarray, "..."]) -> Float32[ndarray, "..."]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # To the nearest, of two that are as near the even one. Adding carries into the exponent where it must.
    found = ((bits + np.uint32(0xFFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(found), found, values)


def moved_by(backbone: Backbone, before: TaskMask, after: TaskMask) -> float:
    """How far embeddings of drawn pictures move at most between two masks, as a part of their length.

    The pictures are smooth noise: what is measured is arithmetic, not what the masks know.
    """
    size = tuple(backbone.preprocess["input_size"])
    coarse = torch.randn(PICTURES, size[0], COARSE_PX, COARSE_PX, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(coarse, size[1:], mode="bilinear")
    engine, found = Engine(backbone, slots=1), []
    for name, mask in (("before", before), ("after", after)):
        engine.prepare(replace(mask, digest=name))
        found.append(engine.embed(pictures, [Segment(name, 0, len(pictures))]).embeddings.numpy())
        engine.release(name)
    lengths = np.maximum(np.linalg.norm(found[0], axis=1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(found[1] - found[0], axis=1) / lengths).max())


def _backbone_for(spec: BackboneSpec, mask: TaskMask, file: Path, *, needed: bool) -> Backbone | None:
    """The mask's backbone where the mask is coded with its weights, or they are needed for another reason."""
    return load_backbone(as_trained(spec, mask, file)) if needed or isinstance(mask, CodedMask) else None


def _repack_folder(spec: BackboneSpec, folder: Path, out: Path, codec_name: str, parent: Path | None) -> Repacked:
    if out.resolve() == folder.resolve():
        raise InvalidArgument(f"--out {out} is the cascade itself: give another folder")
    found = open_folder(folder)
    masks = dict(zip(found.files, found.masks(), strict=True))
    first, root = next(iter(masks.items()))
    coded = next((mask for mask in masks.values() if isinstance(mask, CodedMask)), root)
    backbone = _backbone_for(spec, coded, first, needed=codec_name == codec.CONTEXT)
    head = _own(parent, masks, folder) if parent is not None and codec_name == codec.CONTEXT else None
    out.mkdir(parents=True, exist_ok=True)
    digests, after, against = dict[str, str](), 0, None
    for file, mask in sorted(masks.items(), key=lambda item: item[0] != head):
        whole = with_bits(mask, backbone) if backbone is not None else mask
        made = serialise_mask(whole, codec_name, backbone, against)
        write_bytes(out / file.name, made)
        digests[str(mask.digest)], after = tensorfile.digest_of(made), after + len(made)
        if file == head:
            against = replace(whole, digest=digests[str(mask.digest)], parent=None)
    cascade = found.cascade
    experts = tuple(digests[digest] for digest in cascade.experts)
    made = serialise_cascade(replace(cascade, root=digests[cascade.root], experts=experts))
    write_bytes(out / FILE_NAME, made)
    before = sum(file.stat().st_size for file in (*masks, folder / FILE_NAME))
    return Repacked(before, after + len(made), tensorfile.digest_of(made))


def _own(parent: Path, masks: dict[Path, TaskMask], folder: Path) -> Path:
    """The folder's own file that `parent` is."""
    for file in masks:
        if file.resolve() == parent.resolve():
            return file
    raise InvalidArgument(
        f"--parent {parent} is no mask of the cascade {folder}: its experts are coded against its root"
    )
