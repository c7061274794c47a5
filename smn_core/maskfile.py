"""Read, check and write smn-mask/1 files. docs/formats.md has the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from smn_core import codec, tensorfile
from smn_core.affine import affine_of
from smn_core.backbone import Backbone, layout_for, parse_model
from smn_core.errors import InvalidArgument, InvalidMask, MissingParent, WeightsNeeded, WrongBackbone
from smn_core.files import read_bytes, write_bytes
from smn_core.layout import Layout
from smn_core.mask import CodedMask, TaskMask
from smn_core.parents import Find, beside
from smn_core.parts import float32_of, head_of, preprocess_of
from smn_core.rest import REST, pack_rest, unpack_rest
from smn_core.tensorfile import DIGEST, InvalidTensorFile, TensorFile, canonical_json
from smn_core.verdict import warn_of_verdict

FORMAT = "smn-mask/1"
REQUIRED = ("format", "model", "fingerprint", "layout", "codec", "content")
TEXTS = ("objective", "dataset", "recipe", "metrics", "created")
ENTRY_BYTES = 60
"""About what a tensor takes in a file's header, beside its name."""
MAX_TOLD_CHARS = 80
"""How much of a value a warning repeats: warnings come with every embedding."""
MAX_HEAD_CLASSES = 100_000
"""Classes of a head that `max_file_bytes` leaves room for."""


def serialise_mask(
    mask: TaskMask, codec_name: str = "zstd", backbone: Backbone | None = None, parent: TaskMask | None = None
) -> bytes:
    """The bytes of a mask's file. Equal masks give equal bytes. A `CodedMask` stays as it is coded.

    Args:
        backbone: the mask's, with its weights, which codec `context` needs.
        parent: the mask that `context` codes against, as it was read from a file that has no parent.

    Raises:
        InvalidMask: smn-mask/1 does not have the codec; the parent has a parent.
        InvalidArgument: a parent with another codec.
        WrongBackbone, WeightsNeeded: codec `context` with another backbone or a parent of one, or without one.
    """
    named: str | None = None
    if isinstance(mask, CodedMask):
        coded, codec_name, named = dict(mask.coded), codec.CONTEXT, mask.parent
    else:
        if backbone is not None:
            _require_fingerprint(mask, backbone)
        theta = backbone.theta if backbone is not None else None
        there = _bits_of_parent(parent, codec_name, backbone) if parent is not None else None
        coded = codec.encode(mask.packed, mask.layout, codec_name, theta, there)
        named = parent.digest if parent is not None else None
    tensors = {f"state.{name}": np.ascontiguousarray(values, np.float32) for name, values in mask.state.items()}
    metadata = {
        **mask.metadata,
        "format": FORMAT,
        "model": mask.model,
        "fingerprint": mask.fingerprint,
        "layout": mask.layout.digest,
        "codec": codec_name,
        **({"parent": named} if named is not None else {}),
    }
    if mask.preprocess is not None:
        metadata["preprocess"] = canonical_json(mask.preprocess)
    if mask.affine is not None:
        tensors |= {f"affine.{name}": np.ascontiguousarray(values) for name, values in mask.affine.tensors().items()}
    if mask.head is not None:
        head = {"head.weight": mask.head.weight, "head.bias": mask.head.bias}
        tensors |= {name: np.ascontiguousarray(values, np.float32) for name, values in head.items()}
        metadata["classes"] = canonical_json(list(mask.head.classes))
    if tensors and codec_name == codec.CONTEXT:
        rest = pack_rest(tensors)
        apart = sum(array.nbytes + len(name) + ENTRY_BYTES for name, array in tensors.items())
        tensors = {REST: rest} if rest.nbytes + len(REST) + ENTRY_BYTES < apart else tensors
    return tensorfile.serialise_with_content({**coded, **tensors}, metadata)


def _bits_of_parent(parent: TaskMask, codec_name: str, backbone: Backbone | None) -> UInt8[ndarray, "n_bytes"]:
    if codec_name != codec.CONTEXT:
        raise InvalidArgument(f"a parent is for codec {codec.CONTEXT}, not for {codec_name}")
    if parent.parent is not None:
        raise InvalidMask(f"the parent {parent.digest} is coded against a parent itself: repack it without one first")
    if backbone is None:
        raise WeightsNeeded("codec context needs the backbone's weights: name them with --weights FILE")
    _require_fingerprint(parent, backbone)
    return with_bits(parent, backbone).packed


def write_mask(
    mask: TaskMask, path: Path | str, codec_name: str = "zstd", backbone: Backbone | None = None
) -> TaskMask:
    """Write the file of a mask in one step. Returns the mask with the file's digest.

    Raises:
        SMNError: as `serialise_mask`, and as `parse_mask` of what would be written: then nothing is.
    """
    try:
        data = serialise_mask(mask, codec_name, backbone)
        parse_mask(data, mask.layout)
    except (InvalidMask, InvalidTensorFile) as error:
        raise type(error)(f"cannot write {path}: {error}") from error
    write_bytes(path, data)
    return replace(mask, digest=tensorfile.digest_of(data))


