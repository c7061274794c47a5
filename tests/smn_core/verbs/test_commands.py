"""inspect, embed and export as a user meets them: results on stdout, one line for an error, nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import load_file

import smn
from smn_core.backbone import load_backbone
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import open_folder, write_cascade
from smn_core.cascade.fusion import Fusion
from smn_core.engine import Engine, Segment
from smn_core.images import ImageReader
from smn_core.maskfile import read_mask, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.vectorfile import read_paths
from tests.conftest import build_affine
from tests.smn_core.builders import TINY_VIT, plain_model, write_images

REPOSITORY = Path(smn.__file__).parents[1]
NAMES = ["b/2.png", "a/10.png", "a/9.png", "b/1.PNG"]
SIZE = ["--image-size", "32"]


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        return self.err.strip().splitlines()


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ran]:
    """`smn.main()` in this process, with these arguments."""

    def ran(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            smn.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return Ran(code, *capsys.readouterr())

    return ran


def refused(ran: Ran) -> str:
    """The one line of an error that the user can mend."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert len(ran.notes) == 1, ran.err
    assert ran.notes[0].startswith("smn: error: ")
    return ran.notes[0].removeprefix("smn: error: ")


def as_it_says(ran: Ran) -> torch.nn.Module:
    """The plain timm model that the note after an export names."""
    assert ran.code == 0, ran.err
    return eval(ran.err[ran.err.index("timm.create_model(") : ran.err.index(" and strict")], {"timm": timm})


def spawn(*args: object, **more) -> subprocess.Popen[str]:
    """`smn` in a process of its own."""
    command = [sys.executable, "-m", "smn", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@dataclass(frozen=True)
class World:
    """A backbone's weights, two masks of it, a mask of another backbone, and a folder of images."""

    weights: Path
    mask: Path
    mask_2: Path
    foreign: Path
    images: Path

    @property
    def model(self) -> list[str]:
        return ["--backbone", "test_resnet", "--weights", str(self.weights), "--device", "cpu", *SIZE]


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_mask) -> World:
    folder = tmp_path_factory.mktemp("world")
    torch.save(plain_model("test_resnet", {}).state_dict(), folder / "w.pth")
    torch.save(plain_model("test_resnet", {}, seed=1).state_dict(), folder / "other.pth")
    files = {}
    for name, weights, seed in (("a", "w.pth", 0), ("b", "w.pth", 1), ("foreign", "other.pth", 2)):
        spec = BackboneSpec("test_resnet", weights=folder / weights, image_size=32, device="cpu")
        mask = make_mask(
            load_backbone(spec),
            0.9,
            seed,
            with_state=True,
            with_head=True,
            with_preprocess=True,
            metadata={"dataset": "x"},
        )
        write_mask(mask, folder / f"{name}.smn")
        files[name] = folder / f"{name}.smn"
    return World(folder / "w.pth", files["a"], files["b"], files["foreign"], write_images(folder / "images", NAMES))


def by_engine(world: World, images: list[Path], mask: Path | None) -> np.ndarray:
    """What embed must write, row by row."""
    backbone = load_backbone(BackboneSpec("test_resnet", weights=world.weights, image_size=32, device="cpu"))
    engine, reader = Engine(backbone), ImageReader(backbone.preprocess)
    digest = None
    if mask is not None:
        task = read_mask(mask)
        engine.prepare(task)
        digest = task.digest
    x = torch.stack([reader(path.read_bytes()) for path in images])
    return engine.embed(x, [Segment(digest, 0, len(x))]).embeddings.numpy()


