"""Which tensors are maskable, and where they lie."""

import pytest
import timm
import torch

from smn_core.backbone import layout_for, model_json
from smn_core.layout import layout_of, maskable_names, stage_of


def on_meta(name, **args):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **args)


@pytest.mark.parametrize(
    ("name", "n_weights", "n_tensors"),
    [("resnet50", 23_462_592, 61), ("resnet18", 11_168_704, 26), ("vit_base_patch32_224", 85_017_600, 96)],
)
def test_the_papers_counts_are_reproduced(name, n_weights, n_tensors):
    layout = layout_of(on_meta(name))
    assert (layout.n_weights, len(layout.tensors)) == (n_weights, n_tensors)


def test_a_resnet_masks_convolutions_and_all_of_its_downsamples():
    names = maskable_names(on_meta("test_resnet"))
    assert "conv1.0.weight" in names
    assert {f"layer2.0.downsample.2.{part}" for part in ("weight", "bias")} <= set(names)
    assert "bn1.weight" not in names


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_a_vit_masks_its_blocks_linear_layers_and_their_biases(name):
    names = maskable_names(on_meta(name))
    assert len(names) % 8 == 0
    assert names[:8] == [
        f"blocks.0.{layer}.{part}"
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_mambaout"])
def test_any_other_model_masks_the_weights_of_convolutions_and_linear_layers(name):
    model = on_meta(name)
    names = maskable_names(model)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    assert names
    for parameter in names:
        assert parameter.endswith(".weight")
        assert isinstance(model.get_submodule(parameter.removesuffix(".weight")), kinds)


def test_a_subclass_follows_the_rule_of_other_models():
    """The exact class counts: a ResNetV2 or a subclass of ResNet is not the paper's ResNet."""
    model = on_meta("test_resnet")
    model.__class__ = type("OwnResNet", (type(model),), {})
    assert all(name.endswith(".weight") for name in maskable_names(model))
    assert "layer2.0.downsample.2.weight" not in maskable_names(model)


def test_the_order_is_that_of_named_parameters(small_backbone):
    order = [name for name, _ in small_backbone.model.named_parameters()]
    places = [order.index(tensor.name) for tensor in small_backbone.layout]
    assert places == sorted(places)


def test_tensors_lie_one_after_another_in_whole_bytes(small_backbone):
    layout, end = small_backbone.layout, 0
    for tensor in layout:
        assert tensor.bytes == slice(end, end + tensor.n_bytes)
        assert tensor.elements == slice(8 * end, 8 * end + tensor.n_weights)
        assert 0 <= 8 * tensor.n_bytes - tensor.n_weights < 8
        end += tensor.n_bytes
    assert (layout.n_bytes, layout.n_elements) == (end, 8 * end)


def test_buffers_are_the_running_statistics_alone(small_backbone):
    """Not the counters of batches, and none in a model without batch normalisation."""
    state_dict = small_backbone.model.state_dict()
    expected = {n: tuple(t.shape) for n, t in state_dict.items() if n.endswith(("running_mean", "running_var"))}
    assert dict(small_backbone.layout.buffers) == expected


def test_the_width_is_that_of_an_embedding(small_backbone):
    x = torch.zeros(1, 3, 160, 160)
    assert small_backbone.layout.n_features == small_backbone.model(x).shape[1]


def test_a_layout_from_the_model_text_is_that_of_the_built_model(small_backbone):
    assert layout_for(small_backbone.model_json) == small_backbone.layout


def test_arguments_change_the_layout():
    plain, wide = (layout_for(model_json("test_vit", args)) for args in ({}, {"embed_dim": 128}))
    assert plain.digest != wide.digest


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("layer3.1.conv2.weight", "layer3"),
        ("blocks.7.mlp.fc1.bias", "blocks.7"),
        ("conv1.weight", "conv1"),
        ("stages.2.blocks.0.conv_dw.weight", "stages.2"),
    ],
)
def test_a_tensor_belongs_to_its_stage(name, stage):
    assert stage_of(name) == stage
