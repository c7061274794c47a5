"""Norms that were folded into the convolutions: unfolded without a change, re-centred under a mask, folded back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument
from smn_core.maskfile import write_mask
from tests.training.builders import Stopped, World, config, mask_bits, run
from training import export
from training.config import Config
from training.masking import MaskRule, attach, list_scores
from training.recentre import Recentred, find_norms


def images(n: int = 24) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def recentring(**changes: object) -> Config:
    """Convolutions alone: a ResNet's downsample has norms whose own weights are masked."""
    return config(mask=MaskRule(only="conv"), recentre_norm=True, **changes)


def switch_off(model: torch.nn.Module, share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, scores in list_scores(model):
        scores.scores.data = torch.rand(scores.scores.shape, generator=generator) - share


def test_unfolding_changes_nothing_that_the_model_computes(world: World):
    model, x = world.backbone("test_resnet").model, images()
    with torch.inference_mode():
        before = model(x)
    recentred = Recentred(model, x, set())
    with torch.inference_mode():
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    for name, value in recentred.folded().items():
        torch.testing.assert_close(value, torch.zeros_like(value) if "mean" in name else torch.ones_like(value))


def test_unfolded_norms_are_those_of_a_network_that_kept_its_norms(world: World):
    """On the images that they were unfolded around a training pass is the untouched model's evaluation."""
    model, x = world.backbone("test_resnet").model, images()
    with torch.inference_mode():
        before = model(x)
    Recentred(model, x, set())
    with torch.inference_mode():
        torch.testing.assert_close(model.train()(x), before, rtol=1e-3, atol=1e-4)


def test_under_a_mask_every_channel_keeps_its_mean_and_deviation(world: World):
    backbone, x = world.backbone("test_resnet"), images()
    before = leaving(backbone.model, x)
    attach(backbone.model, backbone.layout, MaskRule(only="conv"))
    recentred = Recentred(backbone.model, x, set())
    switch_off(backbone.model, 0.2)
    shifted = leaving(backbone.model, x)
    recentred.settle(x)
    after = leaving(backbone.model, x)
    for name, (mean, deviation) in before.items():
        torch.testing.assert_close(after[name][0], mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after[name][1], deviation, rtol=1e-2, atol=1e-3)
    assert max((shifted[name][0] - mean).abs().max() for name, (mean, _) in before.items()) > 0.05


def leaving(model: torch.nn.Module, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and deviation of every channel behind every norm."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def see(name: str, y: torch.Tensor) -> None:
        deviation, mean = torch.std_mean(y, dim=(0, 2, 3), correction=0)
        found[name] = mean, deviation

    handles = [
        norm.register_forward_hook(lambda _, __, y, name=name: see(name, y)) for name, norm in find_norms(model).items()
    ]
    with torch.inference_mode():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def test_the_untouched_backbone_wears_the_folded_statistics(world: World, tmp_path):
    """The mask file's state on the plain backbone computes what the unfolded, settled model computes."""
    backbone, x = world.backbone("test_resnet"), images()
    root = export.copy_statistics(backbone)
    attach(backbone.model, backbone.layout, MaskRule(only="conv"))
    recentred = Recentred(backbone.model, x, set())
    switch_off(backbone.model, 0.2)
    recentred.settle(x)
    mask = export.make_mask(backbone, backbone.model, root, {}, recentred=recentred)
    mask = write_mask(mask, tmp_path / "m.smn")
    assert set(mask.state) == set(backbone.layout.buffers)
    engine = Engine(world.backbone("test_resnet"), slots=1)
    engine.prepare(mask)
    served = engine.embed(x, [Segment(mask.digest, 0, len(x))]).embeddings
    with torch.inference_mode():
        torch.testing.assert_close(served, backbone.model(x), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_ends_in_the_file_of_an_uninterrupted_one(world: World, tmp_path, stop_after):
    recipe = recentring(lr=0.3)
    whole = run(world, tmp_path / "whole.smn", recipe, "test_resnet").mask
    assert whole.n_off > 0
    assert whole.state
    stop_after(5)
    with pytest.raises(Stopped):
        run(world, tmp_path / "part.smn", recipe, "test_resnet")
    stop_after(None)
    for _ in range(2):  # the second time there is nothing left to learn
        run(world, tmp_path / "part.smn", recipe, "test_resnet", resume=True)
        assert (tmp_path / "part.smn").read_bytes() == (tmp_path / "whole.smn").read_bytes()


def test_a_run_that_goes_on_from_such_a_mask_keeps_its_norms(world: World, tmp_path):
    root = run(world, tmp_path / "root.smn", recentring(), "test_resnet").mask
    still = recentring(steps=1, lr=0.0, head_lr=0.0)
    mask = run(world, tmp_path / "m.smn", still, "test_resnet", start=tmp_path / "root.smn").mask
    np.testing.assert_array_equal(mask_bits(mask), mask_bits(root))
    for name, values in root.state.items():
        np.testing.assert_allclose(mask.state[name], values, rtol=1e-4, atol=1e-5)


def test_masked_norms_and_backbones_without_any_are_refused(world: World, tmp_path):
    with pytest.raises(InvalidArgument, match=r"downsample\.2\.bias is masked itself"):
        run(world, tmp_path / "m.smn", config(recentre_norm=True), "test_resnet")
    with pytest.raises(InvalidArgument, match="no BatchNorm"):
        run(world, tmp_path / "m.smn", config(recentre_norm=True))
    with pytest.raises(InvalidArgument, match="without freeze_norm"):
        config(recentre_norm=True, freeze_norm=True)
    assert list(tmp_path.iterdir()) == []
