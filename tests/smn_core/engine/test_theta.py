"""theta is the backbone's weights, once, and nobody writes it."""

from __future__ import annotations

import torch

from smn_core.engine import Engine
from smn_core.engine.theta import FlatState, Theta
from tests.smn_core.builders import TINY_RESNET, TINY_VIT, images, lively
from tests.smn_core.engine.test_engine import through


def test_theta_holds_the_weights_that_the_model_had():
    """Every maskable tensor lies where the layout says, and the model computes with a view of it."""
    backbone = lively(TINY_RESNET)
    original = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    theta = Theta(backbone, threads=1)
    for tensor in backbone.layout:
        assert torch.equal(theta.flat[tensor.elements].view(tensor.shape), original[tensor.name])
    assert all(torch.equal(tensor, original[name]) for name, tensor in backbone.model.state_dict().items())
    shown = dict(backbone.model.named_parameters())
    assert all(shown[tensor.name].data_ptr() == theta.flat[tensor.elements].data_ptr() for tensor in backbone.layout)


def test_theta_is_never_written(make_mask):
    """After slots, patches and the root in turn, theta is what it was, bit for bit."""
    backbone = lively(TINY_VIT)
    engine, x = Engine(backbone, slots=1), images(TINY_VIT, 1)
    before = engine._theta.flat.clone()
    for seed, density in enumerate((0.5, 0.999, 0.9, 0.995)):
        through(engine, make_mask(backbone, density, seed), x)
        through(engine, None, x)
    assert torch.equal(engine._theta.flat, before)


def test_flat_statistics_are_the_masks_own_and_else_the_roots(make_mask):
    """A mask that brings a part of the statistics gets the others from the root."""
    backbone = lively(TINY_RESNET)
    root = {name: t for name, t in backbone.model.named_buffers() if name in backbone.layout.buffers}
    state = dict(list(make_mask(backbone, with_state=True).state.items())[::2])
    flat_state = FlatState(root)
    found = flat_state.views_of(flat_state.flatten(state))
    assert list(found) == list(root)
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.from_numpy(state[name]) if name in state else root[name])
