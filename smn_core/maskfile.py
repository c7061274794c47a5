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
from smn_core.errors import InvalidMask, WeightsNeeded, WrongBackbone
from smn_core.files import write_bytes
from smn_core.layout import Layout
from smn_core.mask import CodedMask, Head, TaskMask
from smn_core.tensorfile import InvalidTensorFile, TensorFile, canonical_json
from smn_core.verdict import warn_of_verdict

FORMAT = "smn-mask/1"
REQUIRED = ("format", "model", "fingerprint", "layout", "codec", "content")
TEXTS = ("objective", "dataset", "recipe", "metrics", "created")
MAX_TOLD_CHARS = 80
"""How much of a value a warning repeats: warnings come with every embedding."""
MAX_HEAD_CLASSES = 100_000
"""Classes of a head that `max_file_bytes` leaves room for."""


def serialise_mask(mask: TaskMask, codec_name: str = "zstd", backbone: Backbone | None = None) -> bytes:
    """The bytes of a mask's file. Equal masks give equal bytes. A `CodedMask` stays as it is coded.

    Args:
        backbone: the mask's, with its weights, which codec `context` needs.

    Raises:
        InvalidMask: smn-mask/1 does not have the codec.
        WrongBackbone, WeightsNeeded: codec `context` with another backbone, or without one.
    """
    if isinstance(mask, CodedMask):
        tensors, codec_name = dict(mask.coded), codec.CONTEXT
    else:
        if backbone is not None:
            _require_fingerprint(mask, backbone)
        tensors = codec.encode(mask.packed, mask.layout, codec_name, backbone.theta if backbone is not None else None)
    tensors |= {f"state.{name}": np.ascontiguousarray(values, np.float32) for name, values in mask.state.items()}
    metadata = {
        **mask.metadata,
        "format": FORMAT,
        "model": mask.model,
        "fingerprint": mask.fingerprint,
        "layout": mask.layout.digest,
        "codec": codec_name,
    }
    if mask.preprocess is not None:
        metadata["preprocess"] = canonical_json(mask.preprocess)
    if mask.affine is not None:
        tensors |= {f"affine.{name}": np.ascontiguousarray(values) for name, values in mask.affine.tensors().items()}
    if mask.head is not None:
        head = {"head.weight": mask.head.weight, "head.bias": mask.head.bias}
        tensors |= {name: np.ascontiguousarray(values, np.float32) for name, values in head.items()}
        metadata["classes"] = canonical_json(list(mask.head.classes))
    return tensorfile.serialise_with_content(tensors, metadata)


def write_mask(
    mask: TaskMask, path: Path | str, codec_name: str = "zstd", backbone: Backbone | None = None
) -> TaskMask:
    """Write the file of a mask in one step. Returns the mask with the file's digest. Raises as `serialise_mask`."""
    data = serialise_mask(mask, codec_name, backbone)
    write_bytes(path, data)
    return replace(mask, digest=tensorfile.digest_of(data))


