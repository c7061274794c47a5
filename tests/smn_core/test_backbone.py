"""A backbone by name and weights: its identity, its pixels, and errors that say what to do."""

from __future__ import annotations

import time
from pathlib import Path

import huggingface_hub
import pytest
import torch

from smn_core.backbone import layout_for, load_backbone, model_json, wrap
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidMask, InvalidWeights, SMNError, UnknownModel, WeightsUnavailable
from smn_core.spec import BackboneSpec
from tests.smn_core.builders import plain_model

RESNET, VIT = "test_resnet", "test_vit"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of the two backbones on disk, by name."""
    folder = tmp_path_factory.mktemp("weights")
    for name in (RESNET, VIT):
        torch.save(plain_model(name, {}).state_dict(), folder / name)
    return {name: folder / name for name in (RESNET, VIT)}


def load(files, name=RESNET, **said):
    return load_backbone(BackboneSpec(name, weights=files[name], device="cpu", **said))


def test_a_loaded_backbone_is_frozen(files):
    """Evaluation mode, no gradients, timm's own preprocessing, embeddings as wide as it says."""
    backbone = load(files)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.preprocess["input_size"] == (3, 160, 160)
    assert set(backbone.preprocess) == {"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}
    assert backbone.model(torch.zeros(2, 3, 160, 160)).shape == (2, backbone.n_features)


def test_the_fingerprint_is_of_weights_and_architecture(files):
    """Equal weights have one fingerprint in any precision; the tag of the name does not count; one bit does."""
    backbone = load(files)
    assert load(files, dtype="bfloat16").fingerprint == backbone.fingerprint
    tagged = load_backbone(BackboneSpec("test_resnet.r160_in1k", weights=files[RESNET], device="cpu"))
    assert tagged.fingerprint == backbone.fingerprint
    assert tagged.architecture == RESNET
    weights = torch.load(files[RESNET])
    weights["bn1.bias"][0] += 1e-6
    changed = files[RESNET].with_name("changed")
    torch.save(weights, changed)
    assert load_backbone(BackboneSpec(RESNET, weights=changed, device="cpu")).fingerprint != backbone.fingerprint


def test_the_image_size_resamples_position_embeddings_after_the_fingerprint(files):
    """A ViT takes images of another size, and is the same backbone."""
    usual, small = load(files, VIT), load(files, VIT, image_size=64)
    assert small.fingerprint == usual.fingerprint
    assert small.preprocess["input_size"] == (3, 64, 64)
    assert small.model.pos_embed.shape[1] < usual.model.pos_embed.shape[1]
    assert small.model(torch.zeros(1, 3, 64, 64)).shape == (1, small.n_features)


def test_overrides_go_into_the_preprocessing(files):
    """Mean, deviation and size that were said replace timm's; one number stands for three."""
    backbone = load(files, mean=(0.1, 0.2, 0.3), std=(0.5,), image_size=96, crop_pct=1.0)
    assert backbone.preprocess["mean"] == (0.1, 0.2, 0.3)
    assert backbone.preprocess["std"] == (0.5, 0.5, 0.5)
    assert backbone.preprocess["input_size"] == (3, 96, 96)
    assert backbone.preprocess["crop_pct"] == 1.0
    assert load(files).fingerprint == backbone.fingerprint


def test_the_size_that_a_model_was_built_for_is_the_size_of_its_images():
    """`img_size` among the model arguments is the size that pixels are brought to."""
    args = {"img_size": 64}
    assert wrap(plain_model(VIT, args), VIT, BackboneSpec(VIT, args=args)).preprocess["input_size"] == (3, 64, 64)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"image_size": 0}, "--image-size 0"),
        ({"image_size": -32}, "--image-size -32"),
        ({"image_size": 100_000}, "--image-size 100000"),
        ({"mean": (0.5, 0.5)}, "--mean"),
        ({"mean": (float("nan"),)}, "--mean"),
        ({"std": (0.0,)}, "--std"),
        ({"std": (0.5, -1.0, 0.5)}, "--std"),
        ({"crop_pct": 1e-6}, "--crop-pct"),
        ({"crop_pct": 1.5}, "--crop-pct"),
        ({"crop_pct": float("nan")}, "--crop-pct"),
        ({"device": "gpu"}, "gpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int8"}, "choose float32, bfloat16, float16"),
        ({"args": {"no_such": 1}}, "no_such"),
        ({"args": {"num_classes": 5}}, "num_classes"),
        ({"args": {"pretrained": True}}, "pretrained"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(files, said, named):
    """A wrong size, normalisation, device, type or model argument is InvalidArgument and says which."""
    with pytest.raises(InvalidArgument, match=named):
        load_backbone(BackboneSpec(RESNET, weights=files[RESNET], **{"device": "cpu", **said}))


def changed(files, name, tensor, value):
    """The path of weights with one value of one tensor changed."""
    weights = torch.load(files[name])
    weights[tensor].view(-1)[-1] = value
    path = files[name].with_name(f"{name}-{tensor}-{value}")
    torch.save(weights, path)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "tensor"), [(RESNET, "layer2.0.conv1.weight"), (RESNET, "bn1.running_var"), (VIT, "cls_token")]
)
def test_one_value_that_is_not_finite_is_refused_by_the_name_of_its_tensor(files, name, tensor, value):
    """A server would be ready, and every embedding NaN."""
    path = changed(files, name, tensor, value)
    with pytest.raises(InvalidWeights, match=f"{tensor} has a value that is not finite") as refused:
        load_backbone(BackboneSpec(name, weights=path, device="cpu"))
    assert str(path) in str(refused.value)


