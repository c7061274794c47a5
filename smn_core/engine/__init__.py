"""The engine: one backbone and the masks it can wear."""

from smn_core.engine.engine import Embedded, Engine, Segment, slots_within

__all__ = ["Embedded", "Engine", "Segment", "slots_within"]
