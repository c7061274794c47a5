"""`smn cascade` on digits: experts go on from the root, a resumed run is the same run, and every bad input is named."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import signatures
import torch

from smn_core.cascade.cascade import fuse_slowly
from smn_core.cascade.file import open_folder
from smn_core.cascade.router import route
from smn_core.engine import Engine, Segment
from smn_core.images import ImageReader
from smn_core.maskfile import read_mask, write_mask
from smn_core.verbs.recorded import run_folder
from tests.conftest import build_affine
from tests.training.builders import N_TEST, N_TRAIN, REPOSITORY, World, config, python, run
from training.checkpoints import CHECKPOINT, read_checkpoint
from training.config import parse_config
from training.data import open_split
from training.starts import read_config


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory) -> Path:
    """A root mask with its run; eight steps, the last checkpoint by the end of the run alone."""
    out = tmp_path_factory.mktemp("root") / "root.smn"
    run(world, out, config(checkpoint_steps=5), "test_resnet")
    return out


def words(world: World, root: Path, out: Path, *more: object) -> list[object]:
    where = ["--data", world.data, "--root", root, "--out", out, *world.flags("test_resnet")]
    small = ["--experts", 2, "--set", "steps=3", "--set", "batch_size=8", "--processes", 1, "--threads", 1]
    return ["cascade", *where, *small, *more]


@pytest.fixture(scope="module")
def made(world: World, root: Path, tmp_path_factory) -> Path:
    """A cascade of two experts."""
    import sys

    import smn

    out = tmp_path_factory.mktemp("made") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smn", *map(str, words(world, root, out))])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
    assert not stopped.value.code
    return out


def test_the_last_checkpoint_is_the_end_of_the_run(root: Path):
    assert read_checkpoint(run_folder(root) / CHECKPOINT)["global_step"] == 8


def test_a_recipe_comes_back_from_its_checkpoint(root: Path):
    assert read_config(root) == config(checkpoint_steps=5)
    assert parse_config({"name": "x", "steps": 3}).steps == 3


def test_the_folder_has_all_that_the_cascade_needs(made: Path, root: Path):
    found = open_folder(made)
    assert [file.name for file in found.files] == ["root.smn", "expert-1.smn", "expert-2.smn"]
    assert found.cascade.root == read_mask(root).digest
    assert found.cascade.modes == ("unconditional", "conditional")
    assert found.cascade.metadata["dataset"] == "digits.npz"
    text = (made / "README.md").read_text()
    assert "Purity over all" in text
    assert "smn cascade --data" in text
    assert (made / "clusters.png").stat().st_size > 1000


def test_every_image_of_the_split_is_in_one_cluster_and_its_expert_saw_no_other(made: Path, world: World):
    found = open_folder(made)
    images = open_split(str(world.data), "train")
    with np.load(next((made / "embeddings").glob("*.npz"))) as kept:
        assert (kept["kept"] == np.arange(len(images.names))).all()
    text = (made / "README.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert sum(int(row[2]) for row in rows) == len(images.names)
    assert all(json.loads(m.metadata["recipe"])["start"] == found.cascade.root for m in found.masks()[1:])


def test_an_expert_goes_on_from_the_root(world: World, root: Path, tmp_path: Path):
    """With nothing to learn at all it is the root, bit for bit and buffer for buffer."""
    still = replace(read_config(root), steps=1, lr=0.0, head_lr=0.0, freeze_norm=True)
    out = tmp_path / "same.smn"
    run(world, out, still, "test_resnet", start=root, only=tuple(range(40)))
    ours, theirs = read_mask(out), read_mask(root)
    assert (ours.packed == theirs.packed).all()
    assert ours.state.keys() == theirs.state.keys()
    assert all((ours.state[name] == values).all() for name, values in theirs.state.items())
    a, b = (read_checkpoint(run_folder(p) / CHECKPOINT)["state_dict"] for p in (out, root))
    assert all(torch.equal(a[name], b[name]) for name in b if not name.startswith("swav.queue"))


def test_training_that_goes_on_from_a_mask_sees_no_map(world: World, root: Path, tmp_path: Path):
    """Training attaches to the model itself: from a root with a map the same bits are learned as without it."""
    mapped = tmp_path / "mapped.smn"
    shutil.copytree(run_folder(root), run_folder(mapped))
    plain = read_mask(root)
    write_mask(replace(plain, affine=build_affine(plain.layout.n_features)), mapped)
    short = replace(read_config(root), steps=3, batch_size=8)
    found = []
    for start in (root, mapped):
        out = tmp_path / f"from-{start.stem}.smn"
        run(world, out, short, "test_resnet", start=start, only=tuple(range(40)))
        found.append(read_mask(out))
    assert (found[0].packed == found[1].packed).all()
    assert all((found[0].state[name] == values).all() for name, values in found[1].state.items())
    assert found[1].affine is None


def test_a_cascade_embeds_offline_as_its_masks_and_its_formulas_say(made: Path, world: World, smn_run, tmp_path):
    found, out = open_folder(made), tmp_path / "z.npy"
    backbone = world.backbone("test_resnet")
    engine, images = Engine(backbone, slots=3), open_split(str(world.data), "test")
    reader = ImageReader(backbone.preprocess)
    x = torch.stack([reader.tensor(images.image(i)) for i in range(len(images.names))])
    parts = []
    for mask in found.masks():
        engine.prepare(mask)
        parts.append(engine.embed(x, [Segment(mask.digest, 0, len(x))]).embeddings.numpy())
    for mode, cut in (("unconditional", []), ("conditional", []), ("conditional", ["--dimensions", 3])):
        ran = smn_run("embed", world.data, "--split", "test", "--out", out, "--cascade", made, "--mode", mode,
                      *world.flags("test_resnet"), *cut)  # fmt: skip
        assert ran.code == 0, ran.err
        z = np.load(out)
        wanted = fuse_slowly(found.cascade, mode, parts, route(found.cascade.router, parts[0]))[:, : z.shape[1]]
        if mode == "unconditional":
            wanted = fuse_slowly(found.cascade, mode, parts)
        assert z.shape[1] == (3 if cut else found.cascade.width(mode, backbone.n_features))
        assert np.linalg.norm(z - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_evaluate_shows_a_cascade_with_its_controls_and_all_bytes(made: Path, world: World, smn_run):
    more = ["--fusion", "pca:4:int8", "--probe", "knn", "--json"]
    ran = smn_run("evaluate", "--data", world.data, "--cascade", made, *world.flags("test_resnet"), *more)
    assert ran.code == 0, ran.err
    rows = {row["name"]: row for row in json.loads(ran.out)["rows"]}
    d = world.backbone("test_resnet").n_features
    assert list(rows) == [
        "frozen",
        "digits: root",
        "digits: root, whitened",
        "digits: concatenated",
        "digits: unconditional as stored (pca)",
        "digits: conditional as stored (pca)",
        f"digits: unconditional pca:{d}:float32",
        f"digits: conditional pca:{d}:float32",
        "digits: unconditional pca:4:int8",
        "digits: conditional pca:4:int8",
    ]
    assert all(0 < row["knn"] <= 1 for row in rows.values())
    files = [(made / f"{name}.smn").stat().st_size for name in ("root", "expert-1", "expert-2")]
    assert rows["digits: root"]["bytes"]["total"] == files[0]
    whole = rows[f"digits: unconditional pca:{d}:float32"]["bytes"]
    assert whole["fusion"] == 4 * (3 * d + d * 3 * d + d)
    assert whole["router"] == 0 < rows[f"digits: conditional pca:{d}:float32"]["bytes"]["router"]
    assert whole["masks"] + whole["state"] == sum(files)
    assert whole["total"] > sum(files) + whole["fusion"]
    assert len(list((made / "embeddings").glob("*.npz"))) == 3 + 3 + 2  # train and test of each mask, and frozen


def test_evaluate_embeds_nothing_twice(made: Path, world: World, smn_run, monkeypatch):
    """What the first evaluation, or the cascade's own making, embedded is not embedded again."""
    more = ["--probe", "knn", *world.flags("test_resnet")]
    first = smn_run("evaluate", "--data", world.data, "--cascade", made, *more)
    monkeypatch.setattr("training.features.embed", lambda *_: pytest.fail("embedded again"))
    assert smn_run("evaluate", "--data", world.data, "--cascade", made, *more).out == first.out


