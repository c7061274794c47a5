"""A mask as one ONNX graph: ONNX Runtime gives the engine's embeddings for any number of images."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import smn
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidMask, WrongBackbone
from smn_core.maskfile import write_mask
from smn_core.spaces import space_of_mask
from smn_core.verbs import onnxfile
from smn_core.verbs.onnxfile import export_onnx
from tests.conftest import build_affine
from tests.smn_core.builders import KINDS, TINY_VIT, lively

TRACED = ("resnet", "deit")


def outputs(file, x):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": x.numpy()}), strict=True))


def pixels(backbone, n):
    """Other ones than those of the check."""
    return torch.randn(n, *backbone.preprocess["input_size"], generator=torch.Generator().manual_seed(7))


def by_engine(backbone, mask, x):
    engine = Engine(backbone)
    engine.prepare(mask)
    return engine.embed(x, [Segment(mask.digest, 0, len(x))]).embeddings.numpy()


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("name", TRACED)
def test_the_graph_gives_the_engines_embeddings_for_any_number_of_images(name, make_mask, tmp_path):
    backbone, file = lively(KINDS[name]), tmp_path / "w.onnx"
    mask = make_mask(backbone, 0.9, 1, with_state=True, with_head=True, with_affine="float32")
    error = export_onnx(backbone, mask, file, with_head=True)
    assert error is not None and error < 1e-5
    x = pixels(backbone, 5)
    wanted = by_engine(lively(KINDS[name]), mask, x)
    for n in (1, 5):
        found = outputs(file, x[:n])
        assert relative(found["embeddings"], wanted[:n]) < 1e-5
        assert relative(found["logits"], wanted[:n] @ mask.head.weight.T + mask.head.bias) < 1e-5


@pytest.mark.parametrize("kind", ["diagonal", "int8", None])
def test_every_form_of_a_map_is_in_the_graph_or_left_out(kind, make_mask, tmp_path):
    mask = make_mask(lively(TINY_VIT), 0.9, 1, with_affine="float32")
    mapped = replace(mask, affine=build_affine(mask.layout.n_features, kind=kind) if kind else mask.affine)
    export_onnx(lively(TINY_VIT), mapped, tmp_path / "w.onnx", with_map=kind is not None)
    x = pixels(lively(TINY_VIT), 2)
    wanted = by_engine(lively(TINY_VIT), mapped if kind else replace(mask, affine=None), x)
    found = outputs(tmp_path / "w.onnx", x)
    assert list(found) == ["embeddings"] and relative(found["embeddings"], wanted) < 1e-5


def test_the_file_says_what_it_is_and_which_pixels_it_takes(make_mask, tmp_path):
    backbone = lively(KINDS["resnet"])
    mask = make_mask(backbone, with_head=True)
    export_onnx(backbone, mask, tmp_path / "w.onnx")
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "w.onnx").metadata_props}
    assert told["smn.mask"] == mask.digest and told["smn.fingerprint"] == mask.fingerprint
    assert told["smn.space"] == space_of_mask(backbone, mask)
    assert json.loads(told["smn.preprocess"])["mean"] == list(backbone.preprocess["mean"])
    assert json.loads(told["smn.classes"]) == ["cat", "dog", "other"]
    assert str(tmp_path) not in (tmp_path / "w.onnx").read_bytes().decode("latin-1")


def test_a_graph_that_is_not_the_engine_is_not_written(make_mask, tmp_path, monkeypatch):
    """The check sees a graph that learned other weights than the engine's."""
    backbone = lively(TINY_VIT)
    mask, real = make_mask(backbone, 0.5), onnxfile.masked_weights

    def wrong(backbone, mask):
        return {name: values * np.float32(1.001) for name, values in real(backbone, mask).items()}

    monkeypatch.setattr(onnxfile, "masked_weights", wrong)
    with pytest.raises(InvalidArgument, match=r"from the engine's, more than 1e-05.*--format safetensors"):
        export_onnx(backbone, mask, tmp_path / "w.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_in_words(make_mask, tmp_path):
    backbone = lively(TINY_VIT)
    plain, mapped = make_mask(backbone), make_mask(backbone, with_head=True, with_affine="diagonal")
    with pytest.raises(InvalidArgument, match=r"name it \.onnx"):
        export_onnx(backbone, plain, tmp_path / "w.pb")
    with pytest.raises(InvalidMask, match="no head"):
        export_onnx(backbone, plain, tmp_path / "w.onnx", with_head=True)
    with pytest.raises(InvalidArgument, match="--head with --no-map"):
        export_onnx(backbone, mapped, tmp_path / "w.onnx", with_head=True, with_map=False)
    with pytest.raises(WrongBackbone):
        export_onnx(lively(KINDS["resnet"]), plain, tmp_path / "w.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def command(make_mask, tmp_path, monkeypatch, capsys):
    """`command("--out", "w.onnx", without="onnx")`: `smn export` of a mask; its code and what it said."""
    backbone = lively(TINY_VIT)
    torch.save(backbone.model.state_dict(), tmp_path / "w.pth")
    write_mask(make_mask(backbone, with_preprocess=True), tmp_path / "m.smn")
    monkeypatch.chdir(tmp_path)

    def ran(*args, without=""):
        monkeypatch.setattr(onnxfile, "find_spec", lambda name: None if name == without else find_spec(name))
        monkeypatch.setattr(sys, "argv", ["smn", "export", "m.smn", "--weights", "w.pth", *args])
        try:
            smn.main()
        except SystemExit as stopped:
            return stopped.code or 0, capsys.readouterr().err
        raise AssertionError("main() exits")

    return ran


def test_the_command_chooses_by_format_or_suffix_and_says_the_check(command, tmp_path):
    code, said = command("--format", "onnx", "--out", "w.onnx")
    assert code == 0 and "checked with ONNX Runtime, " in said, said
    assert outputs(tmp_path / "w.onnx", torch.randn(2, 3, 16, 16))["embeddings"].shape == (2, 16)
    code, said = command("--format", "onnx", "--out", "w.safetensors")
    assert code == 2 and "name it .onnx" in said
    code, said = command("--format", "tflite", "--out", "w.onnx")
    assert code == 2 and "choose safetensors or onnx" in said


def test_without_the_extra_one_line_names_it(command, tmp_path):
    code, said = command("--out", "w.onnx", without="onnxscript")
    assert code == 2 and said.count("\n") == 1
    assert "needs onnxscript, of the extra onnx: uv pip install -e '.[onnx]'" in said
    assert not (tmp_path / "w.onnx").exists()
    code, said = command("--out", "w.onnx", without="onnxruntime")
    assert code == 0 and "not checked: onnxruntime is not installed" in said
