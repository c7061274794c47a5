"""Checkpoints as they are published load; anything that does not fit is named."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smn_core.errors import InvalidWeights
from smn_core.weights import load_weights
from tests.smn_core.builders import plain_model

RESNET, VIT = "test_resnet", "test_vit"
VIT_ARGS = {"img_size": 32}
Weights = dict[str, Tensor]


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def other(weights: Weights) -> Weights:
    """The same names and shapes, other values: a student, a momentum twin."""
    return {name: tensor + 1 for name, tensor in weights.items()}


HEAD = {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}
SWAV_HEAD = {"projection_head.0.weight": torch.zeros(8, 96), "prototypes.weight": torch.zeros(5, 8)}
DINO_HEAD = {"head.mlp.0.weight": torch.zeros(8, 96), "head.last_layer.weight_g": torch.zeros(5, 1)}


def swav(w: Weights) -> object:
    return prefixed({**w, **SWAV_HEAD}, "module.")


def dino(w: Weights) -> object:
    teacher = {**prefixed(w, "backbone."), **DINO_HEAD}
    student = prefixed({**prefixed(other(w), "backbone."), **DINO_HEAD}, "module.")
    return {"student": student, "teacher": teacher, "epoch": 100, "optimizer": {"state": {}, "param_groups": []}}


# Name of the file, checkpoint made of the weights, what is ignored.
PUBLISHED = {
    "plain": ("w.pth", lambda w: w, []),
    "classifier": ("w.pth", lambda w: {**w, **HEAD}, ["fc.bias", "fc.weight"]),
    "swav": ("swav.pth.tar", swav, ["projection_head.0.weight", "prototypes.weight"]),
    "dino": ("dino.pth", dino, ["head.last_layer.weight_g", "head.mlp.0.weight"]),
    "dino, teacher under module": (
        "dino.pth",
        lambda w: {"teacher": prefixed({**prefixed(w, "backbone."), **DINO_HEAD}, "module.")},
        ["head.last_layer.weight_g", "head.mlp.0.weight"],
    ),
    "state_dict": ("checkpoint.pth.tar", lambda w: {"epoch": 3, "arch": "r", "state_dict": prefixed(w, "module.")}, []),
    "model": ("w.bin", lambda w: {"model": w, "epoch": 1}, []),
    "ema": ("w.pth", lambda w: {"state_dict": other(w), "state_dict_ema": w}, []),
    "compiled": ("w.pth", lambda w: prefixed(w, "_orig_mod."), []),
    "without counters": ("w.pth", lambda w: {k: v for k, v in w.items() if "num_batches" not in k}, []),
    "flat student and teacher": (
        "lightning.ckpt",
        lambda w: {"state_dict": {**prefixed(other(w), "student.backbone."), **prefixed(w, "teacher.backbone.")}},
        None,
    ),
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return plain_model(RESNET, {}, seed=3).state_dict()


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms_load_to_equal_weights(form, weights, tmp_path):
    """Wrappers, nests, classifiers and projection heads come off; what was ignored is said."""
    file, wrap, ignored = PUBLISHED[form]
    torch.save(wrap(weights), tmp_path / file)
    model = plain_model(RESNET, {})
    said = load_weights(model, tmp_path / file)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items() if "num_batches" not in n)
    assert ignored is None or said == ignored


@pytest.mark.parametrize("head", [{}, HEAD])
def test_a_safetensors_file_loads(weights, tmp_path, head):
    """The same keys in safetensors, with or without a classifier, load to equal weights."""
    save_file({**weights, **head}, tmp_path / "w.safetensors")
    model = plain_model(RESNET, {})
    assert load_weights(model, tmp_path / "w.safetensors") == sorted(head)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_timms_own_file_with_its_classifier_loads(tmp_path):
    """The state dict of a timm model that was built with classes fits the one without, classifier ignored."""
    for name, args in ((VIT, VIT_ARGS), ("test_convnext", {}), ("mobilenetv3_small_050", {})):
        full = plain_model(name, args, num_classes=7)
        torch.save(full.state_dict(), tmp_path / "w.pth")
        model = plain_model(name, args, seed=1)
        assert len(load_weights(model, tmp_path / "w.pth")) == 2
        assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_the_weights_of_a_masked_autoencoder_load(tmp_path):
    """A decoder and the mask token have no place in the backbone and are ignored."""
    weights = plain_model(VIT, VIT_ARGS, seed=2).state_dict()
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
    torch.save({"model": {**weights, **extra}}, tmp_path / "mae.pth")
    assert load_weights(plain_model(VIT, VIT_ARGS), tmp_path / "mae.pth") == sorted(extra)


def refused(path: Path, name: str = RESNET, args: dict | None = None) -> str:
    """The message of a refusal; the model is untouched by it."""
    model = plain_model(name, args or {})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(InvalidWeights) as caught:
        load_weights(model, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_keys_are_refused_by_name(weights, tmp_path):
    """A checkpoint with a gap names the first missing keys and counts the rest."""
    torch.save({name: t for name, t in weights.items() if not name.startswith("layer4.")}, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth")
    assert "missing layer4.0.bn1.bias" in message
    assert "more" in message


def test_the_extra_blocks_of_a_deeper_model_are_refused_by_name(tmp_path):
    """A deeper ViT is not quietly cut to the backbone's depth."""
    deeper = plain_model("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 16, "num_heads": 2, "depth": 3})
    torch.save(deeper.state_dict(), tmp_path / "w.pth")
    shallow = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "depth": 2}
    assert "unexpected blocks.2.attn.proj.bias" in refused(tmp_path / "w.pth", "vit_tiny_patch16_224", shallow)


