"""smn train and smn evaluate as a user meets them: one line for what is wrong, nothing half written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smn
from smn_core.maskfile import read_mask
from tests.training.builders import REPOSITORY, World, digits, python
from tests.training.builders import train_command as command
from training import progress, request
from training.recipes import RECIPES, WHEN


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory) -> Path:
    """A mask that `smn train` wrote, with its run."""
    out = tmp_path_factory.mktemp("finished") / "m.smn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smn", *command(world, out)])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
    assert not stopped.value.code
    return out


def copy_of(finished: Path, folder: Path) -> Path:
    shutil.copytree(finished.parent, folder, dirs_exist_ok=True)
    return folder / finished.name


def test_a_trained_mask_is_one_that_evaluate_reads(finished: Path, world: World, smn_run):
    ran = smn_run(
        "evaluate", "--data", world.data, "--mask", finished, *world.flags(), "--json", "--labels", 2, "--seeds", 2
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [row["name"] for row in found["rows"]] == ["frozen", "m"]
    assert found["rows"][1]["digest"] == read_mask(finished).digest
    frozen, mine = (row["signs"] for row in found["rows"])
    assert set(frozen) == {"effective_rank", "view_agreement", "neighbours_kept"}
    assert set(mine) == {*frozen, "loss_before", "loss_after"}
    curve = finished.with_name("m.run").joinpath("curve.csv").read_text().splitlines()
    last = [float(line.split(",")[1]) for line in curve[-5:]]
    assert mine["loss_after"] == pytest.approx(sum(last) / 5)
    assert 0 < found["rows"][1]["knn"] <= 1


def test_evaluate_prints_a_table_and_draws_low_shot(finished: Path, world: World, smn_run, tmp_path):
    plot = tmp_path / "low.png"
    words = ["--mask", finished, *world.flags(), "--probe", "linear", "--labels", 2, "--seeds", 2, "--plot", plot]
    ran = smn_run("evaluate", "--data", world.data, *words)
    assert ran.code == 0, ran.err
    assert "frozen" in ran.out
    assert plot.stat().st_size > 1000


def test_the_run_folder_holds_the_command_that_made_it(finished: Path):
    text = finished.with_name("m.run").joinpath("README.md").read_text()
    assert f"--out {finished}" in text
    assert "smn train --data" in text


def test_a_run_goes_on_from_another_runs_end_with_other_crops(world: World, smn_run, tmp_path):
    """With nothing to learn it writes the mask that it goes on from."""
    first, out = tmp_path / "first.smn", tmp_path / "on.smn"
    still = ["--set", "lr=0", "--set", "head_lr=0", "--set", "swav.crops.big_px=48", "--set", "steps=3"]
    for words in (command(world, first, "--set", "lr=0.1"), command(world, out, "--start", first, *still)):
        ran = smn_run(*words)
        assert ran.code == 0, ran.err
    ours, theirs = read_mask(out), read_mask(first)
    assert theirs.n_off > 0
    assert (ours.packed == theirs.packed).all()
    assert json.loads(ours.metadata["recipe"])["start"] == theirs.digest


def test_a_start_that_cannot_be_gone_on_from_is_refused(finished: Path, world: World, refused, tmp_path):
    alone = tmp_path / "alone.smn"
    shutil.copyfile(finished, alone)
    out = tmp_path / "on.smn"
    assert "there is no checkpoint" in refused(*command(world, out, "--start", alone))
    assert "No such file" in refused(*command(world, out, "--start", tmp_path / "none.smn"))
    assert "learns no mask" in refused(*command(world, out, "--start", finished, "--objective", "swav-finetune"))
    assert "give --out another name" in refused(*command(world, finished, "--start", finished, "--overwrite"))
    wider = ["--set", "swav.prototypes=17"]
    assert "does not fit this recipe" in refused(*command(world, out, "--start", finished, *wider))
    other = command(world, out, "--start", finished, name="test_resnet")
    assert "another backbone" in refused(*other)
    assert not out.exists()


def test_an_empty_folder_is_refused(world: World, tmp_path, refused):
    (tmp_path / "none").mkdir()
    assert "has no image" in refused(*command(world, tmp_path / "m.smn", "--data", tmp_path / "none"))


def test_data_that_is_not_there_is_refused(world: World, tmp_path, refused):
    assert "does not exist" in refused(*command(world, tmp_path / "m.smn", "--data", tmp_path / "none"))


def test_one_class_is_not_enough_for_labels(world: World, tmp_path, refused):
    np.savez(tmp_path / "one.npz", x_train=digits()["x_train"][:40], y_train=np.zeros(40, np.int64))
    said = refused(*command(world, tmp_path / "m.smn", "--data", tmp_path / "one.npz", "--objective", "supervised"))
    assert "at least two classes" in said


def test_labels_are_needed_where_the_objective_wants_them(world: World, tmp_path, refused):
    np.savez(tmp_path / "bare.npz", x_train=digits()["x_train"][:40])
    said = refused(*command(world, tmp_path / "m.smn", "--data", tmp_path / "bare.npz", "--objective", "supervised"))
    assert "needs labels" in said


CANNOT = {
    "fewer images than prototypes": (["--set", "swav.prototypes=1000"], "320 images are fewer than 1000 prototypes"),
    "images that fill no batch": (["--set", "batch_size=500"], "do not fill one batch of 500"),
    "labels without use": (["--labels", 5], "--labels is for objectives with labels"),
    "more labels than there are": (["--objective", "supervised", "--labels", 1000], "--labels 1000"),
    "no labels": (["--objective", "supervised", "--labels", 0], "--labels 0"),
    "a recipe that is none": (["--recipe", "nothing"], "unknown recipe 'nothing'"),
    "an objective that is none": (["--objective", "nothing"], "unknown objective 'nothing'"),
    "a setting that is none": (["--set", "nothing=1"], "no setting 'nothing'"),
    "a setting of another kind": (["--set", "lr=fast"], "'fast' is not a number"),
    "a precision that is none": (["--set", "precision=int4"], "unknown precision 'int4'"),
    "stages that are none": (["--stages", "nowhere"], "takes no maskable tensor"),
    "stages that do not read": (["--stages", "("], "not a regular expression"),
    "a share of nothing": (["--share", 0], "not in (0, 1]"),
    "a density above one": (["--density", 1.5], "not in (0, 1]"),
    "half weights": (["--dtype", "bfloat16"], "training keeps float32 weights"),
    "half weights of a run that is long enough to be timed": (
        ["--dtype", "float16", "--set", "precision=auto", "--set", "steps=500"],
        "--dtype float16: training keeps float32 weights",
    ),
    "a rate that no weight can hold": (["--set", "lr=1e300"], "lr is 1e+300"),
    "a set that is none": (["--data", "torchvision:nothing"], "unknown set torchvision:nothing"),
    "a split that is none": (["--split", "nothing"], "has the splits"),
    "crops that the model does not take": (["--set", "swav.crops.big_px=24"], "test_vit takes no crops of 24 px"),
    "no epochs": (["--epochs", 0], "epochs"),
    "epochs without end": (["--epochs", "inf"], "epochs"),
    "half a step": (["--epochs", 1, "--set", "steps=2.5"], "steps=2.5"),
    "labels that are no number": (["--objective", "supervised", "--labels", "nan"], "--labels nan"),
    "a rate below zero": (["--set", "lr=-1"], "lr is -1"),
    "a rate that is no number": (["--set", "lr=NaN"], "lr is nan"),
    "a momentum that grows": (["--set", "momentum=5"], "momentum 5"),
    "a scale the wrong way round": (["--set", "swav.crops.big_scale=[1,0.5]"], "big_scale is [1, 0.5]"),
    "a scale above the whole": (["--set", "crop_scale=[0.5,2]"], "crop_scale is [0.5, 2]"),
    "a jitter below zero": (["--set", "swav.crops.jitter=-1"], "jitter is -1"),
    "a probability above one": (["--set", "swav.crops.grey=7"], "grey is 7"),
    "crops below none": (["--set", "swav.crops.n_small=-1"], "n_small"),
    "a seed of a thousand bits": (["--set", "mask.seed=99999999999999999999999"], "mask seed"),
    "a device without values": (["--device", "meta"], "device 'meta'"),
    "resume and overwrite": (["--resume", "--overwrite"], "exclude each other"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_work_is_refused_before_the_first_step(what, world: World, tmp_path, refused):
    words, said = CANNOT[what]
    assert said in refused(*command(world, tmp_path / "m.smn", *words))
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_a_folder_that_is_not_there_is_refused(world: World, tmp_path, refused):
    assert "does not exist" in refused(*command(world, tmp_path / "none/m.smn"))


def test_an_earlier_run_is_kept_unless_it_may_be_overwritten(finished: Path, world: World, tmp_path, refused, smn_run):
    out = copy_of(finished, tmp_path)
    before = out.read_bytes()
    assert "--resume" in refused(*command(world, out))
    assert out.read_bytes() == before
    assert smn_run(*command(world, out, "--overwrite", "--seed", 1)).code == 0
    assert read_mask(out).metadata != {}


def test_an_earlier_run_is_dropped_only_once_the_new_one_can_begin(finished: Path, world: World, tmp_path, refused):
    out = copy_of(finished, tmp_path)
    kept = sorted(path.name for path in out.with_name("m.run").iterdir())
    assert "does not exist" in refused(*command(world, out, "--overwrite", "--data", tmp_path / "nowhere"))
    assert "no setting" in refused(*command(world, out, "--overwrite", "--set", "nothing=1"))
    assert sorted(path.name for path in out.with_name("m.run").iterdir()) == kept


def test_a_run_is_not_resumed_on_other_images_or_other_pixels(finished: Path, world: World, tmp_path, refused):
    out = copy_of(finished, tmp_path)
    arrays = dict(np.load(world.data))
    arrays["x_train"] = 255 - arrays["x_train"]  # as many, under the same names
    np.savez(tmp_path / "other.npz", **arrays)
    assert "another images" in refused(*command(world, out, "--resume", "--data", tmp_path / "other.npz"))
    assert "another images" in refused(*command(world, out, "--resume", "--mean", ".1"))


@pytest.mark.parametrize("plot", ["p", "p.foo", "none/p.png"])
def test_a_plot_that_cannot_be_is_refused_before_the_work(plot, finished: Path, world: World, refused, tmp_path):
    words = ["evaluate", "--data", world.data, "--mask", finished, *world.flags(), "--plot", tmp_path / plot]
    assert "cannot plot" in refused(*words, "--labels", 5)


def test_a_plot_of_few_labels_wants_few_labels(finished: Path, world: World, refused, tmp_path):
    words = ["evaluate", "--data", world.data, "--mask", finished, *world.flags(), "--plot", tmp_path / "p.png"]
    assert "--labels" in refused(*words)
    assert "linear probe" in refused(*words, "--labels", 5, "--probe", "knn")


def test_a_run_beside_its_photos_does_not_learn_from_its_own_plots(finished: Path, world: World, tmp_path):
    from smn_core.imageset import open_images

    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a/x.png")
    copy_of(finished, tmp_path)
    assert list((tmp_path / "m.run").glob("*.png"))
    assert list(open_images(tmp_path).names) == ["a/x.png"]


@pytest.mark.parametrize("n_readable", [0, 1])
def test_a_folder_of_which_next_to_nothing_can_be_read_is_refused(n_readable, world: World, tmp_path, refused):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.png").write_bytes(b"no image")
    if n_readable:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "00.png")
    said = refused(*command(world, tmp_path / "m.smn", "--data", folder))
    assert f"{n_readable} of 20 images can be read" in said
    assert "; the first that cannot: " in said
    assert "not an image of a known format" in said


def test_an_export_does_not_write_over_the_backbone_or_under_another_suffix(finished: Path, world: World, refused):
    weights = world.folder / "test_vit.safetensors"
    before = weights.read_bytes()
    assert "backbone itself" in refused("export", finished, *world.flags(), "--out", weights)
    assert ".safetensors" in refused("export", finished, *world.flags(), "--out", weights.with_suffix(".pth"))
    assert weights.read_bytes() == before


def test_a_checkpoint_of_another_run_is_not_resumed(finished: Path, world: World, tmp_path, refused):
    out = copy_of(finished, tmp_path)
    before = out.read_bytes()
    assert "another recipe" in refused(*command(world, out, "--resume", "--set", "momentum=0.5"))
    assert "another fingerprint" in refused(*command(world, out, "--resume", name="test_resnet"))
    path = out.with_name("m.run") / "last.ckpt"
    path.write_bytes(b"damaged")
    assert "is not a checkpoint of smn train" in refused(*command(world, out, "--resume"))
    path.write_bytes(b"")
    said = refused(*command(world, out, "--resume"))
    assert said == f"{path} is not a checkpoint of smn train: it is empty; say --overwrite to begin anew"
    assert out.read_bytes() == before


def test_a_mask_of_another_backbone_is_not_evaluated(finished: Path, world: World, refused):
    assert refused("evaluate", "--data", world.data, "--mask", finished, *world.flags("test_resnet"))


@pytest.mark.parametrize(
    "words", [["--probe", "svm"], ["--labels", 1000], ["--data", "nowhere"], ["--train-split", "none"]]
)
def test_an_evaluation_that_cannot_be_is_refused(words, world: World, refused):
    refused("evaluate", "--data", world.data, *world.flags(), *words)


def test_a_small_folder_is_learned_from_with_sizes_that_fit(world: World, tmp_path, smn_run):
    """38 photos, one of them broken, and one epoch: each setting that was lowered is a line, and a resume agrees."""
    folder, out = tmp_path / "photos", tmp_path / "m.smn"
    folder.mkdir()
    for i, pixels in enumerate(digits()["x_train"][:38]):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"no image")
    words = ["train", "--data", folder, "--out", out, *world.flags(), "--workers", 0, "--threads", 1]
    words += ["--recipe", "tiny", "--epochs", 1, "--set", "swav.prototypes=16", "--set", "lr=0.5"]
    ran = smn_run(*words)
    assert ran.code == 1, ran.err  # it is written, without one image
    assert "1 step in all: head_steps is 0 instead of 10, so that the mask learns too" in ran.err.splitlines()
    assert "warning: 1 image could not be read and was left out:" in ran.err
    assert "07.png" in ran.err
    recipe = json.loads(read_mask(out).metadata["recipe"])
    assert (recipe["batch_size"], recipe["head_steps"], recipe["swav"]["prototypes"]) == (32, 0, 16)
    before = out.read_bytes()
    assert smn_run(*words, "--resume").code == 0
    assert out.read_bytes() == before
    for i in range(29, 38):
        (folder / f"{i}.png").unlink()
    ran = smn_run(*words, "--overwrite")
    assert ran.code == 2
    assert "29 images are too few to learn from" in ran.err


def test_a_mask_that_switches_nothing_off_is_a_warning(world: World, tmp_path, smn_run):
    ran = smn_run(*command(world, tmp_path / "m.smn", "--set", "lr=0"))
    assert ran.code == 0
    assert ran.err.splitlines()[-1].startswith("warning: the mask switches nothing off: it is the untouched backbone.")
    assert "**Warning:** the mask switches nothing off" in (tmp_path / "m.run/README.md").read_text()


def test_evaluate_counts_and_names_what_it_cannot_read_in_every_split(world: World, tmp_path, smn_run):
    found = digits()
    for split in ("train", "test"):
        for i in range(40):
            path = tmp_path / f"set/{split}/{found[f'y_{split}'][i]}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found[f"x_{split}"][i]).save(path)
    broken = [next((tmp_path / "set" / split).rglob("7.png")) for split in ("train", "test")]
    for path in broken:
        path.write_bytes(b"no image")
    ran = smn_run("evaluate", "--data", tmp_path / "set", *world.flags(), "--json", "--no-views", "--probe", "knn")
    assert ran.code == 1, ran.err
    unreadable = json.loads(ran.out)["unreadable"]
    for split, path in zip(("train", "test"), broken, strict=True):
        assert len(unreadable[split]) == 1
        assert str(path) in unreadable[split][0]
        assert f"warning: 1 image of the {split} split could not be read and was left out:" in ran.err
        assert str(path) in ran.err


def test_recipes_are_listed_with_when_to_take_which(smn_run):
    ran = smn_run("recipes")
    assert ran.code == 0
    for name, when in WHEN.items():
        assert name in ran.out
        assert when in ran.out
    rows = json.loads(smn_run("recipes", "--json").out)
    assert [row["name"] for row in rows] == list(RECIPES)
    assert all(f"smn train --recipe {row['name']} " in row["command"] for row in rows)
    assert all(row["when"] and row["what"] for row in rows)


def test_the_first_word_comes_while_the_slow_part_still_runs(capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_WORD_S", 0.01)
    said = threading.Event()
    monkeypatch.setattr(progress, "note", lambda text: (print(text, file=sys.stderr), said.set()))
    with progress.first_word("smn train: reading"):
        assert said.wait(30)
    assert capsys.readouterr().err == "smn train: reading\n"
    said.clear()
    monkeypatch.setattr(progress, "FIRST_WORD_S", 30)
    with progress.first_word("smn train: reading"):
        pass
    assert not said.is_set()


@pytest.mark.parametrize(
    ("words", "variable", "named"),
    [
        (["--backbone", "resnet18"], "test_vit", "the backbone resnet18"),
        ([], "test_vit", "the backbone test_vit"),
        ([], "", "the backbone vit_tiny_patch16_224"),
        (["--start", "early.smn"], "test_vit", "the backbone of early.smn"),
    ],
)
def test_the_first_word_names_the_backbone_that_is_read(words, variable, named, smn_run, monkeypatch):
    """That of a flag, of --start, of the variable, or the default, in this order; and no name is obeyed."""
    said = []
    monkeypatch.setattr(progress, "first_word", lambda text: said.append(text) or nullcontext())
    if variable:
        monkeypatch.setenv("SMN_BACKBONE", variable)
    assert smn_run("train", "--data", "no\x1bwhere", "--out", "/nowhere/m.smn", *words).code == 2
    assert said[0].endswith(named)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_step_names_the_same_command(number, world: World, monkeypatch, smn_run):
    """By ctrl-C and by SIGTERM alike."""
    words = [*command(world, world.data.parent / "my masks/m.smn"), "--overwrite"]
    monkeypatch.setattr(request, "make_request", lambda *_, **__: signal.raise_signal(number))
    monkeypatch.setattr(sys, "argv", ["smn", *map(str, words)])
    done = smn_run(*words)
    assert done.code == 128 + number
    assert done.err.splitlines() == [
        "stopped before the first step. This begins again:",
        shlex.join(["smn", *map(str, words)]),
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("workers", "number", "send"),
    [
        (0, signal.SIGINT, os.killpg),
        (2, signal.SIGINT, os.killpg),
        (1, signal.SIGTERM, os.kill),
        (2, signal.SIGTERM, os.killpg),
    ],
)
def test_a_stop_leaves_a_checkpoint_from_which_the_same_mask_comes(
    workers, number, send, world: World, tmp_path, smn_run
):
    """Ctrl-C reaches all that a process started, SIGTERM the process alone or all. The last line says how to go on."""
    longer = ["--set", "steps=30", "--seed", 2, "--set", "checkpoint_steps=1000", "--workers", workers]
    out, whole = tmp_path / "a part/m.smn", tmp_path / "whole/m.smn"
    out.parent.mkdir()
    whole.parent.mkdir()
    process = subprocess.Popen(
        python("-c", SLOW, *command(world, out, *longer, "--overwrite")),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (out.parent / "m.run/began").exists():
        time.sleep(0.05)
    send(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines[-1] == shlex.join(["smn", *command(world, out, *longer), "--resume"])
    assert lines[-2].startswith("stopped after step ")
    assert "step 0 of 30; a line follows each 10 s at most" in lines
    (out.parent / "m.run/began").unlink()
    assert [p.name for p in out.parent.iterdir()] == ["m.run"]
    assert [p.name for p in (out.parent / "m.run").iterdir()] == ["last.ckpt"]
    assert smn_run(*shlex.split(lines[-1])[1:]).code == 0
    assert smn_run(*command(world, whole, *longer)).code == 0
    assert out.read_bytes() == whole.read_bytes()


SLOW = """
import sys
from pathlib import Path
import smn
from training.learner import Learner
plain = Learner.training_step
def step(self, batch, index):
    if self.global_step == 5:
        out = Path(sys.argv[sys.argv.index("--out") + 1])
        (out.with_name("m.run") / "began").touch()
    if self.global_step >= 5:
        import time; time.sleep(0.1)
    return plain(self, batch, index)
Learner.training_step = step
smn.main()
"""
"""`smn`, with a file that says when the fifth step began and steps that take a while from there on."""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_is_one_line_and_leaves_no_half_mask(small_disk: Path, world: World, smn_run):
    """A checkpoint of this run takes more than the disk has. What a log has of the run comes before that line."""
    ran = smn_run(*command(world, small_disk / "m.smn"))
    assert ran.code == 2
    *before, said = ran.err.splitlines()
    assert said == f"smn: error: {small_disk}/m.run/last.ckpt: No space left on device"
    assert [line for line in before if not line.startswith(("measuring ", "step "))] == []
    assert not (small_disk / "m.smn").exists()
    left = [p for p in small_disk.rglob("*") if p.is_file()]
    assert left == []


def test_a_mask_that_does_not_fit_the_disk_is_not_half_written(
    finished: Path, world: World, tmp_path, refused, monkeypatch
):
    """The checkpoint fitted, the mask does not."""
    from smn_core import files

    out = copy_of(finished, tmp_path)
    before = out.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(files.Path, "write_bytes", full)
    assert "No space left on device" in refused(*command(world, out, "--resume"))
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.run", "m.smn"]
