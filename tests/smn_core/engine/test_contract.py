"""The engine keeps to the contract that everything above it is written against."""

from __future__ import annotations

from smn_core.engine import Engine, MaskEngine, MaskHolder
from tests.smn_core.builders import TINY_VIT, lively


def test_the_engine_is_what_the_contract_says():
    """It has every method that services and verbs may call; half of it, what a cache of masks calls."""
    engine = Engine(lively(TINY_VIT), slots=2, capacity=3)
    assert isinstance(engine, MaskEngine)
    assert isinstance(engine, MaskHolder)
    assert engine.capacity == 3
    assert engine.memory().n_slots == 2
