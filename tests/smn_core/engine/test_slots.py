"""Who is resident, who makes room, and that theta is never written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smn_core.engine.slots import Slots
from tests.smn_core.builders import TINY_RESNET, TINY_VIT, lively, weights_by_hand


@pytest.fixture
def backbone():
    return lively(TINY_RESNET)


def swapped_in(slots: Slots, mask):
    prepared = slots.prepare(mask)
    slots.swap_in(prepared)
    return prepared


def test_the_model_wears_the_mask_in_use(backbone, make_mask):
    """In use, parameters and statistics of the model are theta' and the mask's state; afterwards theta again."""
    original = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    mask = make_mask(backbone, 0.6, with_state=True)
    expected = weights_by_hand(backbone.model, mask)
    slots = Slots(backbone, 1, 1)
    slots.use(swapped_in(slots, mask))
    worn = backbone.model.state_dict()
    assert list(worn) == list(original)
    assert all(torch.allclose(worn[name], expected[name], rtol=1e-6, atol=0) for name in expected)
    slots.use(None)
    assert all(torch.equal(tensor, original[name]) for name, tensor in backbone.model.state_dict().items())


def test_what_no_mask_changes_is_shared(backbone, make_mask):
    """A mask in use leaves the frozen parameters the very same tensors."""
    slots = Slots(backbone, 1, 1)
    frozen = {n: p for n, p in backbone.model.named_parameters() if n not in {t.name for t in backbone.layout}}
    slots.use(swapped_in(slots, make_mask(backbone)))
    worn = dict(backbone.model.named_parameters())
    assert frozen
    assert all(worn[name] is parameter for name, parameter in frozen.items())


def test_touch_says_who_is_resident_and_keeps_it(make_mask):
    """A touched mask is the last to make room."""
    backbone = lively(TINY_VIT)
    slots = Slots(backbone, 2, 1)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    swapped_in(slots, a), swapped_in(slots, b)
    assert slots.touch(a.digest)
    swapped_in(slots, c)
    assert [slots.touch(m.digest) for m in (a, b, c)] == [True, False, True]


def test_a_dropped_mask_leaves_its_slot_free(make_mask):
    """After a drop the next mask takes the free slot and nobody else makes room."""
    backbone = lively(TINY_VIT)
    slots = Slots(backbone, 2, 1)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    swapped_in(slots, a), swapped_in(slots, b)
    slots.drop(a.digest)
    slots.drop(a.digest)
    swapped_in(slots, c)
    assert [slots.touch(m.digest) for m in (a, b, c)] == [False, True, True]


def test_a_tied_parameter_is_swapped_in_every_place(make_mask):
    """Two modules that share one weight both wear the mask."""
    backbone = lively(TINY_VIT)
    model = backbone.model
    model.twin = nn.Linear(1, 1, bias=False)
    model.twin.weight = model.blocks[0].attn.proj.weight
    slots = Slots(backbone, 1, 1)
    slots.use(swapped_in(slots, make_mask(backbone, 0.5)))
    assert model.twin.weight is model.blocks[0].attn.proj.weight
    assert (model.twin.weight == 0).any()
    slots.use(None)
    assert model.twin.weight is model.blocks[0].attn.proj.weight
    assert not (model.twin.weight == 0).any()


def test_slots_are_taken_when_needed(make_mask):
    """Memory for a slot is allocated when its first mask comes."""
    backbone = lively(TINY_VIT)
    slots = Slots(backbone, 100, 1)
    assert len(slots._arrays) == 0
    swapped_in(slots, make_mask(backbone))
    assert len(slots._arrays) == 1
