"""The head is measured on the crops that it will see, in batches, once a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smn_core.imageset import ArraySet, open_images
from tests.training.builders import CROPS, SWAV, Stopped, World, config, digits, run
from training import calibrate
from training.learner import Learner
from training.progress import count

RECIPE = config(swav=replace(SWAV, crops=replace(CROPS, n_small=2), centre=True))


def measured(world: World, n_images: int, seed: int = 0) -> tuple[Learner, list[tuple[int, ...]]]:
    """A learner whose head was calibrated on so many digits, and the shapes of what its model was given."""
    backbone = world.backbone()
    torch.manual_seed(0)
    learner, shapes = Learner(backbone, RECIPE, 8, seed=seed), list[tuple[int, ...]]()
    learner.model.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    pixels = digits()["x_train"][:n_images]
    images = ArraySet(pixels, [str(i) for i in range(n_images)], None, ())
    calibrate.calibrate_head(learner, backbone, images)
    return learner, shapes


def test_at_most_512_crops_are_embedded_in_batches_of_the_recipe_at_their_own_sizes(world: World):
    _, shapes = measured(world, 320)
    assert set(shapes) == {(16, 3, 32, 32), (16, 3, 16, 16)}
    assert sum(shape[0] for shape in shapes) == 512
    assert [shape[-1] for shape in shapes].count(32) == [shape[-1] for shape in shapes].count(16)
    _, few = measured(world, 20)
    assert sum(shape[0] for shape in few) == 80


def test_centre_and_spread_are_those_of_the_crops(world: World):
    """Computed again from crops that were written down, one at a time."""
    learner, _ = measured(world, 40)
    backbone = world.backbone()
    images = ArraySet(digits()["x_train"][:40], [str(i) for i in range(40)], None, ())
    crops = [crop for crops in calibrate.read_crops(learner, backbone, images, 40) for crop in crops]
    assert {crop.shape[-1] for crop in crops} == {16, 32}
    with torch.inference_mode():
        z = torch.cat([learner.model.eval()(crop[None]) for crop in crops])
    torch.testing.assert_close(learner.swav.head.centre, z.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.swav.head.spread, z.std(0), rtol=1e-4, atol=1e-5)


def test_norms_normalise_by_the_batch_as_in_a_step_and_keep_their_statistics(world: World):
    """What a training pass gives is what the head is centred on; frozen norms give their own."""
    images = ArraySet(digits()["x_train"][:33], [str(i) for i in range(33)], None, ())
    centres = {}
    for freeze in (False, True):
        backbone = world.backbone("test_resnet")
        learner = Learner(backbone, replace(RECIPE, freeze_norm=freeze), 8)
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        calibrate.calibrate_head(learner, backbone, images)
        for name, value in learner.model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not learner.model.training
        centres[freeze] = learner.swav.head.centre.clone()
        crops = list(zip(*calibrate.read_crops(learner, backbone, images, 33), strict=True))
        with torch.no_grad():  # batches of 16, and of norms that need two the last crop is left out
            parts = [slice(0, 16), slice(16, 32)] if not freeze else [slice(0, 33)]
            model = learner.model.train() if not freeze else learner.model
            z = torch.cat([model(torch.stack(views[part])) for part in parts for views in crops])
        torch.testing.assert_close(centres[freeze], z.mean(0), rtol=1e-4, atol=1e-5)
    assert (centres[True] - centres[False]).abs().max() > 0.1


def test_measuring_leaves_the_generators_alone_and_depends_on_the_seed(world: World):
    one, _ = measured(world, 40)
    after = torch.rand(3)
    again, _ = measured(world, 40)
    assert torch.equal(torch.rand(3), after)
    other, _ = measured(world, 40, seed=1)
    assert torch.equal(one.swav.head.centre, again.swav.head.centre)
    assert not torch.equal(one.swav.head.centre, other.swav.head.centre)


def test_a_run_that_is_resumed_does_not_measure_again(world: World, tmp_path, stop_after, monkeypatch):
    calls, plain = [], calibrate.calibrate_head
    monkeypatch.setattr(calibrate, "calibrate_head", lambda *given: calls.append(1) or plain(*given))
    stop_after(3)
    with pytest.raises(Stopped):
        run(world, tmp_path / "m.smn", RECIPE)
    stop_after(None)
    run(world, tmp_path / "m.smn", RECIPE, resume=True)
    assert calls == [1]


def test_an_unreadable_image_is_left_out_and_named(world: World, tmp_path):
    for i, pixels in enumerate(digits()["x_train"][:12]):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    backbone = world.backbone()
    learner = Learner(backbone, RECIPE, 8)
    calibrate.calibrate_head(learner, backbone, open_images(tmp_path))
    (reason,) = learner.skipped
    assert "03.png" in reason
    assert np.isfinite(learner.swav.head.spread.numpy()).all()


def test_measuring_ends_after_the_batch_at_which_it_is_late(world: World):
    """What was embedded until then is what the head is calibrated on."""
    backbone, embedded = world.backbone(), []
    learner = Learner(backbone, RECIPE, 8)
    images = ArraySet(digits()["x_train"][:40], [str(i) for i in range(40)], None, ())
    learner.model.register_forward_hook(lambda *given: embedded.append(len(given[-1])))
    calibrate.calibrate_head(learner, backbone, images, is_late=lambda: True)
    assert sum(embedded) == 4 * learner.config.batch_size
    assert not torch.equal(learner.swav.head.centre, torch.zeros_like(learner.swav.head.centre))


def test_a_log_counts_the_crops(world: World, capsys):
    backbone = world.backbone()
    images = ArraySet(digits()["x_train"][:40], [str(i) for i in range(40)], None, ())
    calibrate.calibrate_head(Learner(backbone, RECIPE, 8), backbone, images, count)
    assert capsys.readouterr().err == "measuring what the head will see, crops: 16 of 160\n"