@pytest.fixture
def out(tmp_path) -> Iterator[Path]:
    """A path for a result; afterwards nothing but results lies beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "x.npy"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# inspect


def test_inspect_says_what_a_mask_is(world, run):
    """The tables show identity, density by stage and tensor, and bytes, without any weights."""
    ran = run("inspect", world.mask)
    assert ran.code == 0
    assert ran.err == ""
    task = read_mask(world.mask)
    for text in (task.digest, "test_resnet", f"{task.density:.6f}", "layer1.0.conv1.weight", "layer4", "3 classes"):
        assert text in ran.out


def test_inspect_as_json_is_one_object(world, run):
    """--json prints every number of the tables as one JSON object."""
    found = json.loads(run("inspect", world.mask, "--json").out)
    task = read_mask(world.mask)
    assert found["digest"] == task.digest
    assert (
        found["off"] == sum(t["off"] for t in found["tensors"]) == sum(s["off"] for s in found["stages"]) == task.n_off
    )
    assert found["sizes"]["file_bytes"] == world.mask.stat().st_size
    assert found["classes"] == ["cat", "dog", "other"]


@pytest.mark.parametrize(
    ("kind", "form", "precision"),
    [("diagonal", "diagonal", "float32"), ("float32", "matrix", "float32"), ("int8", "matrix", "int8")],
)
def test_inspect_shows_the_map(world, run, tmp_path, kind, form, precision):
    """Its form, precision and bytes, in the table and as JSON; nothing is warned of."""
    file, task = tmp_path / "mapped.smn", read_mask(world.mask)
    affine = build_affine(task.layout.n_features, kind=kind)
    write_mask(replace(task, affine=affine), file)
    ran = run("inspect", file)
    assert f"{form}, {precision}, {affine.nbytes:,} bytes" in ran.out
    assert f"map {affine.nbytes:,}" in ran.out
    assert ran.err == ""
    found = json.loads(run("inspect", file, "--json").out)
    assert found["affine"] == {"form": form, "precision": precision, "bytes": affine.nbytes}
    assert found["sizes"]["affine_bytes"] == affine.nbytes
    assert json.loads(run("inspect", world.mask, "--json").out)["affine"] is None


def test_inspect_compares_two_masks(world, run):
    """A second file adds how many weights differ, and which way."""
    found = json.loads(run("inspect", world.mask, world.mask_2, "--json").out)["difference"]
    a, b = read_mask(world.mask), read_mask(world.mask_2)
    assert found["different"] == sum(int((a.bits_of(t.name) != b.bits_of(t.name)).sum()) for t in a.layout)
    assert found["same_backbone"]
    shown = run("inspect", world.mask, world.mask_2).out
    assert f"{found['different']:,} weights differ" in shown
    assert "different weights" in run("inspect", world.mask, world.foreign).out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_inspect_draws_the_densities(world, run, out, suffix):
    """--plot writes a picture in the format of its suffix."""
    picture = out.with_suffix(suffix)
    assert run("inspect", world.mask, "--plot", picture).code == 0
    head = picture.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head


def test_inspect_shows_brackets_as_they_are(world, run, tmp_path, make_mask):
    """Text of a mask file is shown, never taken for markup."""
    file = tmp_path / "x[bold].smn"
    write_mask(replace(read_mask(world.mask), metadata={"dataset": "[red]a[/nothing]"}), file)
    ran = run("inspect", file, file)
    assert ran.code == 0
    assert "[red]a[/nothing]" in ran.out
    assert "x[bold].smn" in ran.out


# repack


@pytest.fixture
def coded(world, run, tmp_path):
    """world.mask under codec context."""
    assert run("repack", world.mask, "--out", tmp_path / "c.smn", "--weights", world.weights).code == 0
    return tmp_path / "c.smn"


def test_repack_there_and_back_gives_the_same_file(world, run, coded, tmp_path):
    """Not a bit changes; what it says is the bytes of both files and the new digest."""
    ran = run("repack", coded, "--codec", "zstd", "--out", tmp_path / "z.smn", "--weights", world.weights, "--json")
    found = json.loads(ran.out)
    assert (tmp_path / "z.smn").read_bytes() == world.mask.read_bytes()
    assert (found["before"], found["after"]) == (coded.stat().st_size, world.mask.stat().st_size)
    assert found["digest"] == read_mask(world.mask).digest and found["codec"] == "zstd"


def test_repack_between_raw_and_zstd_needs_no_weights(world, run, tmp_path):
    for codec, source in (("raw", world.mask), ("zstd", tmp_path / "raw.smn")):
        assert run("repack", source, "--codec", codec, "--out", tmp_path / f"{codec}.smn").code == 0
    assert (tmp_path / "zstd.smn").read_bytes() == world.mask.read_bytes()


def test_repack_takes_a_whole_cascade_there_and_back(world, run, tmp_path):
    """The cascade's file names the new digests; back under zstd, every file is what it was."""
    folder = tmp_path / "cascade"
    folder.mkdir()
    for name, file in (("root", world.mask), ("expert-1", world.mask_2)):
        (folder / f"{name}.smn").write_bytes(file.read_bytes())
    digests = [read_mask(file).digest for file in (world.mask, world.mask_2)]
    fingerprint = read_mask(world.mask).fingerprint
    write_cascade(
        Cascade(fingerprint, digests[0], (digests[1],), Fusion("concat", {}), "unconditional"),
        folder / "cascade.safetensors",
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights = ("--weights", world.weights)
    assert run("repack", folder, "--out", tmp_path / "coded", *weights).code == 0
    coded = open_folder(tmp_path / "coded")
    assert coded.cascade.masks == tuple(mask.digest for mask in coded.masks()) != tuple(digests)
    ran = run("repack", tmp_path / "coded", "--codec", "zstd", "--out", tmp_path / "back", *weights, "--json")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == before
    assert json.loads(ran.out)["after"] == sum(map(len, before.values()))
    assert run("repack", folder, "--out", folder, *weights).code == 2


def test_repack_refuses_an_unknown_codec_and_other_weights(world, run, tmp_path):
    ran = run("repack", world.mask, "--codec", "lzma", "--out", tmp_path / "x.smn")
    assert ran.code == 2 and "smn-mask/1 has raw, zstd, context" in ran.err
    ran = run("repack", world.foreign, "--out", tmp_path / "x.smn", "--weights", world.weights)
    assert ran.code == 2 and "fingerprint" in ran.err
    assert not (tmp_path / "x.smn").exists()


@pytest.fixture
def child(world, run, tmp_path):
    """world.mask_2 against world.mask, whose file is elsewhere."""
    (tmp_path / "children").mkdir()
    file = tmp_path / "children" / "child.smn"
    ran = run("repack", world.mask_2, "--parent", world.mask, "--out", file, "--weights", world.weights)
    assert ran.code == 0, ran.err
    return file


def test_repack_against_a_parent_and_back_gives_the_same_file(world, run, child, tmp_path):
    """With the parent named, or beside the file."""
    assert read_mask(child).parent == read_mask(world.mask).digest
    back = ("repack", child, "--codec", "zstd", "--weights", world.weights)
    assert run(*back, "--out", tmp_path / "named.smn", "--parent", world.mask).code == 0
    (child.parent / "root.smn").write_bytes(world.mask.read_bytes())
    assert run(*back, "--out", tmp_path / "beside.smn").code == 0
    for name in ("named", "beside"):
        assert (tmp_path / f"{name}.smn").read_bytes() == world.mask_2.read_bytes()


def test_a_child_is_shown_embedded_and_exported_with_its_parent(world, run, child, out):
    shared = ("--weights", world.weights, "--image-size", "32")
    ran = run("embed", world.images, "--mask", child, "--out", out, *shared)
    assert ran.code == 2 and "is not there" in ran.err and "--parent" in ran.err
    assert run("inspect", child).code == 0
    found = json.loads(run("inspect", child, "--parent", world.mask, "--json", "--weights", world.weights).out)
    assert found["off"] == read_mask(world.mask_2).n_off and found["parent"] == read_mask(world.mask).digest
    parent = ("--parent", world.mask)
    assert run("embed", world.images, "--mask", child, "--out", out, *shared, *parent).code == 0
    coded = np.load(out)
    assert run("embed", world.images, "--mask", world.mask_2, "--out", out, *shared).code == 0
    assert_array_equal(np.load(out), coded)
    file = out.with_suffix(".safetensors")
    assert run("export", child, "--out", file, "--weights", world.weights, *parent).code == 0


def test_repack_codes_a_cascade_against_its_root(world, run, tmp_path):
    folder = tmp_path / "cascade"
    folder.mkdir()
    for name, file in (("root", world.mask), ("expert-1", world.mask_2)):
        (folder / f"{name}.smn").write_bytes(file.read_bytes())
    first, second = (read_mask(file) for file in (world.mask, world.mask_2))
    write_cascade(
        Cascade(first.fingerprint, first.digest, (second.digest,), Fusion("concat", {}), "unconditional"),
        folder / "cascade.safetensors",
    )
    ran = run("repack", folder, "--parent", folder / "root.smn", "--out", tmp_path / "out", "--weights", world.weights)
    assert ran.code == 0, ran.err
    root, expert = open_folder(tmp_path / "out").masks()
    assert root.parent is None and expert.parent == root.digest
    ran = run("repack", folder, "--parent", world.mask, "--out", tmp_path / "x", "--weights", world.weights)
    assert ran.code == 2 and "no mask of the cascade" in ran.err


def test_rounded_statistics_are_another_mask_and_repack_says_so(world, run, tmp_path):
    out = tmp_path / "rounded.smn"
    ran = run("repack", world.mask, "--state", "float16", "--out", out, "--weights", world.weights)
    assert ran.code == 0 and "another mask in another space" in ran.err
    found, mask = read_mask(out), read_mask(world.mask)
    for name, values in mask.state.items():
        assert not (found.state[name].view(np.uint32) & 0x1FFF).any()
        assert (np.abs(found.state[name] - values) <= 2**-11 * np.abs(values)).all()
    assert (out.stat().st_size, found.digest) != (world.mask.stat().st_size, mask.digest)
    assert run("repack", world.mask, "--state", "int8", "--out", tmp_path / "x.smn").code == 2


def test_inspect_compares_codes_and_contexts(world, run):
    found = json.loads(run("inspect", world.mask, "--codings", "--json", "--weights", world.weights).out)["codings"]
    assert set(found["coded"]) == {"raw", "zstd", "context", "lzma"}
    assert set(found["entropy"]) == {"tensor", "row", "column", "sign", "size", "above row and column"}
    for context, n in found["entropy"].items():
        assert n <= found["entropy"]["tensor"] * (1 + 1e-9)
        assert n == pytest.approx(sum(stage["entropy"][context] for stage in found["stages"]))
    without = json.loads(run("inspect", world.mask, "--codings", "--json").out)["codings"]
    assert set(without["entropy"]) == {"tensor", "row", "column"} and "context" not in without["coded"]
    assert run("inspect", world.mask, "--codings").code == 0


def test_inspect_shows_the_bits_of_a_context_mask_where_it_has_the_weights(world, run, coded):
    """Without them: everything but what is counted among the bits."""
    task = read_mask(world.mask)
    ran = run("inspect", coded)
    assert ran.code == 0 and "in the coded bits" in ran.out and "density by" not in ran.out
    found = json.loads(run("inspect", coded, "--json").out)
    assert found["density"] is found["tensors"] is found["stages"] is None
    assert found["sizes"]["codec"] == "context" and found["classes"] == ["cat", "dog", "other"]
    found = json.loads(run("inspect", coded, world.mask, "--json", "--weights", world.weights).out)
    assert found["off"] == task.n_off and found["difference"]["different"] == 0


def test_a_context_mask_embeds_and_exports_as_the_mask_that_it_was(world, run, coded, out):
    """Its weights are those that the verb has anyway."""
    shared = ("--weights", world.weights, "--image-size", "32")
    assert run("embed", world.images, "--mask", coded, "--out", out, *shared).code == 0
    found = np.load(out)
    assert run("embed", world.images, "--mask", world.mask, "--out", out, *shared).code == 0
    assert_array_equal(np.load(out), found)
    made = []
    for file in (coded, world.mask):
        assert run("export", file, "--out", out.with_suffix(".safetensors"), "--weights", world.weights).code == 0
        made.append(load_file(out.with_suffix(".safetensors")))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])