def test_a_wrong_shape_is_refused_with_both_shapes(weights, tmp_path):
    """The message names the key, its shape and the model's."""
    wrong = {**weights, "bn1.bias": torch.zeros(5)}
    torch.save(wrong, tmp_path / "w.pth")
    assert f"bn1.bias is [5], the model's is {list(weights['bn1.bias'].shape)}" in refused(tmp_path / "w.pth")


def test_another_architecture_is_refused(tmp_path):
    """Weights without one key of the backbone are taken for another architecture's."""
    torch.save(plain_model(VIT, VIT_ARGS).state_dict(), tmp_path / "w.pth")
    assert "another architecture" in refused(tmp_path / "w.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["SMN_TEST_EVIL"],)


def test_code_in_a_pickle_is_refused_and_never_run(tmp_path, monkeypatch):
    """A pickle that would run code is refused unrun, alone or inside a torch file."""
    trace = tmp_path / "ran"
    monkeypatch.setenv("SMN_TEST_EVIL", str(trace))
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "b.pth")
    for file in ("a.pth", "b.pth"):
        assert "weights_only" in refused(tmp_path / file)
    assert not trace.exists()


def test_objects_beside_the_weights_are_refused(weights, tmp_path):
    """A checkpoint with pickled objects, as argparse's, cannot be read safely: the message says why."""
    torch.save({"state_dict": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    assert "weights_only" in refused(tmp_path / "w.pth")


FILES = {
    "text.pth": b"these are not weights\n",
    "text.safetensors": b"these are not weights\n",
    "empty.pth": b"",
    "empty.safetensors": b"",
    "dot.pth": b".",
    "digits.pth": b"0123456789",
    "zeros.pth": bytes(1000),
    "image.pth": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "list.pth": pickle.dumps([1, 2, 3], protocol=2),
    "protocol-4.pth": pickle.dumps([1, 2, 3], protocol=4),
    "zip.pth": b"PK\x03\x04" + bytes(100),
    "stack.pth": b"(lp0\nI1\naa.",
    "html.pth": b"<!DOCTYPE html><html><body>404</body></html>",
    "gzip.pth": b"\x1f\x8b\x08\x00" + bytes(20),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_weights_are_refused(name, tmp_path):
    """Text, nothing and bytes of other formats are InvalidWeights with the file's name, without torch's advice."""
    (tmp_path / name).write_bytes(FILES[name])
    said = refused(tmp_path / name)
    assert name in said
    assert "arbitrary code" not in said and "to `False`" not in said
    assert not re.search(r": \S+$", said), "a byte of the file, alone, tells nothing"


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(weights, tmp_path, suffix, part):
    """A download that stopped early is InvalidWeights."""
    path = tmp_path / f"w{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert path.name in refused(path)


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors", ".", "folder.safetensors", "pipe.pth"])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    """A missing file, a folder and a pipe, which nobody may ever write to, are InvalidWeights."""
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    assert refused(tmp_path / name).startswith("cannot read")
