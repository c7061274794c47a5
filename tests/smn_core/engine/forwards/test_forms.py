"""Every form of every kind of model gives plain timm's embeddings, and comes off again."""

from __future__ import annotations

import pytest
import signatures
import torch
from torch import Tensor, nn

from smn_core.engine import Engine, Segment
from smn_core.engine.forwards.convolution import FoldedConv2d
from smn_core.engine.forwards.forms import CHOICES, Forms, Passed, layers_of, name_activation
from smn_core.engine.forwards.linear import OneDNNLinear
from tests.smn_core.builders import KINDS, TINY_RESNET, TINY_VIT, by_hand, images, lively


def distance(found: Tensor, expected: Tensor) -> float:
    return float((torch.linalg.vector_norm(found - expected, dim=1) / torch.linalg.vector_norm(expected, dim=1)).max())


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_every_form_gives_timms_embeddings(name):
    """Alone, for one image and for several, to 1e-5; and the model without forms is plain timm, bit for bit."""
    backbone, x = lively(KINDS[name]), images(KINDS[name], 3)
    expected = backbone.model(x)
    layers = layers_of(backbone)
    for kind, values in CHOICES.items():
        for value in values[1:]:
            forms = Forms().but(kind, value)
            if layers.offers(forms):
                layers.run_as(forms, folded=True)
                assert distance(backbone.model(x), expected) < 1e-5, value
                assert distance(backbone.model(x[:1]), expected[:1]) < 1e-5, value
    layers.run_as(Forms())
    assert torch.equal(backbone.model(x), expected)


def test_what_each_model_offers():
    """Activations behind layers of transformers, normalisations behind convolutions."""
    fused = Forms(linear="onednn, activation fused")
    folded = Forms(convolution="folded")
    offered = {
        name: [layers_of(lively(kind)).offers(forms) for forms in (fused, folded)] for name, kind in KINDS.items()
    }
    assert [name for name, (linear, _) in offered.items() if linear] == ["vit", "convnext", "swin", "deit", "beit"]
    assert [name for name, (_, chains) in offered.items() if chains] == ["resnet", "mobilenet-v2", "mobilenet-v3"]


def test_the_forms_are_really_put_on():
    """The layers become others, activations that are fused do nothing, a slot is folded and a patch is not."""
    vit, resnet = lively(TINY_VIT), lively(TINY_RESNET)
    layers_of(vit).run_as(Forms(linear="onednn, activation fused"))
    mlp = vit.model.blocks[0].mlp
    assert (type(mlp.fc1), mlp.fc1.activation, type(mlp.act)) == (OneDNNLinear, "gelu", Passed)
    assert (type(mlp.fc2), mlp.fc2.activation) == (OneDNNLinear, "none")
    engine = Engine(resnet, forms=Forms(convolution="folded"))
    assert type(resnet.model.conv1) is FoldedConv2d
    assert resnet.model.conv1.bias is not None
    assert engine.memory().forms == {
        "linear": "torch",
        "attention": "timm",
        "convolution": "folded",
        "masks in one batch": "segment by segment",
    }


def test_a_patch_that_comes_again_is_folded(make_mask):
    """A mask of few OFF weights is a patch in its first batch and has a folded slot from the second on."""
    backbone = lively(KINDS["resnet"])
    mask, x = make_mask(backbone, 0.999, 1, with_state=True), images(KINDS["resnet"], 2)
    engine = Engine(backbone, forms=Forms(convolution="folded, packed"))
    engine.prepare(mask)
    assert engine._prepared[mask.digest].patched
    (expected,) = by_hand(KINDS["resnet"], [mask], x)
    resident = []
    for _ in range(3):
        found = engine.embed(x, [Segment(mask.digest, 0, 2)]).embeddings
        assert distance(found, expected) < 1e-5
        resident.append(engine.memory().resident_masks)
    assert resident == [0, 1, 1]


@pytest.mark.parametrize("kind", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_the_root_is_the_same_after_ten_thousand_swaps(kind, make_mask):
    """Bit for bit, in the fast forms, after slots and patches in any order."""
    backbone = lively(kind)
    forms = Forms("onednn, activation fused", "products", "folded, packed")
    engine, x = Engine(backbone, slots=2, forms=forms), images(kind, 1)
    before = engine.embed(x, [Segment(None, 0, 1)]).embeddings
    masks = [make_mask(backbone, density, i, with_state=True) for i, density in enumerate((0.5, 0.9, 0.99, 0.999))]
    for mask in masks:
        engine.prepare(mask)
    prepared = [engine._prepared[mask.digest] for mask in masks]
    with torch.inference_mode(), signatures.unchecked():
        for i in range(10_000):
            engine._wardrobe.wear(prepared[i % 4 if i % 3 else (i // 7) % 4])
    assert torch.equal(engine.embed(x, [Segment(None, 0, 1)]).embeddings, before)


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.ReLU(), "relu"), (nn.SiLU(), None), (nn.PReLU(), None)],
)
def test_an_activation_is_named_by_what_it_computes(module, name):
    assert name_activation(module) == name