def parse_mask(data: bytes, layout: Layout | None = None, find: Find = lambda _: None) -> TaskMask:
    """Read and check a whole file. Without `layout` the layout is built from the metadata key `model`, without weights.

    Bits of codec `context` stay coded: the result is a `CodedMask` then, and `with_bits` decodes it.

    Args:
        find: gives the file of the mask's parent, if it has one. Where it is not found, `with_bits` says so.

    Raises:
        InvalidMask: the file breaks a rule of the format, or its parent's does; the message names which.
        WrongBackbone: its layout is not `layout`.
        UnknownModel: `layout` is not given and timm does not have the architecture.
    """
    try:
        file = tensorfile.parse_tensors(data)
        _check_metadata(file.metadata)
        tensorfile.require_content(file)
    except InvalidTensorFile as error:
        raise InvalidMask(str(error)) from error
    parse_model(file.metadata["model"])
    if layout is None:
        layout = layout_for(file.metadata["model"])
    if file.metadata["layout"] != layout.digest:
        raise WrongBackbone(
            f"the mask's layout {file.metadata['layout'][:16]}... is not the backbone's {layout.digest[:16]}...: "
            "it was made for another architecture"
        )
    mask = _mask_of(file, layout, tensorfile.digest_of(data))
    return _with_parent(mask, find) if isinstance(mask, CodedMask) and mask.parent is not None else mask


def _with_parent(mask: CodedMask, find: Find) -> CodedMask:
    data = find(str(mask.parent))
    if data is None:
        return mask
    try:
        parent = parse_mask(data, mask.layout)
    except InvalidMask as error:
        raise type(error)(f"its parent {mask.parent}: {error}") from error
    if parent.parent is not None:
        raise InvalidMask(f"its parent {mask.parent} is coded against a parent itself, which no parent may be")
    if parent.digest != mask.parent or parent.fingerprint != mask.fingerprint:
        raise InvalidMask(f"what was found as its parent {mask.parent} is another file, or for another backbone")
    return replace(mask, against=parent)


def with_bits(mask: TaskMask, backbone: Backbone) -> TaskMask:
    """The mask with its bits: itself, or a `CodedMask` decoded with the backbone's weights.

    Raises:
        WrongBackbone: another fingerprint or layout.
        WeightsNeeded: the backbone is described, and its weights are elsewhere.
        MissingParent: the mask that it is coded against was not found.
        InvalidMask: the bits are damaged, or break a rule of the format.
    """
    if not isinstance(mask, CodedMask):
        return mask
    if mask.parent is not None and mask.against is None:
        raise MissingParent(
            f"the mask is coded against its parent {mask.parent}, which is not there: put its file beside it, or name "
            "it with --parent FILE"
        )
    _require_fingerprint(mask, backbone)
    if backbone.theta is None:
        raise WeightsNeeded("the mask's bits are coded with the backbone's weights, which are not here")
    there = with_bits(mask.against, backbone).packed if mask.against is not None else None
    return decoded(mask, codec.decode(mask.coded, mask.layout, codec.CONTEXT, backbone.theta, there))


def decoded(mask: CodedMask, packed: UInt8[ndarray, "n_bytes"]) -> TaskMask:
    """The mask with bits that were decoded elsewhere.

    Raises:
        InvalidMask: they break a rule of the format.
    """
    known = {field.name: getattr(mask, field.name) for field in fields(TaskMask) if field.name != "packed"}
    return TaskMask(packed=packed, **known)


def read_mask(path: Path | str, layout: Layout | None = None, parent: Path | None = None) -> TaskMask:
    """Read and check a mask file. A file that is too large for `layout` is refused before it is read.

    The mask that it is coded against, if any, is `parent` or one of the mask files beside it.

    Raises:
        InvalidMask: as `parse_mask`, or the file cannot be read.
        WrongBackbone, UnknownModel: as `parse_mask`.
    """
    return read_file(path, layout, parent)[1]


def read_file(path: Path | str, layout: Layout | None = None, parent: Path | None = None) -> tuple[bytes, TaskMask]:
    """As `read_mask`, but returns the bytes of the file too."""
    path = Path(path)
    try:
        if layout is not None and path.stat().st_size > max_file_bytes(layout):
            raise InvalidMask(f"{path} has {path.stat().st_size} bytes, too many for a mask of this backbone")
        data = read_bytes(path)
        return data, parse_mask(data, layout, beside(path, parent))
    except OSError as error:
        raise InvalidMask(f"cannot read {error.filename or path}: {error.strerror}") from error
    except InvalidMask as error:
        raise type(error)(f"{path}: {error}") from error


def require_mask_name(out: Path) -> None:
    """Refuse another suffix for a mask than .smn: as a parent, or by its name, it would not be found.

    Raises:
        InvalidArgument: `out` has another.
    """
    if out.suffix != ".smn":
        raise InvalidArgument(f"--out {out}: a mask is written to a .smn file")


def max_file_bytes(layout: Layout) -> int:
    """The most bytes that a file of this layout may have: bits, statistics, map, head, and twice the longest header."""
    return layout.n_bytes + _max_rest_bytes(layout) + 2 * tensorfile.MAX_HEADER_BYTES


