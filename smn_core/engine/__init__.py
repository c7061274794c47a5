"""The engine: one backbone and the masks that its model can wear. contract.py is all that code above needs to know."""

from smn_core.engine.contract import Embedded, MaskEngine, MaskHolder, Memory, Segment
from smn_core.engine.engine import Engine, slots_within

__all__ = ["Embedded", "Engine", "MaskEngine", "MaskHolder", "Memory", "Segment", "slots_within"]
