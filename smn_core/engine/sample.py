"""A mask that changes every tensor of a layout: the engine tries out on it what must work for any mask."""

from __future__ import annotations

import numpy as np

from smn_core import bits
from smn_core.layout import Layout
from smn_core.mask import TaskMask


def half_mask(layout: Layout) -> TaskMask:
    """Every weight ON with probability 1/2, the last one of a tensor always, the first one, if there are two, never."""
    drawn, parts = np.random.default_rng(0), []
    for tensor in layout:
        on = bits.unpack(np.frombuffer(drawn.bytes(tensor.n_bytes), np.uint8), tensor.n_weights)
        on = on.copy()
        on[0], on[-1] = False, True
        parts.append(bits.pack(on))
    return TaskMask(layout, "", "", np.concatenate(parts))
