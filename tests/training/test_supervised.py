"""Masks and weights from labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from smn_core.engine import Engine
from smn_core.maskfile import read_mask
from tests.training.builders import World, config, run
from training.data import open_split
from training.features import embed
from training.masking import MaskRule
from training.supervised import Classifier


def test_loss_is_cross_entropy_of_a_linear_classifier():
    head = Classifier(5, 3, masked=False, rule=MaskRule())
    z, labels = torch.randn(7, 5), torch.randint(0, 3, (7,))
    torch.testing.assert_close(head(z, labels), F.cross_entropy(z @ head.linear.weight.T + head.linear.bias, labels))


def test_a_masked_head_keeps_its_random_weights_and_learns_scores():
    head = Classifier(5, 3, masked=True, rule=MaskRule(2.0, 1.0))
    head(torch.randn(7, 5), torch.randint(0, 3, (7,))).backward()
    learned = {name: p for name, p in head.named_parameters() if p.requires_grad}
    assert list(learned) == ["linear.parametrizations.weight.0.scores"]
    assert next(iter(learned.values())).grad.abs().sum() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_supervised_mask_carries_a_head_that_classifies(masked, world: World, tmp_path):
    recipe = config("supervised", steps=80, batch_size=32, masked_head=masked, head_lr=0.1)
    recipe = replace(recipe, lr=5e-2, crop_scale=(0.9, 1.0))
    result = run(world, tmp_path / "m.smn", recipe)
    mask = read_mask(tmp_path / "m.smn")
    assert mask.head.classes == tuple("0123456789")
    assert mask.digest == result.mask.digest
    engine = Engine(world.backbone(), slots=1)
    engine.prepare(mask)
    found = embed(engine, mask.digest, open_split(str(world.data), "train"), 64)
    predicted = (found.z @ mask.head.weight.T + mask.head.bias).argmax(1)
    assert (predicted == found.labels).mean() > 0.25  # ten classes
