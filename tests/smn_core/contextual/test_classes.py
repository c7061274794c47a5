"""Coder and decoder class a weight alike, wherever and in whichever type the backbone has it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from smn_core.contextual.classes import Theta, classes_of
from smn_core.engine import Engine


def all_of(backbone):
    return np.concatenate([backbone.theta(tensor) for tensor in backbone.layout])


def test_a_class_has_the_sign_and_grows_with_the_weight():
    weights = torch.tensor([[1.0, -1.0, 0.5, -8.0], [1.0, 1.0, 1.0, 1.0]])
    found = classes_of(weights)
    assert (found >> 7).tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    size = (found >> 4) & 7
    assert size[3] > size[0] >= size[2] and size[0] == size[1]
    assert (found[3] & 15) == max(found & 15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classes_are_those_of_the_weights_before_they_are_rounded(make_backbone, small_backbones, dtype):
    assert_array_equal(all_of(make_backbone("test_vit", dtype=dtype)), all_of(small_backbones["test_vit"]))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_classes_stay_when_an_engine_takes_the_model_and_wears_masks(make_backbone, make_mask, name):
    backbone = make_backbone(name)
    before = all_of(backbone)
    engine = Engine(backbone, slots=1)
    mask = make_mask(backbone, 0.7, with_state=True)
    engine.prepare(mask)
    from smn_core.engine import Segment

    size = backbone.preprocess["input_size"]
    engine.embed(torch.zeros(1, *size), [Segment(mask.digest, 0, 1)])
    assert_array_equal(all_of(backbone), before)


def test_an_engine_leaves_one_copy_of_the_weights(make_backbone):
    """Classes are taken from the array that the engine keeps anyway."""
    engine = Engine(make_backbone("test_vit"))
    kept = engine.backbone.theta._weights
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept.values()}) == 1


def test_theta_of_float32_keeps_nothing_but_the_weights(tiny_vit):
    theta = Theta(dict(tiny_vit.model.named_parameters()), tiny_vit.layout, rounded=False)
    assert theta._kept is None
