"""What `smn inspect` says of a mask file: identity, density by tensor and stage, sizes, differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smn_core import bits, tensorfile
from smn_core.backbone import load_backbone
from smn_core.cascade import file as cascadefile
from smn_core.contextual.classes import Classes
from smn_core.errors import InvalidMask
from smn_core.files import read_bytes
from smn_core.mask import CodedMask, TaskMask
from smn_core.maskfile import check_fits, read_file, with_bits
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained


def open_mask(path: Path, spec: BackboneSpec, parent: Path | None = None) -> tuple[bytes, TaskMask]:
    """A file's bytes and its mask; bits of codec `context` are decoded where `spec`, or the mask's run, names weights.

    Its parent, if it has one, is `parent` or a mask file beside it.

    Raises:
        InvalidMask, WrongBackbone, UnknownModel: as `read_mask` and `with_bits`.
    """
    data, mask = read_file(path, parent=parent)
    if isinstance(mask, CodedMask):
        trained = as_trained(spec, mask, path)
        if trained.weights is not None:
            mask = with_bits(mask, load_backbone(trained))
    return data, mask


def classes_of_mask(path: Path, mask: TaskMask, spec: BackboneSpec) -> Classes | None:
    """What codec `context` knows of the weights, where `spec`, or the mask's run, names them.

    Raises:
        WrongBackbone: they are not the mask's.
    """
    trained = as_trained(spec, mask, path)
    if trained.weights is None:
        return None
    backbone = load_backbone(trained)
    check_fits(mask, backbone)
    return backbone.theta


def describe(path: Path, opened: tuple[bytes, TaskMask] | None = None) -> dict[str, Any]:
    """A mask file as plain data, `smn inspect --json`; what is counted among bits that are still coded is None.

    Raises:
        InvalidMask, UnknownModel: as `read_mask`, where the file is not `opened` yet.
    """
    data, mask = opened or read_file(path)
    model = json.loads(mask.model)
    coded = isinstance(mask, CodedMask)
    return {
        "file": str(path),
        "digest": mask.digest,
        "architecture": model["architecture"],
        "args": model["args"],
        "fingerprint": mask.fingerprint,
        "layout": mask.layout.digest,
        "parent": mask.parent,
        "weights": mask.layout.n_weights,
        "off": None if coded else mask.n_off,
        "density": None if coded else mask.density,
        "tensors": None
        if coded
        else [
            {
                "name": t.name,
                "shape": list(t.shape),
                "weights": t.n_weights,
                "off": t.n_weights - int(on),
                "density": int(on) / t.n_weights,
            }
            for t, on in zip(mask.layout, mask.on_counts, strict=True)
        ],
        "stages": None if coded else stages(mask),
        "sizes": sizes(data, mask),
        "state": {name: list(values.shape) for name, values in mask.state.items()},
        "affine": mask.affine.describe() if mask.affine else None,
        "classes": list(mask.head.classes) if mask.head else None,
        "preprocess": mask.preprocess,
        "metadata": dict(mask.metadata),
    }


def stages(mask: TaskMask) -> list[dict[str, Any]]:
    """Weights and density of every stage of the network, in order."""
    on = dict(zip((t.name for t in mask.layout), mask.on_counts.tolist(), strict=True))
    found = []
    for stage, tensors in mask.layout.stages.items():
        n_weights, n_on = sum(t.n_weights for t in tensors), sum(on[t.name] for t in tensors)
        found.append({"name": stage, "weights": n_weights, "off": n_weights - n_on, "density": n_on / n_weights})
    return found


def sizes(data: bytes, mask: TaskMask) -> dict[str, Any]:
    """Every byte of a mask's file, and what it replaces: a copy of the maskable weights."""
    file = tensorfile.parse_tensors(data)
    in_parts = {"bits": 0, "state": 0, "affine": 0, "head": 0, "rest": 0}
    for name, values in file.tensors.items():
        part = name.split(".")[0]
        in_parts[part if part in in_parts else "bits"] += values.nbytes
    numbers = {
        "state": sum(values.nbytes for values in mask.state.values()),
        "affine": mask.affine.nbytes if mask.affine else 0,
        "head": mask.head.weight.nbytes + mask.head.bias.nbytes if mask.head else 0,
    }
    n_weights = mask.layout.n_weights
    return {
        "codec": file.metadata["codec"],
        "file_bytes": len(data),
        **{f"{part}_bytes": n for part, n in in_parts.items()},
        "header_bytes": len(data) - sum(in_parts.values()),
        "uncoded_bytes": numbers,
        "raw_bits_bytes": mask.layout.n_bytes,
        "bits_per_weight": 8 * len(data) / n_weights,
        "smaller_than_32_bit": 4 * n_weights / len(data),
        "smaller_than_16_bit": 2 * n_weights / len(data),
    }


