"""A run that an earlier version began is resumed by this one, exactly.

`tests/golden/run` was written by commit 4ead63f: a plan, the checkpoint of a SwAV run that stopped after four of eight
steps, and the curve and the mask of the same run without a stop. It is never written again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from smn_core.backbone import load_backbone
from smn_core.errors import InvalidWeights
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from tests.training.builders import CROPS, REPOSITORY, SIDE_PX, digits, mask_bits
from training.checkpoints import CHECKPOINT, read_checkpoint
from training.config import Config
from training.learner import Learner
from training.masking import MaskRule
from training.plan import PLAN, make_plan, require_same
from training.request import Request
from training.run import train
from training.swav import SwavConfig

GOLDEN = REPOSITORY / "tests/golden/run"
ARGS = {"depth": 1, "embed_dim": 16, "num_heads": 1}
SWAV = SwavConfig(CROPS, projection=8, prototypes=16, queue=32, queue_from=0.25, frozen_steps=2, centre=True)
RECIPE = Config(
    "earlier",
    swav=SWAV,
    steps=8,
    batch_size=16,
    lr=0.1,
    lr_per_tensor=True,
    head_lr=0.01,
    head_steps=1,
    mask=MaskRule(share=0.5),
)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """The request of that run; weights come from numpy, so that they do not depend on torch's random numbers."""
    rng = np.random.Generator(np.random.PCG64(15))
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, **ARGS)
    state = {
        name: torch.from_numpy(rng.uniform(-0.2, 0.2, tensor.shape).astype(np.float32)) + float("norm" in name)
        for name, tensor in sorted(model.state_dict().items())
    }
    save_file(state, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "digits.npz", **digits())
    spec = BackboneSpec("test_vit", tmp_path / "weights.safetensors", ARGS, SIDE_PX, device="cpu")
    return Request(spec, str(tmp_path / "digits.npz"), RECIPE, tmp_path / "m.smn", seed=3, workers=0, resume=True)


def test_its_plan_is_still_the_plan(request_: Request):
    plan, steps = make_plan(request_, load_backbone(request_.spec))
    require_same(GOLDEN / PLAN, plan, request_.out)
    assert json.loads((GOLDEN / PLAN).read_text()) == plan
    assert steps == 8


def test_its_checkpoint_has_the_keys_of_today(request_: Request):
    learner = Learner(load_backbone(request_.spec), replace(RECIPE, precision="32-true"), 8)
    checkpoint = read_checkpoint(GOLDEN / CHECKPOINT)
    assert checkpoint["state_dict"].keys() == learner.state_dict().keys()
    assert json.loads(checkpoint["smn"]["recipe"]) == json.loads(learner.identity()["recipe"])


def test_it_goes_on_as_if_it_had_not_stopped(request_: Request):
    request_.folder.mkdir()
    shutil.copy(GOLDEN / CHECKPOINT, request_.folder / CHECKPOINT)
    steps: list[int] = []
    mask = train(request_, steps.append).mask
    assert steps == [4, 5, 6, 7, 8]
    ours, theirs = read_curve(request_.folder), read_curve(GOLDEN)
    np.testing.assert_array_equal(ours[:4], theirs[:4])
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)  # processors differ in the last digits, so may a few bits
    whole = read_mask(GOLDEN / "whole.smn")
    assert whole.n_off > 20
    assert (mask_bits(mask) != mask_bits(whole)).mean() < 0.005


def read_curve(folder: Path) -> np.ndarray:
    """Step, loss and learning rate of every step."""
    return np.loadtxt(folder / "curve.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))


def test_it_is_not_resumed_with_another_recipe(request_: Request):
    request_.folder.mkdir()
    shutil.copy(GOLDEN / CHECKPOINT, request_.folder / CHECKPOINT)
    with pytest.raises(InvalidWeights, match="another recipe"):
        train(replace(request_, config=replace(RECIPE, momentum=0.5)))
