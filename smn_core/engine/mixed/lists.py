"""The OFF positions of all masks of a mixed batch in one list, made once; every layer finds its own part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numpy import ndarray

from smn_core.engine.compact import Resident


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a batch through a mask; None is the root."""

    start: int
    stop: int
    bits: Resident | None


class Lists:
    """What a pass over a layer's output needs of `p` parts with `n_tensors` tensors.

    Attributes:
        edges: [p, 2] first row of every part, and the one behind its last.
        off: positions of all OFF weights that are listed.
        first: [p, n_tensors + 1] where in `off` those of a tensor begin, and end where the next ones begin.
        scales: [p, n_tensors] `1 / alpha`.
    """

    def __init__(self, parts: Sequence[Rows], n_tensors: int) -> None:
        self.edges: Int64[ndarray, "p 2"] = np.array([(part.start, part.stop) for part in parts], np.int64)
        self.first: Int64[ndarray, "p n_tensors_and_1"] = np.zeros((len(parts), n_tensors + 1), np.int64)
        self.scales: Float32[ndarray, "p n_tensors"] = np.ones((len(parts), n_tensors), np.float32)
        lists: list[ndarray] = []
        length = 0
        for number, part in enumerate(parts):
            if part.bits is not None:
                np.add(part.bits.bounds, length, out=self.first[number], casting="unsafe")
                self.scales[number] = part.bits.scales
                lists.append(part.bits.off.cpu().numpy())
                length += len(lists[-1])
        off = np.concatenate(lists) if lists else np.zeros(0, np.int32)
        self.off: Int32[ndarray, "n_off"] = off.astype(np.int32, copy=False)

    def lengths(self, tensor: int) -> Int64[ndarray, "p"]:
        """How many OFF weights of a tensor every part lists."""
        return self.first[:, tensor + 1] - self.first[:, tensor]

    def neutral(self, tensors: Sequence[int]) -> Bool[ndarray, "p"]:
        """The parts whose masks switch nothing of these tensors off."""
        found: Bool[ndarray, "p"] = (self.scales[:, tensors] == 1).all(1)
        return found

    def table(
        self, parts: slice, weight: int, bias: int | None, block: int
    ) -> tuple[Int64[ndarray, "q 6"], Float32[ndarray, "q 2"]]:
        """Of some parts: their rows, counted from the first one's, at `block` to a row of the batch, where their OFF
        weights and OFF biases begin and end; and their two scales."""
        edges = self.edges[parts]
        table, scales = np.zeros((len(edges), 6), np.int64), np.ones((len(edges), 2), np.float32)
        table[:, :2] = (edges - edges[0, 0]) * block
        for column, tensor in enumerate((weight, bias)):
            if tensor is not None:
                table[:, 2 + 2 * column : 4 + 2 * column] = self.first[parts, tensor : tensor + 2]
                scales[:, column] = self.scales[parts, tensor]
        return table, scales