def difference(a: TaskMask, b: TaskMask) -> dict[str, Any]:
    """How two masks of one layout differ, by tensor: positions whose bits differ, and which way.

    Raises:
        InvalidMask: they are for different layouts.
    """
    if a.layout.digest != b.layout.digest:
        raise InvalidMask("the two masks are for different architectures: there is no position to compare")
    tensors = []
    for t, on_a, on_b in zip(a.layout, a.on_counts.tolist(), b.on_counts.tolist(), strict=True):
        different = bits.count_different(a.packed[t.bytes], b.packed[t.bytes])
        # different = switched_off + switched_on and on_b - on_a = switched_on - switched_off
        switched_on = (different + on_b - on_a) // 2
        tensors.append(
            {
                "name": t.name,
                "weights": t.n_weights,
                "different": different,
                "fraction": different / t.n_weights,
                "switched_on": switched_on,
                "switched_off": different - switched_on,
            }
        )
    total = sum(t["different"] for t in tensors)
    return {
        "same_backbone": a.fingerprint == b.fingerprint,
        "different": total,
        "fraction": total / a.layout.n_weights,
        "tensors": tensors,
    }


def is_cascade(path: Path) -> bool:
    """Whether a path is a cascade file, or a folder that should have one."""
    if path.is_dir():
        return True
    try:
        return tensorfile.parse_tensors(read_bytes(path)).metadata.get("format") == cascadefile.FORMAT
    except (OSError, tensorfile.InvalidTensorFile):
        return False  # what it is instead, reading it as a mask tells


def describe_cascade(path: Path) -> dict[str, Any]:
    """A cascade file as plain data, and where its folder is given the bytes of its masks too.

    Raises:
        InvalidCascade: as `read_cascade` and `open_folder`.
    """
    files = cascadefile.open_folder(path).files if path.is_dir() else None
    cascade = cascadefile.read_cascade(path)
    file_bytes = (path / cascadefile.FILE_NAME if path.is_dir() else path).stat().st_size
    found: dict[str, Any] = {
        "file": str(path),
        "digest": cascade.digest,
        "fingerprint": cascade.fingerprint,
        "root": cascade.root,
        "experts": list(cascade.experts),
        "features": cascade.n_features,
        "fusion": cascade.fusion.kind,
        "mode": cascade.mode,
        "modes": {
            mode: {name: f"{array.dtype} {list(array.shape)}" for name, array in sorted(tensors.items())}
            for mode, tensors in ((m, cascade.fusion.tensors.get(m, {})) for m in cascade.modes)
        },
        "router": {name: list(array.shape) for name, array in cascade.router.tensors().items()}
        if cascade.router
        else None,
        "metadata": dict(cascade.metadata),
        "file_bytes": file_bytes,
        "fusion_bytes": cascade.fusion.nbytes,
        "router_bytes": cascade.router.nbytes if cascade.router else 0,
    }
    if files is not None:
        sizes = {file.name: file.stat().st_size for file in files}
        found |= {"mask_bytes": sizes, "total_bytes": file_bytes + sum(sizes.values())}
    return found
