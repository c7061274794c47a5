"""Where the bytes of a mask's bits go: what they take under each codec, and their entropy under each context, by stage.

An entropy is that of bits drawn independently with the chances that the mask itself has in each context, within each
tensor. No coder knows these chances beforehand, so it is no bound of what an adaptive one can do with several contexts.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from smn_core import bits, codec
from smn_core.contextual.classes import Classes, as_matrix
from smn_core.layout import MaskableTensor
from smn_core.mask import TaskMask


def codings(mask: TaskMask, classes: Classes | None) -> dict[str, Any]:
    """Bytes of the bits: `coded` under raw, zstd, lzma and, with the weights' classes, context; `entropy` by context;
    `stages`, each with its entropy by context.
    """
    names = [name for name in codec.CODECS if name != codec.CONTEXT or classes is not None]
    coded = {
        name: sum(array.nbytes for array in codec.encode(mask.packed, mask.layout, name, classes).values())
        for name in names
    }
    coded["lzma"] = len(lzma.compress(mask.packed.tobytes(), preset=9))
    stages: list[dict[str, Any]] = []
    total: dict[str, float] = {}
    for stage, tensors in mask.layout.stages.items():
        found: dict[str, float] = {}
        for tensor in tensors:
            off = ~bits.unpack(mask.packed[tensor.bytes], tensor.n_weights)
            for context, of in _contexts(tensor, classes):
                found[context] = found.get(context, 0.0) + _entropy_bytes(off, of)
        stages.append({"name": stage, "entropy": found})
        total = {context: total.get(context, 0.0) + n for context, n in found.items()}
    return {"coded": coded, "entropy": total, "stages": stages}


def _contexts(tensor: MaskableTensor, classes: Classes | None) -> Iterator[tuple[str, Int64[ndarray, "n"]]]:
    """Names of contexts, and which of its values each weight of a tensor has."""
    n_columns = as_matrix(tensor.shape)[1]
    place = np.arange(tensor.n_weights)
    yield "tensor", np.zeros_like(place)
    yield "row", place // n_columns
    yield "column", place % n_columns
    if classes is not None:
        kinds = classes(tensor).astype(np.int64)
        yield "sign", kinds >> 7
        yield "size", (kinds >> 4) & 7
        yield "above row and column", kinds & 15


def _entropy_bytes(off: Bool[ndarray, "n"], context: Int64[ndarray, "n"]) -> float:
    n = np.bincount(context).astype(np.float64)
    n_off = np.bincount(context, weights=off)
    chances = np.stack([n_off, n - n_off]) / np.where(n > 0, n, 1)
    return float((n * -(chances * np.log2(np.where(chances > 0, chances, 1))).sum(0)).sum() / 8)
