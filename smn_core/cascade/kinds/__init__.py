"""The kinds of fusion, by the name that a file gives them."""

from __future__ import annotations

from smn_core.cascade.kinds.base import Kind
from smn_core.cascade.kinds.concat import Concat
from smn_core.cascade.kinds.low_rank import LowRank
from smn_core.cascade.kinds.pca import Pca, PcaInt3, PcaInt4
from smn_core.cascade.kinds.random_signs import RandomSigns

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Concat, Pca, RandomSigns, LowRank, PcaInt3, PcaInt4)}
"""In the order in which messages list them."""
