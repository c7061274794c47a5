"""The maps of prepared masks, applied to finished embeddings: float32, on the CPU, segment by segment.

    z[s.start:s.stop] = map[s.mask](z[s.start:s.stop])     for every segment s whose mask has a map

A map goes by the digest of the segment's mask, never by its weights: two masks may share all bits and not the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from smn_core.affine import Affine
from smn_core.engine.contract import Segment


@dataclass(frozen=True, eq=False)
class PreparedMap:
    """A map as the engine applies it: float32, whatever the file stores. `factor` is the scale or the matrix."""

    mean: Float32[Tensor, "d"]
    factor: Float32[Tensor, "d"] | Float32[Tensor, "d d"]

    @property
    def nbytes(self) -> int:
        return self.mean.nbytes + self.factor.nbytes

    def apply(self, z: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
        """Map rows of embeddings."""
        centred = z - self.mean
        return centred * self.factor if self.factor.ndim == 1 else centred @ self.factor.t()


def prepare_map(affine: Affine) -> PreparedMap:
    """Copy a map out of its file. Safe on any thread."""
    # torch's own product: it keeps to the number of threads that the process has set.
    factor = affine.scale if affine.scale is not None else affine.full
    return PreparedMap(torch.tensor(affine.mean), torch.tensor(factor))


def apply_maps(z: Float32[Tensor, "n d"], segments: Sequence[Segment], maps: Mapping[str, PreparedMap]) -> None:
    """Map the rows of every segment whose mask has a map, in place; other rows stay as they are, bit for bit."""
    for segment in segments:
        if segment.mask is not None and segment.mask in maps:
            rows = z[segment.start : segment.stop]
            rows.copy_(maps[segment.mask].apply(rows))


def apply_maps_slowly(
    z: Float32[Tensor, "n d"], segments: Sequence[Segment], maps: Mapping[str, Affine]
) -> Float32[Tensor, "n d"]:
    """What `apply_maps` must agree with: from the stored tensors, row by row and entry by entry, in float64."""
    rows = []
    for segment in segments:
        found = z[segment.start : segment.stop].numpy()
        affine = None if segment.mask is None else maps.get(segment.mask)
        rows.append(torch.from_numpy(found if affine is None else affine.apply_slowly(found)))
    return torch.cat(rows) if rows else z
