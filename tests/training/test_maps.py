"""A map is fitted on unmapped embeddings of readable images, and gives what the closed forms say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData, NotReady
from smn_core.imageset import open_images
from smn_core.mask import TaskMask
from smn_core.tensorfile import digest_of
from tests.smn_core.builders import all_on
from tests.training.builders import World, digits
from training.data import open_split
from training.evaluation.probes import accuracy, knn
from training.evaluation.signs import view_agreement
from training.features import embed, embed_view
from training.maps import FORMS, GENTLE_SCALE, MOST_IMAGES, VIEW_SEEDS, fit_map, n_embeddings
from training.within import fit_diagonal, fit_within


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return Engine(world.backbone(), slots=2)


@pytest.fixture(scope="module")
def mask(engine: Engine, make_mask: Callable[..., TaskMask]) -> TaskMask:
    made = make_mask(engine.backbone, density=0.9)
    engine.prepare(made)
    return made


def write(folder: Path, n: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(digits()["x_train"][first : first + n]):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def test_the_within_form_is_the_closed_form_of_three_gentle_views(world: World, engine: Engine, mask: TaskMask):
    images = open_split(str(world.data), "train")
    found = fit_map(engine, mask.digest, images)
    views = [
        embed_view(engine, mask.digest, images, seed, 64, scale=GENTLE_SCALE, most_images=MOST_IMAGES)
        for seed in VIEW_SEEDS
    ]
    assert [len(view) for view in views] == [200] * 3
    picked = np.sort(np.random.default_rng(0).permutation(len(images.names))[:200])
    mean = embed(engine, mask.digest, images, 64).z[picked].mean(0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    expected = fit_within(np.stack(views), mean)
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-3, atol=1e-4)


def test_the_diagonal_form_standardises_whole_images(world: World, engine: Engine, mask: TaskMask):
    images = open_split(str(world.data), "train")
    found = fit_map(engine, mask.digest, images, "diagonal")
    picked = np.sort(np.random.default_rng(0).permutation(len(images.names))[:200])
    expected = fit_diagonal(embed(engine, mask.digest, images, 64).z[picked])
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-3)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-3, atol=1e-5)


def test_views_of_a_gentler_scale_agree_more(world: World, engine: Engine):
    images = open_split(str(world.data), "test")
    hard, gentle = (
        view_agreement(*(embed_view(engine, None, images, seed, 64, scale=scale, most_images=60) for seed in (0, 1)))
        for scale in ((0.1, 0.3), GENTLE_SCALE)
    )
    assert gentle > hard


def test_a_view_takes_no_more_images_than_it_is_told(world: World, engine: Engine):
    images = open_split(str(world.data), "test")
    assert len(embed_view(engine, None, images, 0, 64, most_images=17)) == 17


@pytest.mark.parametrize("form", FORMS)
def test_a_fitted_map_serves(form, world: World, engine: Engine, mask: TaskMask):
    """Put into the mask, it gives the engine's embeddings through the map."""
    images = open_split(str(world.data), "test")
    affine = fit_map(engine, mask.digest, open_split(str(world.data), "train"), form)
    mapped = replace(mask, affine=affine, digest=digest_of(form.encode()))
    engine.prepare(mapped)
    bare, found = (embed(engine, m.digest, images, 32).z for m in (mask, mapped))
    np.testing.assert_allclose(found, affine.apply_slowly(bare), rtol=1e-4, atol=1e-4)


def test_the_map_of_the_untouched_backbone_brings_neighbours_of_one_class_together(world: World, engine: Engine):
    """What the map is for, on digits: kNN of the backbone rises."""
    train, test = (open_split(str(world.data), split) for split in ("train", "test"))
    bank, tested = embed(engine, None, train, 64), embed(engine, None, test, 64)
    affine = fit_map(engine, None, train)
    bare = accuracy(knn(bank.z, bank.labels, tested.z), tested.labels)
    mapped = accuracy(knn(affine.apply(bank.z), bank.labels, affine.apply(tested.z)), tested.labels)
    assert mapped > bare


def test_equal_fits_give_equal_maps(world: World, engine: Engine, mask: TaskMask):
    images = open_split(str(world.data), "train")
    one, two = (fit_map(engine, mask.digest, images, precision="int8") for _ in range(2))
    for name, values in one.tensors().items():
        np.testing.assert_array_equal(two.tensors()[name], values, strict=True)
    assert one.matrix.dtype == np.int8


def test_unreadable_images_are_passed_over(engine: Engine, mask: TaskMask, tmp_path: Path):
    clean = fit_map(engine, mask.digest, open_images(write(tmp_path / "clean", 30)), "diagonal")
    dirty = write(tmp_path / "dirty", 30)
    (dirty / "999.png").write_bytes(b"no image")
    images = open_images(dirty)
    assert len(images.names) == 31
    found = fit_map(engine, mask.digest, images, "diagonal")
    np.testing.assert_allclose(found.scale, clean.scale, rtol=1e-4)
    assert np.isfinite(fit_map(engine, mask.digest, images).full).all()


@pytest.mark.parametrize("form", FORMS)
def test_ten_images_are_enough_and_nine_are_not(form, engine: Engine, mask: TaskMask, tmp_path: Path):
    folder = write(tmp_path / "ten", 10)
    fit_map(engine, mask.digest, open_images(folder), form)
    (folder / "004.png").write_bytes(b"no image any more")
    with pytest.raises(InvalidData, match=r"^9 readable images are too few to fit a map: it takes 10 at least$"):
        fit_map(engine, mask.digest, open_images(folder), form)


@pytest.mark.parametrize("form", FORMS)
def test_equal_images_have_no_map(form, engine: Engine, mask: TaskMask, tmp_path: Path):
    folder = tmp_path / "same"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / f"{i}.png")
    with pytest.raises(InvalidData, match="equal"):
        fit_map(engine, mask.digest, open_images(folder), form)


def test_a_mask_that_has_a_map_is_refused(world: World, engine: Engine, mask: TaskMask, make_mask):
    """The fit needs unmapped embeddings; of a mask that is all ON too."""
    mapped = make_mask(engine.backbone, with_affine="diagonal")
    mapped = replace(mapped, packed=all_on(mapped), digest="sha256:mapped")
    engine.prepare(mapped)
    assert engine.has_map(mapped.digest)
    assert not engine.has_map(mask.digest)
    with pytest.raises(InvalidArgument, match=r"sha256:mapped has a map already.*unmapped embeddings"):
        fit_map(engine, mapped.digest, open_split(str(world.data), "train"))
    engine.release(mapped.digest)
    assert not engine.has_map(mapped.digest)


def test_what_is_no_form_precision_or_mask_is_refused(world: World, engine: Engine, mask: TaskMask):
    images = open_split(str(world.data), "train")
    with pytest.raises(InvalidArgument, match="'whitened': choose within or diagonal"):
        fit_map(engine, mask.digest, images, "whitened")
    with pytest.raises(InvalidArgument, match="unknown precision 'int4'"):
        fit_map(engine, mask.digest, images, precision="int4")
    with pytest.raises(NotReady):
        fit_map(engine, "sha256:unknown", images)


@pytest.mark.parametrize("form", FORMS)
def test_progress_counts_every_embedding(form, engine: Engine, mask: TaskMask, tmp_path: Path):
    images, done = open_images(write(tmp_path / "some", 12)), []
    fit_map(engine, mask.digest, images, form, on_batch=done.append)
    assert sum(done) == n_embeddings(images, form) == (48 if form == "within" else 12)
