"""What makes the vectors of a mask or cascade, as one hash: two with equal hashes embed alike.

A mask's is made of its bits, normalisation state and map; a cascade's of its masks', its fusion and its router. Head,
metadata and codec have no part in it. docs/formats.md has the rule, under "Vectors".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy import ndarray

from smn_core import bits
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import tensors_of
from smn_core.layout import Layout
from smn_core.mask import TaskMask
from smn_core.tensorfile import hash_tensors


def vectors_of_mask(mask: TaskMask) -> str:
    """64 hex digits: sha256 of the packed bits, then of every `state.*` and `affine.*` tensor, sorted by name."""
    tensors: dict[str, ndarray] = {f"state.{name}": values for name, values in mask.state.items()}
    if mask.affine is not None:
        tensors |= {f"affine.{name}": values for name, values in mask.affine.tensors().items()}
    return _hash(mask.packed.tobytes(), tensors)


def vectors_of_root(layout: Layout) -> str:
    """What a mask has that is all ON, without state and map: its vectors are the untouched backbone's."""
    return _hash_all_on(tuple(tensor.n_weights for tensor in layout))


@lru_cache(maxsize=16)
def _hash_all_on(sizes: tuple[int, ...]) -> str:
    """Of tensors with so many weights. It hashes megabytes, and whoever names a space asks for it."""
    return _hash(b"".join(bits.pack(np.ones(n_weights, np.bool_)).tobytes() for n_weights in sizes), {})


def vectors_of_cascade(cascade: Cascade, of_masks: Sequence[str]) -> str:
    """64 hex digits; `of_masks` are those of root and experts, in order.

    sha256 of each of them and a line break, then of `<fusion>`, a line break, the seed if any, a line break, then of
    every `fusion.*` and `router.*` tensor, sorted by name.
    """
    if len(of_masks) != cascade.n_parts:
        raise ValueError(f"{len(of_masks)} masks' vectors for a cascade of {cascade.n_parts}")
    seed = "" if cascade.fusion.seed is None else str(cascade.fusion.seed)
    lines = [*of_masks, cascade.fusion.kind, seed]
    return _hash("".join(f"{line}\n" for line in lines).encode(), tensors_of(cascade))


def _hash(start: bytes, tensors: Mapping[str, ndarray]) -> str:
    digest = hashlib.sha256(start)
    hash_tensors(digest, tensors)
    return digest.hexdigest()
