"""Steps of learning: what moves, how fast, in what precision; eight of them as they always were."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from smn_core.errors import InvalidArgument
from smn_core.maskfile import read_mask
from tests.training.builders import REPOSITORY, SWAV, Stopped, World, config, mask_bits, plain_lr, run
from training import export
from training.learner import Learner, accept_any_size, warmup_cosine
from training.masking import list_scores

GOLDEN = REPOSITORY / "tests/golden"
CURVES = {"vit": ("test_vit", plain_lr(1, 0, 100)), "resnet": ("test_resnet", plain_lr(1, 0, 100))}


def losses(folder) -> list[float]:
    rows = (folder / "curve.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[1]) for row in rows]


@pytest.mark.parametrize("key", CURVES)
def test_eight_seeded_steps_go_as_they_always_went(key, world: World, tmp_path):
    """Processors and torch versions differ in the last digits, so a few of the bits may, too.

    `tests/training/golden.py` wrote the files; write them again only when a change of the method is meant.
    """
    name, recipe = CURVES[key]
    mask = run(world, tmp_path / "m.smn", recipe, name).mask
    golden = json.loads((GOLDEN / "curve.json").read_text())[key]
    assert losses(tmp_path / "m.run") == pytest.approx(golden, rel=5e-3)
    packed = np.load(GOLDEN / "curve.npz")[key]
    different = mask_bits(mask) != np.unpackbits(packed, bitorder="little").astype(bool)
    assert different.mean() < 0.005


def test_schedule_is_a_cosine_to_zero_after_a_warm_up_that_never_starts_at_zero():
    factors = [warmup_cosine(step, 20, 4) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_a_vit_of_one_size_embeds_crops_of_another_and_its_own_bit_for_bit(make_backbone):
    plain, learner = make_backbone("test_vit").model, make_backbone("test_vit").model
    accept_any_size(learner)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(plain(x), learner(x))
        assert learner(x[..., :64, :64]).shape == (2, plain.num_features)


def test_only_the_head_moves_during_head_steps(world: World, tmp_path, stop_after):
    """Of five steps four are the head's: at this rate the fifth would switch weights off."""
    recipe = plain_lr(1, 0, 1e4, steps=5, head_steps=4)
    stop_after(4)
    with pytest.raises(Stopped):
        run(world, tmp_path / "m.smn", recipe)
    weights = torch.load(tmp_path / "m.run/last.ckpt", weights_only=True)["state_dict"]
    assert all((value == 1).all() for name, value in weights.items() if name.endswith(".scores"))
    stop_after(None)
    assert run(world, tmp_path / "m.smn", recipe, resume=True).mask.density < 1


def test_a_run_whose_steps_are_all_the_heads_is_refused(world: World, tmp_path):
    with pytest.raises(InvalidArgument, match="all 4 steps are for the head alone"):
        run(world, tmp_path / "m.smn", plain_lr(1, 0, 1e4, steps=4, head_steps=4))


def test_a_learning_rate_per_tensor_gives_every_tensor_first_steps_of_one_size(world: World, tmp_path):
    learner = Learner(world.backbone(), config(lr_per_tensor=True), 8)
    optimizer = learner.configure_optimizers()["optimizer"]
    generator = torch.Generator().manual_seed(0)
    for scale, parameter in enumerate(learner.learned(), 1):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0**-scale
    learner.on_before_optimizer_step(optimizer)
    for parameter in learner.learned():
        assert parameter.grad.square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)
    first = learner.gradient_scales.clone()
    for parameter in learner.learned():
        parameter.grad = torch.ones_like(parameter)
    learner.on_before_optimizer_step(optimizer)
    assert torch.equal(learner.gradient_scales, first)


def test_bfloat16_steps_give_a_mask_near_that_of_float32(world: World, tmp_path):
    recipe = plain_lr(1, 0, 100, swav=replace(SWAV, centre=True))
    exact = run(world, tmp_path / "1.smn", recipe).mask
    mixed = run(world, tmp_path / "2.smn", replace(recipe, precision="bf16-mixed")).mask
    assert mixed.n_off > 0
    assert (mask_bits(exact) != mask_bits(mixed)).mean() < 0.2
    assert losses(tmp_path / "2.run") == pytest.approx(losses(tmp_path / "1.run"), rel=0.05)


def test_batch_statistics_move_unless_they_are_frozen(world: World, tmp_path):
    moved = run(world, tmp_path / "1.smn", config(steps=2), "test_resnet").mask
    frozen = run(world, tmp_path / "2.smn", config(steps=2, freeze_norm=True), "test_resnet").mask
    assert set(moved.state) == set(moved.layout.buffers)
    assert frozen.state == {}
    assert read_mask(tmp_path / "1.smn").state.keys() == moved.state.keys()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_norms_that_several_gpus_share_compute_what_they_did_and_can_be_masked(name, make_backbone):
    """torch's own conversion drops the activations inside timm's norms, and fails on norms that are masked."""
    plain, backbone = make_backbone(name), make_backbone(name)
    learner = Learner(backbone, config(), 8, world_size=2, sync_norm=True)
    norms = [m for m in learner.model.modules() if "running_mean" in m._buffers]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert {name for name, _ in list_scores(learner.model)} == {tensor.name for tensor in plain.layout}
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(learner.model.eval()(x), plain.model(x))
    assert export.make_mask(backbone, learner.model, export.copy_statistics(plain), {}).state == {}


def test_losses_start_near_what_chance_gives(world: World, tmp_path):
    run(world, tmp_path / "m.smn", config("supervised", steps=1))
    assert losses(tmp_path / "m.run")[0] == pytest.approx(math.log(10), rel=0.2)
