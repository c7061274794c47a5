"""The OFF positions of all masks of a mixed batch in one array, made once a batch.

A layer then finds its own OFF weights there by slicing. Collecting them layer by layer in Python took as long as the
compiled pass that reads them (compiled.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numpy import ndarray

from smn_core.engine.span import Span


class Lists:
    """What the compiled pass needs to know of `p` spans and their masks over `n_tensors` tensors.

    Attributes:
        edges: [p, 2] the first row of every span, and the row behind its last.
        off: the listed OFF positions of the masks, one mask after the other.
        first: [p, n_tensors + 1] where in `off` the positions of each tensor begin; they end where those of the next
            tensor begin.
        scales: [p, n_tensors] `1 / alpha`.
    """

    def __init__(self, spans: Sequence[Span], n_tensors: int) -> None:
        self.edges: Int64[ndarray, "p 2"] = np.array([(span.start, span.stop) for span in spans], np.int64)
        self.first: Int64[ndarray, "p n_tensors_and_1"] = np.zeros((len(spans), n_tensors + 1), np.int64)
        self.scales: Float32[ndarray, "p n_tensors"] = np.ones((len(spans), n_tensors), np.float32)
        lists: list[ndarray] = []
        length = 0
        for number, span in enumerate(spans):
            if span.mask is not None:
                compact = span.mask.compact
                np.add(compact.bounds, length, out=self.first[number], casting="unsafe")
                self.scales[number] = compact.scales
                lists.append(compact.off.cpu().numpy())
                length += len(lists[-1])
        off = np.concatenate(lists) if lists else np.zeros(0, np.int32)
        self.off: Int32[ndarray, "n_off"] = off.astype(np.int32, copy=False)

    def count_off(self, tensor: int) -> Int64[ndarray, "p"]:
        """How many OFF weights of a tensor the mask of every span lists."""
        return self.first[:, tensor + 1] - self.first[:, tensor]

    def find_neutral(self, tensors: Sequence[int]) -> Bool[ndarray, "p"]:
        """For every span, whether its mask leaves all weights of these tensors ON."""
        found: Bool[ndarray, "p"] = (self.scales[:, tensors] == 1).all(1)
        return found

    def make_table(
        self, which: slice, weight: int, bias: int | None, block: int
    ) -> tuple[Int64[ndarray, "q 6"], Float32[ndarray, "q 2"]]:
        """What the compiled pass reads of the spans `which`, for one layer.

        Args:
            weight, bias: tensors of the layer, by index in the layout; None where its bias is not masked.
            block: rows that the layer gets for every row of the batch.

        Returns:
            A table: [q, 6] of every span its first row, counted from the first row of the first span, and the row
            behind its last; where in `off` its OFF weights begin and end, and where its OFF biases do. And scales:
            [q, 2] `1 / alpha` of weight and bias.
        """
        edges = self.edges[which]
        table, scales = np.zeros((len(edges), 6), np.int64), np.ones((len(edges), 2), np.float32)
        table[:, :2] = (edges - edges[0, 0]) * block
        for column, tensor in enumerate((weight, bias)):
            if tensor is not None:
                table[:, 2 + 2 * column : 4 + 2 * column] = self.first[which, tensor : tensor + 2]
                scales[:, column] = self.scales[which, tensor]
        return table, scales
