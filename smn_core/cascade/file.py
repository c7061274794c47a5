"""Read, check and write smn-cascade/1 files, and folders of such a file and its masks. The format: docs/formats.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy import ndarray

from smn_core import maskfile, tensorfile
from smn_core.backbone import Backbone
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.fusion import Fusion
from smn_core.cascade.kinds import KINDS
from smn_core.cascade.router import Router
from smn_core.errors import InvalidCascade, WrongBackbone
from smn_core.files import read_bytes, write_bytes
from smn_core.layout import Layout
from smn_core.mask import Head, TaskMask
from smn_core.tensorfile import DIGEST, InvalidTensorFile, TensorFile, canonical_json

FORMAT = "smn-cascade/1"
REQUIRED = ("format", "root", "experts", "fingerprint", "content", "fusion", "mode")
FILE_NAME = "cascade.safetensors"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
SEED = re.compile(r"0|[1-9][0-9]{0,18}")
HEAD = ("weight", "bias")
ROUTER = tuple(field.name for field in fields(Router))


def mask_names(n_masks: int) -> list[str]:
    """What the files of a cascade's masks are called in its folder, root first."""
    return ["root.smn", *(f"expert-{number}.smn" for number in range(1, n_masks))]


def serialise_cascade(cascade: Cascade) -> bytes:
    """The file of a cascade; equal cascades give equal bytes."""
    metadata = {
        **cascade.metadata,
        "format": FORMAT,
        "root": cascade.root,
        "experts": canonical_json(list(cascade.experts)),
        "fingerprint": cascade.fingerprint,
        "fusion": cascade.fusion.kind,
        "mode": cascade.mode,
    }
    if cascade.fusion.seed is not None:
        metadata["seed"] = str(cascade.fusion.seed)
    tensors = tensors_of(cascade)
    for mode, head in cascade.heads.items():
        tensors |= {f"head.{mode}.weight": head.weight, f"head.{mode}.bias": head.bias}
        metadata["classes"] = canonical_json(list(head.classes))
    return tensorfile.serialise_with_content(tensors, metadata)


def tensors_of(cascade: Cascade) -> dict[str, ndarray]:
    """The tensors of fusion and router, by their names in the file."""
    tensors = {
        f"fusion.{mode}.{name}": array
        for mode, group in cascade.fusion.tensors.items()
        for name, array in group.items()
    }
    if cascade.router is not None:
        tensors |= {f"router.{name}": array for name, array in cascade.router.tensors().items()}
    return tensors


def write_cascade(cascade: Cascade, path: Path | str) -> Cascade:
    """Write the file in one step; returns the cascade with the file's digest.

    Raises:
        InvalidCascade, InvalidTensorFile: as `parse_cascade` of what would be written: then nothing is.
    """
    data = serialise_cascade(cascade)
    parse_cascade(data)
    write_bytes(path, data)
    return replace(cascade, digest=tensorfile.digest_of(data))


def parse_cascade(data: bytes) -> Cascade:
    """Read and check a whole file. `check_fits` checks that it belongs to a backbone.

    Raises:
        InvalidCascade: the file breaks a rule of the format; the message names which.
    """
    try:
        file = tensorfile.parse_tensors(data)
        if file.metadata.get("format") != FORMAT:
            raise InvalidCascade(f"format is {file.metadata.get('format')!r}, expected {FORMAT!r}")
        for key in REQUIRED:
            if key not in file.metadata:
                raise InvalidCascade(f"metadata key {key!r} is missing")
        tensorfile.require_content(file)
    except InvalidTensorFile as error:
        raise InvalidCascade(str(error)) from error
    return replace(_cascade_of(file), digest=tensorfile.digest_of(data))


def read_cascade(path: Path | str) -> Cascade:
    """Read and check a cascade file, given by its own path or by its folder's.

    Raises:
        InvalidCascade: as `parse_cascade`, or the file cannot be read.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        return parse_cascade(read_bytes(path))
    except OSError as error:
        raise InvalidCascade(f"cannot read {path}: {error.strerror}") from error
    except InvalidCascade as error:
        raise InvalidCascade(f"{path}: {error}") from error


def check_fits(cascade: Cascade, backbone: Backbone) -> None:
    """Check that a cascade was made for this backbone's weights and takes embeddings of its width.

    Raises:
        WrongBackbone: another fingerprint.
        InvalidCascade: router, fusion or a head take embeddings of another width.
    """
    if cascade.fingerprint != backbone.fingerprint:
        raise WrongBackbone(
            f"the cascade was made for a backbone with fingerprint {cascade.fingerprint[:16]}..., this one is "
            f"{backbone.architecture} with {backbone.fingerprint[:16]}..."
        )
    if cascade.router is not None and cascade.router.n_features != backbone.n_features:
        raise InvalidCascade(
            f"the router takes {cascade.router.n_features} features, {backbone.architecture} has {backbone.n_features}"
        )
    cascade.fusion.require_fits(cascade.n_parts, backbone.n_features)
    cascade.require_heads_fit(backbone.n_features)


@dataclass(frozen=True)
class CascadeFolder:
    """What `smn cascade` wrote: a cascade, and the files of its masks, root first."""

    folder: Path
    cascade: Cascade
    files: tuple[Path, ...]

    def masks(self, layout: Layout | None = None) -> list[TaskMask]:
        """Root and experts, read and checked.

        Raises:
            InvalidMask: as `read_mask`.
            WrongBackbone: a mask was made for other weights than the cascade says.
        """
        found: dict[Path, TaskMask] = {}
        for path in self.files:
            if path not in found:
                mask = found[path] = maskfile.read_mask(path, layout)
                if mask.fingerprint != self.cascade.fingerprint:
                    raise WrongBackbone(f"{path}: the mask was made for another backbone than the cascade")
        return [found[path] for path in self.files]


def open_folder(folder: Path | str) -> CascadeFolder:
    """Read the cascade of a folder, and find the files of its masks there by their digests.

    Raises:
        InvalidCascade: the folder has no sound cascade, or lacks masks; the message lists them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidCascade(f"{folder} is not a folder with {FILE_NAME} and its masks")
    cascade = read_cascade(folder)
    by_digest = {tensorfile.digest_of(read_bytes(path)): path for path in sorted(folder.glob("*.smn"), reverse=True)}
    missing = [digest for digest in dict.fromkeys(cascade.masks) if digest not in by_digest]
    if missing:
        raise InvalidCascade(f"{folder} lacks masks of its cascade: {', '.join(missing)}")
    return CascadeFolder(folder, cascade, tuple(by_digest[digest] for digest in cascade.masks))


