"""Which masks have a slot, and which one makes room."""

from __future__ import annotations

from smn_core.engine.slots import Slots
from smn_core.engine.theta import Theta
from smn_core.engine.wearable import key_of, make_wearable
from smn_core.mask import TaskMask
from tests.smn_core.builders import TINY_VIT, lively
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form


def write(slots: Slots, mask: TaskMask) -> None:
    slots.write(make_wearable(mask, slots._theta))


def test_touch_says_who_is_resident_and_keeps_it(make_mask):
    """A touched mask is the last to make room."""
    backbone = lively(TINY_VIT)
    slots = Slots(Theta(backbone, threads=1), 2)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    write(slots, a)
    write(slots, b)
    assert slots.touch(key_of(a))
    write(slots, c)
    assert [slots.touch(key_of(m)) for m in (a, b, c)] == [True, False, True]


def test_a_dropped_mask_leaves_its_slot_free(make_mask):
    """After a drop the next mask takes the free slot and nobody else makes room."""
    backbone = lively(TINY_VIT)
    slots = Slots(Theta(backbone, threads=1), 2)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    write(slots, a)
    write(slots, b)
    slots.drop(key_of(a))
    slots.drop(key_of(a))
    write(slots, c)
    assert [slots.touch(key_of(m)) for m in (a, b, c)] == [False, True, True]


def test_slots_are_taken_when_needed(make_mask):
    """Memory for a slot is allocated when its first mask comes."""
    backbone = lively(TINY_VIT)
    slots = Slots(Theta(backbone, threads=1), 100)
    assert len(slots._arrays) == 0
    write(slots, make_mask(backbone))
    assert len(slots._arrays) == 1
