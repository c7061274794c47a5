"""A run writes what it should, the same again every time, and goes on exactly where it was stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import smn
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidData, InvalidWeights
from smn_core.mask import CodedMask
from smn_core.maskfile import read_mask, with_bits
from tests.training.builders import (
    ARGS,
    REPOSITORY,
    SWAV,
    Stopped,
    World,
    config,
    digits,
    mask_bits,
    plain_lr,
    python,
    run,
)
from tests.training.builders import train_command as command
from training.checkpoints import CHECKPOINT

RECIPE = plain_lr(1, 0, 100, swav=replace(SWAV, queue=32, queue_from=0.25, frozen_steps=2, centre=True))


MOST_BITS_APART = 0.01
"""Of the OFF weights: how far a mask that two processes learn may be from that of one."""


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_one_seed_gives_one_file_and_another_seed_another(name, world: World, tmp_path):
    for out, seed in (("1", 5), ("2", 5), ("3", 6)):
        run(world, tmp_path / f"{out}.smn", RECIPE, name, seed=seed, workers=int(out == "2"))
    one, two, three = ((tmp_path / f"{i}.smn").read_bytes() for i in "123")
    assert one == two
    assert one != three
    assert (tmp_path / "1.run/curve.csv").read_bytes() == (tmp_path / "2.run/curve.csv").read_bytes()


@pytest.mark.parametrize(("name", "step", "workers"), [("test_vit", 3, 0), ("test_resnet", 5, 1)])
def test_a_resumed_run_ends_in_the_file_of_an_uninterrupted_one(
    name, step, workers, world: World, tmp_path, stop_after
):
    """With momentum, queue, prototypes thawing, schedule and statistics in the middle of an epoch."""
    run(world, tmp_path / "whole.smn", RECIPE, name)
    stop_after(step)
    with pytest.raises(Stopped):
        run(world, tmp_path / "part.smn", RECIPE, name, workers=workers)
    assert not (tmp_path / "part.smn").exists()
    stop_after(None)
    run(world, tmp_path / "part.smn", RECIPE, name, workers=workers, resume=True)
    assert (tmp_path / "part.smn").read_bytes() == (tmp_path / "whole.smn").read_bytes()
    assert (tmp_path / "part.run/curve.csv").read_bytes() == (tmp_path / "whole.run/curve.csv").read_bytes()


def test_a_supervised_run_resumes_past_the_end_of_an_epoch(world: World, tmp_path, stop_after):
    recipe = config("supervised", steps=8, batch_size=64, masked_head=True)  # five steps an epoch
    run(world, tmp_path / "whole.smn", recipe)
    stop_after(6)
    with pytest.raises(Stopped):
        run(world, tmp_path / "part.smn", recipe)
    stop_after(None)
    run(world, tmp_path / "part.smn", recipe, resume=True)
    assert (tmp_path / "part.smn").read_bytes() == (tmp_path / "whole.smn").read_bytes()


def test_resuming_a_finished_run_changes_nothing(world: World, tmp_path):
    run(world, tmp_path / "m.smn", RECIPE)
    before = (tmp_path / "m.smn").read_bytes()
    run(world, tmp_path / "m.smn", RECIPE, resume=True)
    assert (tmp_path / "m.smn").read_bytes() == before


def test_a_checkpoint_of_another_recipe_backbone_or_seed_or_a_damaged_one_is_refused(world: World, tmp_path):
    out = tmp_path / "m.smn"
    run(world, out, RECIPE)
    for other in (replace(RECIPE, momentum=0.5), replace(RECIPE, steps=9)):
        with pytest.raises(InvalidWeights, match="another"):
            run(world, out, other, resume=True)
    with pytest.raises(InvalidWeights, match="another fingerprint"):
        run(world, out, RECIPE, "test_resnet", resume=True)
    with pytest.raises(InvalidWeights, match="another seed"):
        run(world, out, RECIPE, resume=True, seed=3)
    with pytest.raises(InvalidWeights, match="another"):
        run(world, out, replace(RECIPE, steps=None, epochs=0.4), resume=True)
    path = tmp_path / "m.run" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidWeights, match="not a checkpoint of smn train"):
        run(world, out, RECIPE, resume=True)


def test_a_finished_run_folder_tells_the_whole_run(world: World, tmp_path):
    words = ["smn", "train", "--data", "a folder"]
    result = run(world, tmp_path / "m.smn", RECIPE, command=words, seed=4)
    folder = tmp_path / "m.run"
    found = {path.name for path in folder.iterdir()}
    assert found == {CHECKPOINT, "backbone.json", "curve.csv", "curve.png", "density.png", "README.md"}
    text = (folder / "README.md").read_text()
    assert "smn train --data 'a folder'" in text
    for fact in (result.mask.digest, "seed: 4", "steps: 8", "skipped images: 0", '"queue": 32'):
        assert fact in text
    rows = (folder / "curve.csv").read_text().splitlines()
    assert rows[0] == "step,loss,lr,density"
    assert len(rows) == 9
    for picture in ("curve.png", "density.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 500


def test_a_mask_says_how_it_was_learned(world: World, tmp_path):
    run(world, tmp_path / "m.smn", RECIPE, seed=4)
    mask = read_mask(tmp_path / "m.smn")
    assert mask.metadata["objective"] == "swav"
    assert mask.metadata["dataset"] == "digits.npz"
    recipe = json.loads(mask.metadata["recipe"])
    assert (recipe["seed"], recipe["total_steps"], recipe["lr"]) == (4, 8, 100)
    assert mask.preprocess["input_size"] == [3, 32, 32]
    assert mask.head is None


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_run_writes_the_codec_that_is_asked_for(name, world: World, tmp_path):
    """Learning leaves theta as it was, so whoever loads the backbone anew decodes what the run coded."""
    run(world, tmp_path / "coded.smn", RECIPE, name, codec="context")
    run(world, tmp_path / "plain.smn", RECIPE, name)
    coded, plain = (read_mask(tmp_path / f"{which}.smn") for which in ("coded", "plain"))
    assert isinstance(coded, CodedMask)
    assert with_bits(coded, world.backbone(name)).packed.tobytes() == plain.packed.tobytes()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_engine_that_serves_embeds_as_the_trainers_model_does(name, world: World, tmp_path, monkeypatch):
    from training import run as module

    kept, plain = [], module.Learner
    monkeypatch.setattr(module, "Learner", lambda *given: kept.append(plain(*given)) or kept[-1])
    mask = run(world, tmp_path / "m.smn", RECIPE, name).mask
    assert mask.density < 0.99
    engine = Engine(world.backbone(name), slots=1)
    engine.prepare(read_mask(tmp_path / "m.smn"))
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    served = engine.embed(x, [Segment(mask.digest, 0, 5)]).embeddings
    with torch.inference_mode():
        trained = kept[0].model.eval()(x)
    assert (served - trained).norm() / trained.norm() < 1e-5


@pytest.mark.parametrize("objective", ["finetune", "swav-finetune"])
def test_fine_tuning_writes_weights_that_timm_loads(objective, world: World, tmp_path):
    recipe = config(objective, lr=0.01, lr_per_tensor=False)
    run(world, tmp_path / "w.safetensors", recipe, "test_resnet")
    weights = load_file(tmp_path / "w.safetensors")
    model = timm.create_model("test_resnet", num_classes=0, **ARGS["test_resnet"])
    model.load_state_dict(weights, strict=True)
    before = load_file(world.folder / "test_resnet.safetensors")
    changed = {
        name for name in before if before[name].is_floating_point() and not torch.equal(weights[name], before[name])
    }
    assert changed == {name for name in before if before[name].is_floating_point()}
    assert not (tmp_path / "w.run/density.png").exists()
    assert (tmp_path / "w.run/README.md").exists()


@pytest.mark.parametrize(("objective", "name"), [("swav", "w.safetensors"), ("finetune", "m.smn")])
def test_the_output_is_named_as_what_it_is(objective, name, world: World, tmp_path):
    with pytest.raises(InvalidArgument, match="writes a"):
        run(world, tmp_path / name, config(objective))


def test_a_corrupt_image_among_many_is_skipped_counted_and_named(world: World, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(digits()["x_train"][:40]):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"no image")
    result = run(world, tmp_path / "m.smn", config(steps=6), data=str(folder), workers=1)
    assert len(result.skipped) == 1
    text = (tmp_path / "m.run/README.md").read_text()
    assert "skipped images: 1" in text
    assert "07.png" in text


def test_images_none_of_which_can_be_read_end_the_run(world: World, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(InvalidData, match="none of the 20 images can be read"):
            run(world, tmp_path / "m.smn", config(), data=str(folder), workers=workers)
    assert not (tmp_path / "m.smn").exists()


def test_few_labels_are_the_only_images_a_supervised_run_sees(world: World, tmp_path, monkeypatch):
    from training import run as module

    sizes, plain = [], module.StepSampler
    monkeypatch.setattr(module, "StepSampler", lambda n, *given: sizes.append(n) or plain(n, *given))
    run(world, tmp_path / "m.smn", config("supervised", steps=2), labels=5)
    run(world, tmp_path / "m.smn", config("supervised", steps=2), labels=0.25)
    assert sizes == [50, 80]


def torchrun(nodes: int, *commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """`smn` in two processes that learn together: both on one node, or one on each of two.

    Two nodes on one machine are two launchers that meet at one address, as on two machines.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    each = ["--nnodes", nodes, "--nproc-per-node", 2 // nodes, "--master-addr", "127.0.0.1", "--master-port", port]
    started = [
        subprocess.Popen(
            python("-m", "torch.distributed.run", *each, "--node-rank", rank, "-m", "smn", *command),
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    said = [process.communicate(timeout=800) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, said, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory) -> tuple[list[object], Path]:
    """Options, and the mask that one process learns with them: queue and prototypes take part."""
    words = ["--seed", 3, "--set", "lr=0.2", "--set", "swav.queue=32", "--set", "swav.queue_from=0.3"]
    out = tmp_path_factory.mktemp("alone") / "one.smn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["smn", *command(world, out, *words)])
        with pytest.raises(SystemExit) as ended:
            smn.main()
    assert not ended.value.code
    return words, out


@pytest.mark.timeout(900)  # several processes import torch, which takes minutes where others hold the cores
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_learn_the_mask_of_one(nodes, alone, world: World, tmp_path):
    """Every process has its rows of each batch, Sinkhorn sees all of them, gradients are averaged.

    The images of a step and their crops are the same, by (seed, step, row). Sums over the batch are made in another
    order, so scores differ in their last digits, and so may a weight whose score ends that near to the threshold.
    """
    words, out = alone
    ran = torchrun(nodes, *([command(world, tmp_path / "two.smn", *words)] * nodes))
    assert [done.returncode for done in ran] == [0] * nodes, ran[0].stderr[-3000:]
    one, two = read_mask(out), read_mask(tmp_path / "two.smn")
    assert one.n_off > 100
    assert (mask_bits(one) != mask_bits(two)).sum() <= MOST_BITS_APART * one.n_off
    assert len((tmp_path / "two.run/curve.csv").read_text().splitlines()) == 9


@pytest.mark.timeout(900)  # several processes import torch, which takes minutes where others hold the cores
def test_nodes_that_see_different_checkpoints_do_not_go_on(world: World, tmp_path, smn_run, stop_after):
    """Without a shared folder one node would begin anew while the other goes on, and both would wait for ever."""
    stop_after(3)
    with pytest.raises(Stopped):
        smn_run(*command(world, tmp_path / "m.smn"))
    (tmp_path / "other").mkdir()
    outs = tmp_path / "m.smn", tmp_path / "other" / "m.smn"
    ran = torchrun(2, *(command(world, out, "--resume") for out in outs))
    assert all(done.returncode != 0 for done in ran)
    for done in ran:
        assert "smn: error: the processes resume from steps [3, 0]: --out must lie in a folder that" in done.stderr
    assert not any(out.exists() for out in outs)