def test_a_weight_that_float16_does_not_hold_is_refused_in_float16_alone(files):
    path = changed(files, RESNET, "layer2.0.conv1.weight", 1e5)
    load_backbone(BackboneSpec(RESNET, weights=path, device="cpu"))
    with pytest.raises(InvalidWeights, match=r"as float16: layer2.0.conv1.weight has a value that is not finite"):
        load_backbone(BackboneSpec(RESNET, weights=path, device="cpu", dtype="float16"))


def test_a_first_embedding_that_float16_does_not_hold_is_refused(files):
    """Every weight is finite as float16, what they make of an image is not."""
    weights = torch.load(files[VIT])
    for name in ("norm.weight", "fc_norm.weight"):
        if name in weights:
            weights[name].fill_(6e4)
    path = files[VIT].with_name("large")
    torch.save(weights, path)
    load_backbone(BackboneSpec(VIT, weights=path, device="cpu"))
    with pytest.raises(InvalidWeights, match=r"float16 gives a black image .* not finite: try --dtype float32"):
        load_backbone(BackboneSpec(VIT, weights=path, device="cpu", dtype="float16"))


@pytest.mark.parametrize(
    "args",
    [{"embed_dim": "x"}, {"depth": -1}, {"patch_size": 0}, {"num_heads": 0}, {"num_heads": 7}, {"norm_layer": "nope"}],
)
def test_arguments_that_timm_cannot_build_with_are_refused(args):
    """Whatever timm raises while it builds is InvalidArgument, or InvalidMask where a mask's file said it."""
    with pytest.raises(SMNError):
        load_backbone(BackboneSpec(VIT, weights=Path("nowhere"), args=args, device="cpu"))
    with pytest.raises(InvalidMask):
        layout_for(model_json(VIT, args))


@pytest.mark.parametrize("args", [{"features_only": True}, {"global_pool": ""}])
def test_arguments_that_make_it_no_embedder_are_refused(files, args):
    """A model that does not give one pooled vector an image is InvalidArgument."""
    with pytest.raises(InvalidArgument):
        load(files, args=args)


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224"])
def test_an_architecture_without_maskable_weights_is_refused(name):
    """A ViT whose blocks are not the rule's has nothing to mask: that is said, not met in a crash."""
    with pytest.raises(SMNError):
        layout_for(model_json(name, {"depth": 1, "embed_dim": 16, "num_heads": 2}))


@pytest.mark.parametrize("size", [63, 8])
def test_a_size_that_a_model_cannot_take_is_refused_or_works(files, size):
    """Any image size is either refused when the backbone is loaded or can be embedded."""
    try:
        backbone = load(files, VIT, image_size=size)
    except InvalidArgument:
        return
    rows = Engine(backbone).embed(torch.zeros(1, 3, size, size), [Segment(None, 0, 1)]).embeddings
    assert rows.isfinite().all()


def test_a_model_of_one_size_refuses_another():
    """An architecture whose weights fix its input size says so when another is asked for."""
    model = plain_model("mixer_s32_224", {})
    with pytest.raises(InvalidArgument, match="64"):
        wrap(model, "mixer_s32_224", BackboneSpec("mixer_s32_224", image_size=64))


@pytest.mark.parametrize(
    ("name", "near"), [("resnet_50", "resnet50"), ("vit_base_patch16_225", "vit_base_patch16_224")]
)
def test_an_unknown_name_gives_near_ones(name, near):
    """A typing error is answered with the names that it may have meant."""
    with pytest.raises(UnknownModel, match=near):
        load_backbone(BackboneSpec(name, device="cpu"))


def test_an_unknown_tag_gives_the_known_ones():
    """Weights that timm does not have are answered with those that it has."""
    with pytest.raises(UnknownModel, match=r"resnet50\.a1_in1k"):
        load_backbone(BackboneSpec("resnet50.no_such_tag", device="cpu"))


def test_no_name_is_an_unknown_model():
    """An empty name is UnknownModel."""
    with pytest.raises(UnknownModel):
        load_backbone(BackboneSpec("", device="cpu"))


def test_an_architecture_without_pretrained_weights_asks_for_a_file():
    """Where timm has no weights the message names --weights."""
    with pytest.raises(WeightsUnavailable, match="--weights"):
        load_backbone(BackboneSpec("coatnet_0_224", device="cpu"))


def test_an_unreachable_hub_is_one_clear_error_within_seconds(monkeypatch, tmp_path):
    """Without a network the message names --weights, and comes before anybody gives up waiting."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match="--weights") as caught:
        load_backbone(BackboneSpec("resnet50", device="cpu"))
    assert time.monotonic() - began < 15
    assert "\n" not in str(caught.value)
