"""What was learned leaves under the names that timm knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smn_core import bits
from smn_core.errors import InvalidMask
from tests.training.builders import World, config
from training import export
from training.masking import MaskRule, attach, list_scores
from training.supervised import Classifier, SupervisedObjective


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_plain_state_is_the_untouched_models(name, world: World):
    backbone = world.backbone(name)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    attach(backbone.model, backbone.layout, MaskRule(share=0.5))
    after = export.collect_weights(backbone.model)
    assert list(after) == list(before) or set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_bits_are_the_scores_and_tensors_without_scores_are_on(world: World):
    backbone = world.backbone()
    root = export.copy_statistics(backbone)
    attach(backbone.model, backbone.layout, MaskRule(only="fc1.weight"))
    generator = torch.Generator().manual_seed(0)
    for _, scores in list_scores(backbone.model):
        scores.scores.data = torch.randn(scores.scores.shape, generator=generator)
    learned = dict(list_scores(backbone.model))
    mask = export.make_mask(backbone, backbone.model, root, {})
    first = 0
    for tensor in backbone.layout:
        n_bytes = bits.packed_bytes(tensor.n_weights)
        on = bits.unpack(mask.packed[first : first + n_bytes], tensor.n_weights)
        expected = (
            learned[tensor.name].on().numpy().ravel() if tensor.name in learned else np.ones(tensor.n_weights, bool)
        )
        np.testing.assert_array_equal(on, expected)
        first += n_bytes
    assert mask.state == {}


def test_a_tensor_that_is_all_off_is_not_written(world: World):
    backbone = world.backbone()
    attach(backbone.model, backbone.layout, MaskRule())
    name, scores = next(list_scores(backbone.model))
    scores.scores.data.fill_(-1)
    with pytest.raises(InvalidMask, match=name):
        export.make_mask(backbone, backbone.model, {}, {})


def test_only_statistics_that_moved_are_written(world: World):
    backbone = world.backbone("test_resnet")
    root = export.copy_statistics(backbone)
    moved = next(iter(root))
    backbone.model.get_buffer(moved).add_(1)
    assert list(export.collect_changed_statistics(backbone.model, root)) == [moved]


def test_a_masked_head_leaves_as_its_effective_weights(world: World):
    backbone = world.backbone()
    classifier = Classifier(backbone.n_features, 3, masked=True, rule=MaskRule())
    chain = classifier.linear.parametrizations.weight
    chain[0].scores.data = torch.randn(chain[0].scores.shape)
    attach(backbone.model, backbone.layout, MaskRule())
    exported = SupervisedObjective(config("supervised", masked_head=True)).export_head(classifier, ("a", "b", "c"))
    head = export.make_mask(backbone, backbone.model, {}, {}, exported).head
    on = chain[0].scores.detach() > 0
    expected = chain.original * on / on.float().mean().sqrt()
    np.testing.assert_allclose(head.weight, expected.numpy(), rtol=1e-6)
    assert head.classes == ("a", "b", "c")
