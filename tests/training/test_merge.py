"""One mask from several runs: off where the mean of their scores is, whatever scale each of them had."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smn_core.errors import InvalidArgument, InvalidWeights
from smn_core.maskfile import read_mask
from tests.training.builders import World, config, mask_bits, plain_lr, run
from training.masking import MaskRule
from training.merge import merge

RECIPE = config(lr=0.2)


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ by their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run(world, folder / f"{seed}.smn", RECIPE, seed=seed)
    return [folder / "0.smn", folder / "1.smn"]


def scores_of(path: Path, name: str) -> np.ndarray:
    owner, _, local = name.rpartition(".")
    state = torch.load(path.with_suffix(".run") / "last.ckpt", weights_only=True)["state_dict"]
    return state[f"model.{owner}.parametrizations.{local}.0.scores"].double().numpy().ravel()


def test_a_weight_is_off_where_the_mean_of_the_scores_is_below_the_threshold(runs, tmp_path):
    merged = merge(runs, tmp_path / "m.smn")
    assert merged.n_off > 0
    for tensor in merged.layout:
        expected = (scores_of(runs[0], tensor.name) + scores_of(runs[1], tensor.name)) / 2 > 0
        np.testing.assert_array_equal(merged.bits_of(tensor.name), expected)
    assert read_mask(tmp_path / "m.smn").digest == merged.digest


def test_a_mask_merged_with_itself_stays_as_it_is(runs, tmp_path):
    np.testing.assert_array_equal(mask_bits(merge([runs[0]] * 3, tmp_path / "m.smn")), mask_bits(read_mask(runs[0])))


def test_scores_count_by_how_far_they_went_from_their_start_to_their_threshold(world: World, tmp_path):
    """Translation and scale change no mask (theorems 1 and 2): merging with such a run changes none, either."""
    run(world, tmp_path / "a.smn", plain_lr(1, 0, 64))
    run(world, tmp_path / "b.smn", plain_lr(2, 0, 128))
    mask = read_mask(tmp_path / "a.smn")
    assert mask.n_off
    merged = merge([tmp_path / "a.smn", tmp_path / "b.smn"], tmp_path / "m.smn")
    np.testing.assert_array_equal(mask_bits(merged), mask_bits(mask))


def test_what_a_run_may_not_mask_counts_as_untouched(world: World, runs, tmp_path):
    run(world, tmp_path / "fc1.smn", replace(RECIPE, mask=MaskRule(only="fc1.weight", share=0.5)))
    merged = merge([runs[0], tmp_path / "fc1.smn"], tmp_path / "m.smn")
    for tensor in merged.layout:
        if "fc1.weight" not in tensor.name:
            expected = (scores_of(runs[0], tensor.name) + 1) / 2 > 0
            np.testing.assert_array_equal(merged.bits_of(tensor.name), expected)


def test_masks_that_cannot_be_merged_are_refused(world: World, runs, tmp_path):
    out = tmp_path / "m.smn"
    with pytest.raises(InvalidArgument, match="two masks"):
        merge(runs[:1], out)
    with pytest.raises(InvalidArgument, match="in a folder that is there"):
        merge(runs, tmp_path / "none" / "m.smn")
    with pytest.raises(InvalidArgument, match="or its run exists"):
        merge(runs, runs[0], overwrite=True)
    run(world, tmp_path / "r.smn", RECIPE, "test_resnet")
    with pytest.raises(InvalidArgument, match="different backbones"):
        merge([runs[0], tmp_path / "r.smn"], out)
    with pytest.raises(InvalidArgument, match="normalisation statistics"):
        merge([tmp_path / "r.smn"] * 2, out)
    run(world, tmp_path / "top.smn", replace(RECIPE, mask=MaskRule(density=0.9)))
    with pytest.raises(InvalidArgument, match="fixed density"):
        merge([runs[0], tmp_path / "top.smn"], out)
    shutil.copy(runs[0], tmp_path / "bare.smn")
    with pytest.raises(InvalidWeights, match="no checkpoint"):
        merge([runs[1], tmp_path / "bare.smn"], out)
    shutil.copytree(runs[1].with_suffix(".run"), tmp_path / "bare.run")
    with pytest.raises(InvalidWeights, match="not the end of the run"):
        merge([runs[1], tmp_path / "bare.smn"], out)
    assert not out.exists()


def test_the_verb_says_what_it_wrote_and_writes_over_nothing_unasked(runs, smn_run, tmp_path):
    ran = smn_run("merge", *runs, "--out", tmp_path / "m.smn")
    assert ran.code == 0, ran.err
    assert read_mask(tmp_path / "m.smn").digest in ran.err
    assert smn_run("merge", *runs, "--out", tmp_path / "m.smn").code == 2
    assert smn_run("merge", *runs, "--out", tmp_path / "m.smn", "--overwrite").code == 0