# embed


@pytest.mark.parametrize("masked", [True, False])
def test_embed_writes_a_row_an_image_in_sorted_order(world, run, out, masked):
    """X.npy has the engine's embedding of every image of X.txt, in the order of sorted relative paths."""
    mask = ["--mask", world.mask] if masked else []
    ran = run("embed", world.images, "--out", out, "--batch-size", 3, *mask, *world.model)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert out.with_suffix(".txt").read_text().splitlines() == sorted(NAMES)
    found = np.load(out)
    assert found.dtype == np.float32
    expected = by_engine(world, [world.images / name for name in sorted(NAMES)], world.mask if masked else None)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_embed_writes_mapped_embeddings(world, run, out, tmp_path):
    """Rows through a mask with a map are the unmapped rows through the map."""
    task, mapped = read_mask(world.mask), tmp_path / "mapped.smn"
    affine = build_affine(task.layout.n_features)
    write_mask(replace(task, affine=affine), mapped)
    assert run("embed", world.images, "--out", out, "--mask", mapped, *world.model).code == 0
    bare = by_engine(world, [world.images / name for name in sorted(NAMES)], world.mask)
    assert np.allclose(np.load(out), affine.apply_slowly(bare), rtol=1e-4, atol=1e-4)


def test_embed_takes_the_backbone_of_the_mask(world, run, out):
    """Without --backbone and sizes the model, its image size and its pixels are the mask's."""
    ran = run("embed", world.images, "--out", out, "--mask", world.mask, "--weights", world.weights, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "warning" not in ran.err
    expected = by_engine(world, [world.images / name for name in sorted(NAMES)], world.mask)
    assert np.allclose(np.load(out), expected, rtol=1e-4, atol=1e-5)


def test_embed_takes_a_split_of_arrays(world, run, out, tmp_path):
    """An .npz is embedded in its own order, without a list of paths; its split must be chosen."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_train=pixels[:1], y_train=np.zeros(1, int), x_test=pixels, y_test=np.zeros(3, int))
    assert "--split" in refused(run("embed", tmp_path / "set.npz", "--out", out, *world.model))
    assert run("embed", tmp_path / "set.npz", "--split", "test", "--out", out, *world.model).code == 0
    assert np.load(out).shape == (3, 96)
    assert not out.with_suffix(".txt").exists()


def test_embed_takes_a_split_of_a_folder(world, run, out):
    """--split names a subfolder."""
    assert run("embed", world.images, "--split", "a", "--out", out, *world.model).code == 0
    assert out.with_suffix(".txt").read_text().splitlines() == ["10.png", "9.png"]


def test_embed_lists_names_that_are_not_utf_8(world, run, out, tmp_path):
    """A file whose name is not UTF-8 is embedded, and listed with its bytes as escapes."""
    write_images(tmp_path / "images", ["a.png"])
    Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/\xff.png")).write_bytes(
        (tmp_path / "images" / "a.png").read_bytes()
    )
    ran = run("embed", tmp_path / "images", "--out", out, *world.model)
    assert ran.code == 0
    assert out.with_suffix(".txt").read_bytes() == b"a.png\n\\xff.png\n"


def test_every_row_has_its_line_whatever_the_name(world, run, out, tmp_path):
    """Line i of X.txt is the path of row i as UTF-8, and gives the name back, also if it breaks lines."""
    names = ["a.png", "b\\n.png", "b\n.png", "c\r\x85\u2028.png", "d\udcff.png"]
    write_images(tmp_path / "images", names)
    assert run("embed", tmp_path / "images", "--out", out, *world.model).code == 0
    listed = out.with_suffix(".txt")
    assert len(listed.read_text("utf-8").splitlines()) == len(np.load(out)) == 5
    assert read_paths(listed) == sorted(names)


def test_embed_takes_images_of_the_size_the_model_was_built_for(run, out, world, tmp_path):
    """--model-arg img_size makes a model and images that fit each other."""
    name, _, args = TINY_VIT
    torch.save(plain_model(name, args).state_dict(), tmp_path / "vit.pth")
    said = [part for key, value in args.items() for part in ("--model-arg", f"{key}={value}")]
    model = ["--backbone", name, "--weights", tmp_path / "vit.pth", "--device", "cpu"]
    assert run("embed", world.images, "--out", out, *model, *said).code == 0
    assert np.load(out).shape == (4, 16)


# export


def test_exported_weights_load_into_plain_timm(world, run, out):
    """The exported file loads with strict=True and embeds as the engine does through the mask."""
    file = out.with_suffix(".safetensors")
    ran = run("export", world.mask, "--out", file, *world.model)
    assert ran.code == 0, ran.err
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict(load_file(file), strict=True)
    paths = [world.images / name for name in NAMES]
    backbone = load_backbone(BackboneSpec("test_resnet", weights=world.weights, image_size=32, device="cpu"))
    with torch.inference_mode():
        found = model(torch.stack([ImageReader(backbone.preprocess)(p.read_bytes()) for p in paths])).numpy()
    assert np.allclose(found, by_engine(world, paths, world.mask), rtol=1e-4, atol=1e-5)


def test_an_exported_head_classifies_in_plain_timm(world, run, out):
    """With --head the file fits a timm model with classes, whose logits are the mask's head of its embeddings."""
    file = out.with_suffix(".safetensors")
    ran = run("export", world.mask, "--head", "--out", file, *world.model)
    assert "num_classes=3" in ran.err
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.load_state_dict(load_file(file), strict=True)
    x, head = torch.randn(2, 3, 32, 32), read_mask(world.mask).head
    with torch.inference_mode():
        logits, rows = model(x).numpy(), model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    assert np.allclose(logits, rows @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["diagonal", "float32", "float16", "int8"])
def test_an_exported_map_is_timms_classifier(world, run, out, tmp_path, kind):
    """The file fits a timm model of D classes, as the note says, and its logits are what the engine serves."""
    mapped, file = tmp_path / "mapped.smn", out.with_suffix(".safetensors")
    task = read_mask(world.mask)
    write_mask(replace(task, affine=build_affine(task.layout.n_features, kind=kind)), mapped)
    ran = run("export", mapped, "--out", file, *world.model)
    assert ran.code == 0, ran.err
    model = as_it_says(ran).eval()
    model.load_state_dict(load_file(file), strict=True)
    paths = [world.images / name for name in NAMES]
    backbone = load_backbone(BackboneSpec("test_resnet", weights=world.weights, image_size=32, device="cpu"))
    with torch.inference_mode():
        found = model(torch.stack([ImageReader(backbone.preprocess)(p.read_bytes()) for p in paths])).numpy()
    assert "num_classes=96" in ran.err
    served = by_engine(world, paths, mapped)
    assert np.linalg.norm(found - served) < 1e-5 * np.linalg.norm(served)


def test_an_exported_head_acts_on_mapped_embeddings(world, run, out, tmp_path):
    """With --head, map and head are one classifier."""
    mapped, file = tmp_path / "mapped.smn", out.with_suffix(".safetensors")
    task = read_mask(world.mask)
    write_mask(replace(task, affine=build_affine(task.layout.n_features)), mapped)
    model = as_it_says(run("export", mapped, "--head", "--out", file, *world.model)).eval()
    model.load_state_dict(load_file(file), strict=True)
    paths = [world.images / name for name in NAMES]
    backbone = load_backbone(BackboneSpec("test_resnet", weights=world.weights, image_size=32, device="cpu"))
    with torch.inference_mode():
        logits = model(torch.stack([ImageReader(backbone.preprocess)(p.read_bytes()) for p in paths])).numpy()
    expected = by_engine(world, paths, mapped) @ task.head.weight.T + task.head.bias
    assert np.linalg.norm(logits - expected) < 1e-5 * np.linalg.norm(expected)


def test_export_leaves_the_map_out_on_request(world, run, out, tmp_path):
    """--no-map writes what a mask of the same bits without a map gives; a head needs the map."""
    mapped, file = tmp_path / "mapped.smn", out.with_suffix(".safetensors")
    task = read_mask(world.mask)
    write_mask(replace(task, affine=build_affine(task.layout.n_features)), mapped)
    ran = run("export", mapped, "--no-map", "--out", file, *world.model)
    assert "num_classes=0" in ran.err
    plain = out.with_name("plain.safetensors")
    assert run("export", world.mask, "--out", plain, *world.model).code == 0
    found, expected = load_file(file), load_file(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "--no-map" in refused(run("export", mapped, "--no-map", "--head", "--out", file, *world.model))


def test_export_is_in_float32_whatever_the_type(world, run, out):
    """--dtype is of a forward, and export has none: the weights are the same."""
    files = [out.with_name(f"{dtype}.safetensors") for dtype in ("float32", "bfloat16")]
    for file in files:
        ran = run("export", world.mask, "--out", file, "--dtype", file.stem, *world.model)
        assert ran.code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_exported_weights_of_a_resampled_vit_load_as_it_says(run, out, tmp_path, make_mask):
    """The note after an export names every argument that the file needs to load strictly."""
    torch.save(plain_model("test_vit", {}).state_dict(), tmp_path / "vit.pth")
    spec = BackboneSpec("test_vit", weights=tmp_path / "vit.pth", image_size=64, device="cpu")
    write_mask(make_mask(load_backbone(spec), with_preprocess=True), tmp_path / "m.smn")
    file = out.with_suffix(".safetensors")
    ran = run("export", tmp_path / "m.smn", "--out", file, "--weights", tmp_path / "vit.pth")
    assert ran.code == 0
    model = as_it_says(ran)
    model.load_state_dict(load_file(file), strict=True)


# Errors


def errors(world: World, tmp: Path, out: Path) -> dict[str, tuple[list[object], str]]:
    """Arguments that cannot work, and what the line must say."""
    (tmp / "text.smn").write_text("this is no mask")
    (tmp / "empty").mkdir()
    torch.save(plain_model("test_vit", {}).state_dict(), tmp / "vit.pth")
    weights = torch.load(world.weights)
    weights["bn1.weight"][0] = float("nan")
    torch.save(weights, tmp / "nan.pth")
    write_images(tmp / "damaged", ["a.png", "b.png"])
    (tmp / "damaged" / "b.png").write_bytes((tmp / "damaged" / "b.png").read_bytes()[:300])
    embed = ["embed", world.images, "--out", out]
    return {
        "not a mask": (["inspect", tmp / "text.smn"], "text.smn"),
        "missing mask": (["inspect", tmp / "nowhere.smn"], "nowhere.smn"),
        "a folder as mask": (["inspect", tmp], str(tmp)),
        "missing second mask": (["inspect", world.mask, tmp / "nowhere.smn"], "nowhere.smn"),
        "unknown picture": (["inspect", world.mask, "--plot", out.with_suffix(".xyz")], ".png"),
        "picture without suffix": (["inspect", world.mask, "--plot", out.with_suffix("")], ".png"),
        "mask of another backbone": ([*embed, "--mask", world.foreign, *world.model], "fingerprint"),
        "other mean": ([*embed, "--mask", world.mask, "--mean", "0.1", *world.model], "mean"),
        "empty folder": (["embed", tmp / "empty", "--out", out, *world.model], "no image"),
        "missing folder": (["embed", tmp / "nowhere", "--out", out, *world.model], "nowhere"),
        "damaged image": (["embed", tmp / "damaged", "--strict", "--out", out, *world.model], "b.png"),
        "unknown split": ([*embed, "--split", "nope", *world.model], "nope"),
        "unknown backbone": ([*embed, "--backbone", "resnet_50"], "resnet50"),
        "weights of another": ([*embed, *world.model, "--weights", tmp / "vit.pth"], "vit.pth"),
        "missing weights": ([*embed, *world.model, "--weights", tmp / "nowhere.pth"], "nowhere.pth"),
        "text as weights": ([*embed, *world.model, "--weights", tmp / "text.smn"], "text.smn"),
        "a weight that is NaN": ([*embed, *world.model, "--weights", tmp / "nan.pth"], "bn1.weight has a value"),
        "missing folder for out": (["embed", world.images, "--out", tmp / "no" / "x.npy", *world.model], "No such"),
        "out is a folder": (["embed", world.images, "--out", folder_named(tmp / "f.npy"), *world.model], "folder"),
        "out is not .npy": (["embed", world.images, "--out", out.with_suffix(".csv"), *world.model], ".npy"),
        "argument without value": ([*embed, *world.model, "--model-arg", "depth"], "KEY=VALUE"),
        "mean in words": ([*embed, *world.model, "--mean", "grey"], "--mean"),
        "size beyond the model": ([*embed, *world.model, "--image-size", "-1"], "--image-size"),
        "export of another backbone": (
            ["export", world.foreign, "--out", out.with_suffix(".safetensors"), *world.model],
            "fingerprint",
        ),
        "export to nowhere": (["export", world.mask, "--out", tmp / "no" / "w.safetensors", *world.model], "No such"),
    }  # fmt: skip


def folder_named(path: Path) -> Path:
    path.mkdir()
    return path


CASES = [
    "not a mask", "missing mask", "a folder as mask", "missing second mask", "unknown picture",
    "picture without suffix", "mask of another backbone", "other mean", "empty folder", "missing folder",
    "damaged image", "unknown split", "unknown backbone", "weights of another", "missing weights", "text as weights",
    "a weight that is NaN", "missing folder for out",
    "out is a folder", "out is not .npy", "argument without value", "mean in words",
    "size beyond the model", "export of another backbone", "export to nowhere",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_can_mend_is_one_line_and_leaves_nothing(case, world, run, out, tmp_path):
    """Bad input ends with code 2 and one line that names the cause; nothing is written, not even half."""
    args, named = errors(world, tmp_path, out)[case]
    assert named in refused(run(*args))
    assert list(out.parent.iterdir()) == []


def test_every_error_has_its_test(world, out, tmp_path):
    """The list of cases is the table's."""
    assert list(errors(world, tmp_path, out)) == CASES


def test_a_result_survives_a_later_failure(world, run, out, tmp_path):
    """A run that fails leaves the last run's file as it was."""
    assert run("embed", world.images, "--out", out, *world.model).code == 0
    before = out.read_bytes(), out.with_suffix(".txt").read_bytes()
    write_images(tmp_path / "damaged", ["a.png", "b.png"])
    (tmp_path / "damaged" / "b.png").write_bytes(b"not an image")
    assert run("embed", tmp_path / "damaged", "--strict", "--out", out, *world.model).code == 2
    assert (out.read_bytes(), out.with_suffix(".txt").read_bytes()) == before


def test_an_unreadable_image_among_others_is_named_and_has_no_row(world, run, out, tmp_path):
    """The others' rows are those of a folder without it; the exit code says that something is missing."""
    write_images(tmp_path / "damaged", ["a.png", "b.png", "c.png"])
    whole = tmp_path / "whole.npy"
    assert run("embed", tmp_path / "damaged", "--out", whole, *world.model).code == 0
    (tmp_path / "damaged" / "b.png").write_bytes(b"not an image")
    ran = run("embed", tmp_path / "damaged", "--out", out, *world.model)
    assert ran.code == 1
    assert "1 image could not be read" in ran.err and "b.png" in ran.err
    assert "2 embeddings" in ran.err
    assert out.with_suffix(".txt").read_text() == "a.png\nc.png\n"
    np.testing.assert_allclose(np.load(out), np.load(whole)[[0, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "args",
    [
        ["embed"],
        ["no-such-verb"],
        ["inspect", "a", "--no-such-flag"],
        ["embed", "x", "--out", "x.npy", "--batch-size", "0"],
    ],
)
def test_a_wrong_call_is_code_2(run, args):
    """A missing argument, an unknown verb or flag and a value out of range end with code 2."""
    ran = run(*args)
    assert ran.code == 2
    assert "Traceback" not in ran.err


# Processes


def test_a_process_that_was_given_a_bad_file_ends_with_code_2(tmp_path):
    """A real process says the same: code 2, nothing on stdout, one line on stderr."""
    process = spawn("inspect", tmp_path / "nowhere.smn")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("smn: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_with_the_shells_code_for_it_and_leaves_nothing(number, world, out, tmp_path):
    """By ctrl-C 130, by SIGTERM 143; no traceback, and no partial file of many gigabytes under a hidden name."""
    folder = write_images(tmp_path / "many", ["0.png"])
    for i in range(1, 20_000):
        (folder / f"{i}.png").hardlink_to(folder / "0.png")
    process = spawn("embed", folder, "--out", out, *world.model)
    try:
        until = time.monotonic() + 100
        while not any(out.parent.iterdir()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in said[1]
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_weights_that_do_not_fit_on_the_disk_are_one_line(world, run, tiny_disk):
    """An export to a full disk ends with code 2 and leaves nothing."""
    message = refused(run("export", world.mask, "--out", tiny_disk / "w.safetensors", *world.model))
    assert "No space left" in message
    assert list(tiny_disk.iterdir()) == []


def test_embeddings_that_do_not_fit_on_the_disk_are_one_line(world, tmp_path, tiny_disk):
    """A disk that fills up in the middle of an embed ends it with code 2 and leaves nothing; no signal kills it."""
    folder = write_images(tmp_path / "many", ["0.png"])
    for i in range(1, 400):
        (folder / f"{i}.png").hardlink_to(folder / "0.png")
    process = spawn("embed", folder, "--out", tiny_disk / "x.npy", *world.model)
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 2, said
    assert "No space left" in said[-1]
    assert len(said) == 1
    assert list(tiny_disk.iterdir()) == []