def _max_rest_bytes(layout: Layout) -> int:
    """Of statistics, map and head."""
    state = 4 * sum(int(np.prod(shape)) for shape in layout.buffers.values())
    head = 4 * MAX_HEAD_CLASSES * (layout.n_features + 1)
    affine = 4 * layout.n_features * (layout.n_features + 2)
    return state + affine + head


def check_fits(mask: TaskMask, backbone: Backbone) -> list[str]:
    """Check that embeddings through `mask` mean what they meant in training.

    Returns warnings, a verdict of "leave it" among them.

    Raises:
        WrongBackbone: another fingerprint, layout, mean or std.
    """
    _require_fingerprint(mask, backbone)
    if parse_model(mask.model) != parse_model(backbone.model_json):
        raise WrongBackbone(f"the mask says it is for {mask.model}, with the fingerprint of {backbone.model_json}")
    if mask.layout.digest != backbone.layout.digest:
        raise WrongBackbone("the mask's layout is not the backbone's")
    return [*check_pixels(mask.preprocess or {}, backbone.preprocess), *warn_of_verdict(mask.metadata)]


def _require_fingerprint(mask: TaskMask, backbone: Backbone) -> None:
    if mask.fingerprint != backbone.fingerprint:
        raise WrongBackbone(
            f"the mask was made for {parse_model(mask.model)[0]} with fingerprint {mask.fingerprint[:16]}..., "
            f"this backbone is {backbone.architecture} with {backbone.fingerprint[:16]}..."
        )


def check_pixels(trained: Mapping[str, object], served: Mapping[str, object]) -> list[str]:
    """Compare the preprocessing of training with the one that serves. Returns warnings.

    Raises:
        WrongBackbone: another mean or std, so the same pixels would mean something else.
    """
    for key in ("mean", "std"):
        if key in trained and not _close(trained[key], served[key]):
            told = _told(trained[key])
            raise WrongBackbone(f"the mask was trained with {key} {told}, this backbone serves {served[key]}")
    differing = [k for k in ("input_size", "interpolation", "crop_pct", "crop_mode") if k in trained]
    return [
        f"trained with {key} {_told(trained[key])}, served with {served[key]}"
        for key in differing
        if json.loads(json.dumps(trained[key])) != json.loads(json.dumps(served[key]))
    ]


def _told(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_TOLD_CHARS else f"{text[:MAX_TOLD_CHARS]}..."


def _close(a: object, b: object) -> bool:
    try:
        return bool(np.allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-6))
    except OverflowError:  # JSON has integers that no float holds
        return False


def _check_metadata(metadata: Mapping[str, str]) -> None:
    found = metadata.get("format")
    if found != FORMAT:
        what = ": a safetensors file without one holds weights, which go to --weights" if found is None else ""
        raise InvalidMask(f"format is {found!r}, expected {FORMAT!r}{what}")
    for key in REQUIRED:
        if key not in metadata:
            raise InvalidMask(f"metadata key {key!r} is missing")
    if metadata["codec"] not in codec.CODECS:
        raise InvalidMask(f"unknown codec {metadata['codec']!r}: {FORMAT} has {', '.join(codec.CODECS)}")
    if "parent" in metadata and not DIGEST.fullmatch(metadata["parent"]):
        raise InvalidMask("metadata key 'parent' is not sha256: and 64 hex digits")
    if "parent" in metadata and metadata["codec"] != codec.CONTEXT:
        raise InvalidMask(f"metadata key 'parent' is for codec {codec.CONTEXT}, not for {metadata['codec']}")


def _mask_of(file: TensorFile, layout: Layout, digest: str) -> TaskMask:
    tensors = dict(file.tensors)
    if REST in tensors:
        rest = unpack_rest(tensors.pop(REST), _max_rest_bytes(layout))
        if twice := sorted(set(rest) & set(tensors)):
            raise InvalidMask(f"tensor {twice[0]} is in the file twice, alone and in {REST}")
        tensors |= rest
    state = {n: float32_of(n, tensors.pop(n)) for n in list(tensors) if n.startswith("state.")}
    head = head_of(tensors, file.metadata)
    affine = {n.removeprefix("affine."): tensors.pop(n) for n in list(tensors) if n.startswith("affine.")}
    known = {*REQUIRED, "preprocess", "classes", "parent"}
    parts: dict[str, Any] = {
        "layout": layout,
        "model": file.metadata["model"],
        "fingerprint": file.metadata["fingerprint"],
        "state": {name.removeprefix("state."): values for name, values in state.items()},
        "head": head,
        "affine": affine_of(affine),
        "preprocess": preprocess_of(file.metadata),
        "metadata": {k: v for k, v in file.metadata.items() if k not in known},
        "digest": digest,
        "parent": file.metadata.get("parent"),
    }
    if file.metadata["codec"] == codec.CONTEXT:
        codec.check_coded(tensors, layout)
        return CodedMask(coded=tensors, **parts)
    return TaskMask(packed=codec.decode(tensors, layout, file.metadata["codec"]), **parts)