def test_the_fusion_alone_can_be_fitted_anew(made: Path, world: World, root: Path, smn_run, tmp_path):
    out = tmp_path / "digits"
    shutil.copytree(made, out)
    ran = smn_run(*words(world, root, out, "--resume", "--fusion", "low-rank:8:int8:4", "--modes", "unconditional"))
    assert ran.code == 0, ran.err
    again, before = open_folder(out), open_folder(made)
    assert again.cascade.masks == before.cascade.masks
    assert (again.cascade.fusion.kind, again.cascade.modes) == ("low-rank", ("unconditional",))


@pytest.mark.timeout(900)  # two processes import torch anew, which takes minutes where others hold the cores
def test_experts_side_by_side_are_the_same_experts(made: Path, world: World, root: Path, smn_run, tmp_path):
    """In processes of their own, and after one of them and the fusion were lost."""
    out = tmp_path / "digits"
    shutil.copytree(made, out)
    for j in (1, 2):
        (out / f"expert-{j}.smn").unlink()
        shutil.rmtree(out / f"expert-{j}.run")
    ran = smn_run(*words(world, root, out, "--resume", "--processes", 2, "--json"))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["digest"] == open_folder(made).cascade.digest


@pytest.mark.timeout(900)  # as above
def test_ctrl_c_ends_experts_that_train_side_by_side_and_resume_goes_on(world: World, root: Path, smn_run, tmp_path):
    """The terminal sends it to the whole group, as it does here, while both are in the middle of their runs."""
    out, steps = tmp_path / "digits", 200
    more = ["--set", f"steps={steps}", "--set", "checkpoint_steps=25", "--processes", 2]
    process = subprocess.Popen(
        python("-m", "smn", *words(world, root, out, *more)),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoints = [out / f"expert-{j}.run" / CHECKPOINT for j in (1, 2)]
    while process.poll() is None and not all(path.exists() for path in checkpoints):
        time.sleep(0.02)
    children = descendants_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    told, goes_on = err.splitlines()[-2:]
    assert told.startswith("stopped; what is finished is kept") and told.endswith("This goes on:")
    assert goes_on == shlex.join(["smn", *map(str, words(world, root, out, *more)), "--resume"])
    assert len(children) >= 2
    deadline = time.monotonic() + 60  # multiprocessing's tracker of resources ends after its parent
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    done = [read_checkpoint(path)["global_step"] for path in checkpoints]
    assert all(0 < step < steps for step in done), done
    assert sorted(path.name for path in out.iterdir()) == [
        "embeddings", "expert-1.run", "expert-2.run", "plan.json", "root.smn"]  # fmt: skip
    assert [[file.name for file in path.parent.iterdir()] for path in checkpoints] == [[CHECKPOINT]] * 2
    with signatures.unchecked():
        ran = smn_run(*words(world, root, out, *more[:-2], "--processes", 1, "--resume"))
    assert ran.code == 0, ran.err
    for path in checkpoints:
        assert len((path.parent / "curve.csv").read_text().splitlines()) == steps + 1
    assert len(open_folder(out).files) == 3


def descendants_of(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants_of(child)]
    return found


def test_a_root_can_be_whitened_without_experts(world: World, root: Path, smn_run, tmp_path):
    ran = smn_run(*words(world, root, tmp_path / "w"), "--experts", 0)
    assert ran.code == 0, ran.err
    found = open_folder(tmp_path / "w").cascade
    assert (found.experts, found.router, found.modes) == ((), None, ("unconditional",))


def test_the_random_control_keeps_the_router(world: World, root: Path, made: Path, smn_run, tmp_path):
    ran = smn_run(*words(world, root, tmp_path / "r", "--clusters", "random", "--fusion", "concat", "--json"))
    assert ran.code == 0, ran.err
    router, mixture = open_folder(tmp_path / "r").cascade.router, open_folder(made).cascade.router
    assert all((router.tensors()[name] == array).all() for name, array in mixture.tensors().items())


def test_split_means_a_part_of_the_data_and_in_its_old_sense_says_what_it_is_called_now(
    world: World, root: Path, smn_run, tmp_path
):
    """`--split random` is what `--clusters random` is; a name of a split is the part of the data to learn from."""
    told, options = {}, {
        "old": ["--split", "random"],
        "new": ["--clusters", "random"],
        "part": ["--split", "test", "--clusters", "random"],
        "old part": ["--split", "random", "--train-split", "test"],
    }  # fmt: skip
    for name, more in options.items():
        ran = smn_run(*words(world, root, tmp_path / name, *more, "--fusion", "concat", "--json"))
        assert ran.code == 0, ran.err
        told[name] = ran.err.splitlines().count("--split random is now --clusters random"), json.loads(ran.out)
    assert [said for said, _ in told.values()] == [1, 0, 0, 1]
    assert told["old"][1]["digest"] == told["new"][1]["digest"]
    assert told["part"][1]["digest"] == told["old part"][1]["digest"]
    assert sum(told["new"][1]["sizes"]) == N_TRAIN
    assert sum(told["part"][1]["sizes"]) == N_TEST


CANNOT = {
    "more components than images": (["--fusion", "pca:400"], "320 images are too few for a fusion of 400"),
    "more components than features": (["--fusion", "pca:100"], "--fusion pca:100:int8: 100 components of"),
    "clusters smaller than a batch": (["--set", "batch_size=300"], "does not fill a batch of 300"),
    "a fusion that is none": (["--fusion", "magic"], "unknown fusion 'magic'"),
    "a mode that is none": (["--modes", "sideways"], "unknown mode 'sideways'"),
    "a default that is not fitted": (["--modes", "unconditional", "--mode", "conditional"], "is not among --modes"),
    "clusters that are none": (["--clusters", "alphabet"], "unknown clusters 'alphabet'"),
    "a split that is none": (["--split", "alphabet"], "alphabet"),
    "two splits": (["--split", "test", "--train-split", "train"], "mean the same"),
    "a condition without experts": (["--experts", 0, "--modes", "conditional"], "no conditional mode"),
    "a setting that is none": (["--set", "nothing=1"], "no setting 'nothing'"),
    "data that is not there": (["--data", "none.npz"], "none.npz"),
    "other prototypes than the root's": (["--set", "swav.prototypes=4"], "does not fit this recipe"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_work_is_one_line_and_leaves_no_cascade(what, world: World, root: Path, tmp_path, refused):
    more, said = CANNOT[what]
    assert said in refused(*words(world, root, tmp_path / "c", *more)).splitlines()[-1]
    assert not list(tmp_path.rglob("cascade.safetensors"))
    assert not list(tmp_path.rglob("expert-*.smn"))


def test_a_root_without_its_run_is_refused(world: World, root: Path, tmp_path, refused):
    shutil.copy(root, tmp_path / "bare.smn")
    said = refused(*words(world, tmp_path / "bare.smn", tmp_path / "c"))
    assert "there is no checkpoint" in said and "or learn a mask with smn train" in said


def test_of_what_adapt_wrote_the_refusal_names_the_mask_that_can_be_a_root(world: World, root: Path, tmp_path, refused):
    """`smn adapt` keeps the masks of its runs, and the checkpoint of the best one, in FILE.run/."""
    file, folder = tmp_path / "photos.smn", tmp_path / "photos.run"
    for name in ("tiny-1", "tiny-2"):
        shutil.copytree(run_folder(root), folder / f"{name}.run")
        shutil.copy(root, folder / f"{name}.smn")
    shutil.copy(root, file)
    (folder / "tiny-1.run" / CHECKPOINT).unlink()
    said = refused(*words(world, file, tmp_path / "c"))
    assert "smn adapt wrote" in said and f"take the mask of its run, {folder / 'tiny-2.smn'}, or" in said
    assert read_config(folder / "tiny-2.smn") == read_config(root)
    (folder / "tiny-2.run" / CHECKPOINT).unlink()
    assert "kept no run that switches a weight off" in refused(*words(world, file, tmp_path / "c"))


def test_a_root_that_its_run_did_not_end_with_is_refused(world: World, root: Path, tmp_path, refused):
    out = tmp_path / "root.smn"
    run(world, out, config(lr=0.5), "test_resnet")
    shutil.copy(root, out)
    said = refused(*words(world, out, tmp_path / "c"))
    assert "is not the end of the run that wrote" in said


def test_another_plan_is_not_resumed(made: Path, world: World, root: Path, refused):
    assert "begun with another seed" in refused(*words(world, root, made, "--resume", "--seed", 5))
    assert "is not empty: continue it with --resume" in refused(*words(world, root, made))


def test_a_folder_that_lacks_an_expert_is_not_evaluated(made: Path, world: World, tmp_path, refused):
    shutil.copytree(made, tmp_path / "c")
    (tmp_path / "c" / "expert-2.smn").unlink()
    said = refused("evaluate", "--data", world.data, "--cascade", tmp_path / "c", *world.flags("test_resnet"))
    assert f"lacks masks of its cascade: {open_folder(made).cascade.experts[1]}" in said


def test_inspect_shows_a_cascade_and_its_bytes(made: Path, smn_run, refused):
    ran = smn_run("inspect", made, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["digest"] == open_folder(made).cascade.digest
    files = [made / n for n in ("root.smn", "expert-1.smn", "expert-2.smn", "cascade.safetensors")]
    assert found["total_bytes"] == sum(file.stat().st_size for file in files)
    assert "expert 2" in smn_run("inspect", made / "cascade.safetensors").out
    assert "is a cascade" in refused("inspect", made, "--plot", "x.png")


def test_more_dimensions_than_the_fusion_has_are_refused(made: Path, world: World, tmp_path, refused):
    said = refused(
        "embed", world.data, "--split", "test", "--out", tmp_path / "z.npy", "--cascade", made, "--dimensions", 999,
        *world.flags("test_resnet"),
    )  # fmt: skip
    assert "dimensions 999" in said
    assert not list(tmp_path.iterdir())