def parse_mask(data: bytes, layout: Layout | None = None) -> TaskMask:
    """Read and check a whole file. Without `layout` the layout is built from the metadata key `model`, without weights.

    Bits of codec `context` stay coded: the result is a `CodedMask` then, and `with_bits` decodes it.

    Raises:
        InvalidMask: the file breaks a rule of the format; the message names which.
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
    return _mask_of(file, layout, tensorfile.digest_of(data))


def with_bits(mask: TaskMask, backbone: Backbone) -> TaskMask:
    """The mask with its bits: itself, or a `CodedMask` decoded with the backbone's weights.

    Raises:
        WrongBackbone: another fingerprint or layout.
        WeightsNeeded: the backbone is described, and its weights are elsewhere.
        InvalidMask: the bits are damaged, or break a rule of the format.
    """
    if not isinstance(mask, CodedMask):
        return mask
    _require_fingerprint(mask, backbone)
    if backbone.theta is None:
        raise WeightsNeeded("the mask's bits are coded with the backbone's weights, which are not here")
    return decoded(mask, codec.decode(mask.coded, mask.layout, codec.CONTEXT, backbone.theta))


def decoded(mask: CodedMask, packed: UInt8[ndarray, "n_bytes"]) -> TaskMask:
    """The mask with bits that were decoded elsewhere.

    Raises:
        InvalidMask: they break a rule of the format.
    """
    known = {field.name: getattr(mask, field.name) for field in fields(TaskMask) if field.name != "packed"}
    return TaskMask(packed=packed, **known)


def read_mask(path: Path | str, layout: Layout | None = None) -> TaskMask:
    """Read and check a mask file. A file that is too large for `layout` is refused before it is read.

    Raises:
        InvalidMask: as `parse_mask`, or the file cannot be read.
        WrongBackbone, UnknownModel: as `parse_mask`.
    """
    return read_file(path, layout)[1]


def read_file(path: Path | str, layout: Layout | None = None) -> tuple[bytes, TaskMask]:
    """As `read_mask`, but returns the bytes of the file too."""
    path = Path(path)
    try:
        if layout is not None and path.stat().st_size > max_file_bytes(layout):
            raise InvalidMask(f"{path} has {path.stat().st_size} bytes, too many for a mask of this backbone")
        data = path.read_bytes()
        return data, parse_mask(data, layout)
    except OSError as error:
        raise InvalidMask(f"cannot read {path}: {error.strerror}") from error
    except InvalidMask as error:
        raise type(error)(f"{path}: {error}") from error


def max_file_bytes(layout: Layout) -> int:
    """The most bytes that a file of this layout may have: bits, statistics, map, head, and twice the longest header."""
    state = 4 * sum(int(np.prod(shape)) for shape in layout.buffers.values())
    head = 4 * MAX_HEAD_CLASSES * (layout.n_features + 1)
    affine = 4 * layout.n_features * (layout.n_features + 2)
    return layout.n_bytes + state + affine + head + 2 * tensorfile.MAX_HEADER_BYTES


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
    if metadata.get("format") != FORMAT:
        raise InvalidMask(f"format is {metadata.get('format')!r}, expected {FORMAT!r}")
    for key in REQUIRED:
        if key not in metadata:
            raise InvalidMask(f"metadata key {key!r} is missing")
    if metadata["codec"] not in codec.CODECS:
        raise InvalidMask(f"unknown codec {metadata['codec']!r}: {FORMAT} has {', '.join(codec.CODECS)}")
    if "parent" in metadata:
        raise InvalidMask("the mask is coded against a parent, which this version cannot read")


def _mask_of(file: TensorFile, layout: Layout, digest: str) -> TaskMask:
    tensors = dict(file.tensors)
    state = {n: _float32(n, tensors.pop(n)) for n in list(tensors) if n.startswith("state.")}
    head = _head_of(tensors, file.metadata)
    affine = {n.removeprefix("affine."): tensors.pop(n) for n in list(tensors) if n.startswith("affine.")}
    known = {*REQUIRED, "preprocess", "classes"}
    parts: dict[str, Any] = {
        "layout": layout,
        "model": file.metadata["model"],
        "fingerprint": file.metadata["fingerprint"],
        "state": {name.removeprefix("state."): values for name, values in state.items()},
        "head": head,
        "affine": affine_of(affine),
        "preprocess": _preprocess_of(file.metadata),
        "metadata": {k: v for k, v in file.metadata.items() if k not in known},
        "digest": digest,
    }
    if file.metadata["codec"] == codec.CONTEXT:
        codec.check_coded(tensors, layout)
        return CodedMask(coded=tensors, **parts)
    return TaskMask(packed=codec.decode(tensors, layout, file.metadata["codec"]), **parts)


def _head_of(tensors: dict[str, ndarray], metadata: Mapping[str, str]) -> Head | None:
    """Take the classifier's tensors out of `tensors`; all three parts or none."""
    parts = [name for name in ("head.weight", "head.bias") if name in tensors]
    if not parts and "classes" not in metadata:
        return None
    if len(parts) != 2 or "classes" not in metadata:
        raise InvalidMask("a head needs head.weight, head.bias and the metadata key 'classes'")
    weight, bias = (_float32(name, tensors.pop(name)) for name in parts)
    classes = _json_of(metadata, "classes")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise InvalidMask("metadata key 'classes' is not a list of names")
    if weight.ndim != 2 or bias.ndim != 1:
        raise InvalidMask(f"head.weight {list(weight.shape)} and head.bias {list(bias.shape)} are not [C,D] and [C]")
    return Head(weight, bias, tuple(classes))


def _preprocess_of(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    if "preprocess" not in metadata:
        return None
    value = _json_of(metadata, "preprocess")
    numbers = (int, float)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key, [0, 0, 0]), list)
        and all(isinstance(x, numbers) for x in value.get(key, [0, 0, 0]))
        and len(value.get(key, [0, 0, 0])) == 3
        for key in ("mean", "std", "input_size")
    ):
        raise InvalidMask("metadata key 'preprocess' is not a table with three numbers for mean, std and input_size")
    return value


def _json_of(metadata: Mapping[str, str], key: str) -> object:
    try:
        return tensorfile.parse_json(metadata[key])
    except InvalidTensorFile as error:
        raise InvalidMask(f"metadata key {key!r} {error}") from error


def _float32(name: str, values: ndarray) -> ndarray:
    if values.dtype != np.float32:
        raise InvalidMask(f"{name} is {values.dtype}, expected float32")
    return values