def _cascade_of(file: TensorFile) -> Cascade:
    metadata, tensors = dict(file.metadata), dict(file.tensors)
    taken = {key: metadata.pop(key) for key in REQUIRED}
    if not FINGERPRINT.fullmatch(taken["fingerprint"]):
        raise InvalidCascade("metadata key 'fingerprint' is not 64 hex digits")
    kind = KINDS.get(taken["fusion"])
    seed = metadata.pop("seed", None) if kind is not None and kind.seeded else None
    if seed is not None and not SEED.fullmatch(seed):
        raise InvalidCascade("metadata key 'seed' is not a number from 0")
    router = _router_of({n: tensors.pop(n) for n in list(tensors) if n.startswith("router.")})
    heads = _heads_of({n: tensors.pop(n) for n in list(tensors) if n.startswith("head.")}, metadata)
    return Cascade(
        fingerprint=taken["fingerprint"],
        root=_digest(taken["root"], "root"),
        experts=_experts_of(taken["experts"]),
        fusion=Fusion(taken["fusion"], _by_mode(tensors), int(seed) if seed is not None else None),
        mode=taken["mode"],
        router=router,
        heads=heads,
        metadata=metadata,
    )


def _experts_of(text: str) -> tuple[str, ...]:
    try:
        value = tensorfile.parse_json(text)
    except InvalidTensorFile as error:
        raise InvalidCascade(f"metadata key 'experts' {error}") from error
    if not isinstance(value, list):
        raise InvalidCascade("metadata key 'experts' is not a list of digests")
    return tuple(_digest(digest, "experts") for digest in value)


def _digest(value: object, key: str) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise InvalidCascade(f"metadata key {key!r}: {str(value)[:80]!r} is not sha256: and 64 hex digits")
    return value


def _router_of(tensors: Mapping[str, ndarray]) -> Router | None:
    if not tensors:
        return None
    found = {name.removeprefix("router."): array for name, array in tensors.items()}
    if missing := sorted(set(ROUTER) - set(found)):
        raise InvalidCascade(f"router.{missing[0]} is missing")
    if extra := sorted(set(found) - set(ROUTER)):
        raise InvalidCascade(f"router.{extra[0]} is not a tensor of {FORMAT}")
    return Router(**found)


def _heads_of(tensors: Mapping[str, ndarray], metadata: dict[str, str]) -> dict[str, Head]:
    """The classifiers by mode; takes `classes` out of the metadata, which are a text like others without a head."""
    if not tensors:
        return {}
    try:
        classes = tensorfile.parse_json(metadata.pop("classes", "null"))
    except InvalidTensorFile as error:
        raise InvalidCascade(f"metadata key 'classes' {error}") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InvalidCascade("a head needs the metadata key 'classes', a list of names")
    modes = sorted({name.split(".")[1] for name in tensors})
    if extra := sorted(set(tensors) - {f"head.{mode}.{part}" for mode in modes for part in HEAD}):
        raise InvalidCascade(f"{extra[0]} is not a tensor of {FORMAT}")
    found = {}
    for mode in modes:
        for part in HEAD:
            name = f"head.{mode}.{part}"
            if name not in tensors:
                raise InvalidCascade(f"{name} is missing")
            if tensors[name].dtype != np.float32:
                raise InvalidCascade(f"{name} is {tensors[name].dtype}, expected float32")
        weight, bias = (tensors[f"head.{mode}.{part}"] for part in HEAD)
        if weight.ndim != 2 or bias.ndim != 1 or not len(weight) == len(bias) == len(classes):
            raise InvalidCascade(
                f"head.{mode}.weight {list(weight.shape)} and head.{mode}.bias {list(bias.shape)} do not fit "
                f"{len(classes)} classes"
            )
        found[mode] = Head(weight, bias, tuple(classes))
    return found


def _by_mode(tensors: Mapping[str, ndarray]) -> dict[str, dict[str, ndarray]]:
    """`fusion.<mode>.<name>` -> {mode: {name: tensor}}."""
    found: dict[str, dict[str, ndarray]] = {}
    for name, array in sorted(tensors.items()):  # the library gives them in no fixed order
        parts = name.split(".")
        if len(parts) != 3 or parts[0] != "fusion":
            raise InvalidCascade(f"{name} is not a tensor of {FORMAT}")
        found.setdefault(parts[1], {})[parts[2]] = array
    return found
