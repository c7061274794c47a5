"""Masks are judged in pairs with the frozen backbone, against honest controls; `smn verdict` says and stores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smn_core.affine import Affine
from smn_core.backbone import Backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidData, WrongBackbone
from smn_core.imageset import ArraySet, open_images
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, write_mask
from smn_core.verdict import ADOPT, CANNOT_TELL, LEAVE_IT, read_verdict
from tests.training.builders import World, digits, enliven
from training.data import Subset, open_split
from training.evaluation.command import open_seen_and_unseen
from training.evaluation.controls import flip_at_random, make_all_on, strip
from training.evaluation.labelled import BOTH
from training.evaluation.paired import AGREEMENT, EVIDENCE, NEIGHBOURS, SIGNS
from training.evaluation.rule import ALL, SEEN, UNSEEN
from training.evaluation.verdict import (
    FOREIGN,
    FROZEN_AND_MAP,
    RANDOM_FLIPS,
    Verdict,
    count_embeddings,
    judge,
    store_verdict,
)
from training.maps import fit_map
from training.statistics import fit_statistics
from training.unseen import write_unseen

N_SEEN, N_UNSEEN, N_LABELLED = 200, 100, 120


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return Engine(world.backbone(), slots=1)


@pytest.fixture(scope="module")
def sets() -> tuple[Subset, Subset]:
    """Squares of four random colours: even a random network knows some of them again in a crop."""
    colours = np.random.default_rng(0).integers(0, 256, (N_SEEN + N_UNSEEN, 2, 2, 3))
    pixels = np.kron(colours, np.ones((1, 16, 16, 1))).astype(np.uint8)
    images = ArraySet(pixels, [str(i) for i in range(len(pixels))], None, ())
    return Subset(images, np.arange(N_SEEN)), Subset(images, np.arange(N_SEEN, N_SEEN + N_UNSEEN))


@pytest.fixture(scope="module")
def flips(engine: Engine, make_mask: Callable[..., TaskMask]) -> TaskMask:
    return make_mask(engine.backbone, density=0.9, with_preprocess=True)


def blind(backbone: Backbone) -> TaskMask:
    """A mask that hides nearly all of an embedding: two directions are left."""
    scale = np.full(backbone.n_features, 1e-6, np.float32)
    scale[:2] = 1
    return make_all_on(backbone, Affine(np.zeros(backbone.n_features, np.float32), scale=scale))


@pytest.fixture(scope="module")
def judged(engine: Engine, sets, flips: TaskMask) -> dict[str, Verdict]:
    """Masks that whiten, blind, do nothing, and flip at random; with a foreign mask and labels."""
    mapped = make_all_on(engine.backbone, fit_map(engine, None, sets[0]))
    masks = [
        ("map", mapped),
        ("blind", blind(engine.backbone)),
        ("nothing", make_all_on(engine.backbone)),
        ("flips", flips),
        ("both", replace(flips, affine=mapped.affine)),
    ]
    foreign = flip_at_random(flips, 5)
    return {v.name: v for v in judge(engine, masks, *sets, foreign=foreign, batch_size=50)}


def test_a_map_that_brings_views_together_is_adopted_and_one_that_hides_everything_is_left(judged):
    assert judged["map"].answer == ADOPT
    assert judged["map"].changes[NEIGHBOURS][ALL].z > 2
    assert judged["map"].reason.endswith("it is a map alone, without flips.")
    assert judged["blind"].answer == LEAVE_IT
    assert judged["blind"].changes[AGREEMENT][UNSEEN].change < 0


def test_a_mask_that_changes_nothing_is_left_with_no_change_at_all(judged):
    verdict = judged["nothing"]
    assert verdict.answer == LEAVE_IT
    assert "frozen backbone itself" in verdict.reason
    assert {change.change for by in verdict.changes.values() for change in by.values()} == {0.0}


def test_statistics_under_a_map_are_held_against_frozen_and_map(sets, world: World, tmp_path: Path):
    living = enliven(world, tmp_path)
    backbone, engine = living.backbone("test_resnet"), Engine(living.backbone("test_resnet"), slots=1)
    affine = fit_map(engine, None, sets[0])
    state = fit_statistics(backbone, sets[0])
    (good,) = judge(engine, [("a", replace(make_all_on(backbone, affine), state=state))], *sets, batch_size=50)
    assert [control.name for control in good.controls] == [FROZEN_AND_MAP]
    assert good.reason.endswith("it is statistics and a map, without flips.")
    assert good.over_map is not None
    assert good.over_map[EVIDENCE][ALL].change == pytest.approx(good.controls[0].beaten_by[EVIDENCE][ALL].change)


def test_images_are_counted_by_part(judged):
    for verdict in judged.values():
        assert (verdict.n_seen, verdict.n_unseen, verdict.n_unreadable) == (N_SEEN, N_UNSEEN, 0)
        for sign in SIGNS:
            parts = verdict.changes[sign]
            assert {name: change.n for name, change in parts.items()} == {ALL: 300, SEEN: N_SEEN, UNSEEN: N_UNSEEN}
            whole = (N_SEEN * parts[SEEN].change + N_UNSEEN * parts[UNSEEN].change) / 300
            assert parts[ALL].change == pytest.approx(whole)


def test_flips_stand_beside_frozen_and_map_random_flips_and_the_foreign_mask(judged):
    assert [c.name for c in judged["flips"].controls] == [FROZEN_AND_MAP, FOREIGN, RANDOM_FLIPS]
    assert judged["map"].controls == ()
    for name in ("frozen + map", "random flips", "foreign mask"):
        assert name in judged["flips"].reason
    frozen_and_map = judged["flips"].controls[0]
    assert frozen_and_map.changes[AGREEMENT][ALL] == judged["map"].changes[AGREEMENT][ALL]
    mine, its = judged["flips"].changes[AGREEMENT][ALL], frozen_and_map.changes[AGREEMENT][ALL]
    assert frozen_and_map.beaten_by[AGREEMENT][ALL].change == pytest.approx(mine.change - its.change)


def test_random_flips_are_compared_without_the_map(judged):
    alone, mapped = (judged[name].controls[-1].beaten_by for name in ("flips", "both"))
    assert alone == mapped
    assert judged["flips"].changes != judged["both"].changes


def test_a_verdict_is_the_same_every_time_and_json(engine, sets, flips, judged):
    foreign = flip_at_random(flips, 5)
    (again,) = judge(engine, [("flips", flips)], *sets, foreign=foreign, batch_size=50)
    assert json.loads(json.dumps(again.as_json())) == judged["flips"].as_json()
    assert again.as_json()["images"] == {"seen": N_SEEN, "unseen": N_UNSEEN, "labelled": 0, "unreadable": 0}


def test_the_engine_is_left_as_it_was_and_the_bar_reaches_its_end(engine, sets, flips):
    before, done = engine.memory().prepared_masks, []
    judge(engine, [("flips", flips)], *sets, batch_size=50, on_batch=done.append)
    assert engine.memory().prepared_masks == before
    assert sum(done) == count_embeddings([("flips", flips)], *sets)


def test_without_unseen_images_it_says_so(engine, sets, flips):
    (verdict,) = judge(engine, [("flips", flips)], sets[0], None, batch_size=50)
    assert verdict.n_unseen == 0
    assert set(verdict.changes[AGREEMENT]) == {ALL, SEEN}
    assert "unseen: none" in verdict.reason


def test_labels_speak_of_a_space_that_hides_the_classes(engine, sets, world: World):
    few = Subset(open_split(str(world.data), "train"), np.arange(N_LABELLED))
    (verdict,) = judge(engine, [("blind", blind(engine.backbone))], sets[0], None, labelled=few, batch_size=50)
    assert verdict.n_labelled == N_LABELLED
    assert verdict.labels[BOTH].z < -2
    assert f"{N_LABELLED} labels" in verdict.reason


def test_random_flips_are_as_many_in_every_tensor_and_elsewhere(flips):
    other = flip_at_random(flips, 0)
    np.testing.assert_array_equal(other.on_counts, flips.on_counts)
    assert (other.packed != flips.packed).any()
    assert (flip_at_random(flips, 0).packed == other.packed).all()
    assert (flip_at_random(flips, 1).packed != other.packed).any()


def test_masks_that_differ_in_map_and_head_alone_share_their_forwards(engine, flips, make_mask):
    affine = Affine(np.zeros(engine.backbone.n_features, np.float32), scale=np.ones(engine.backbone.n_features, "f4"))
    assert strip(replace(flips, affine=affine)).digest == strip(flips).digest
    assert strip(make_mask(engine.backbone, density=0.9, rng=3)).digest != strip(flips).digest
    assert strip(make_all_on(engine.backbone, affine)) is None


def test_a_mask_of_another_backbone_is_refused_even_if_it_flips_nothing(engine, sets, make_backbone):
    other = make_all_on(make_backbone("test_vit", seed=3))
    with pytest.raises(WrongBackbone):
        judge(engine, [("other", other)], *sets)


def write(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


def test_unreadable_images_are_passed_over_and_counted_and_30_must_be_left(engine, flips, tmp_path):
    folder = write(tmp_path / "photos", digits()["x_train"][:32])
    for name in ("003.png", "017.png"):
        (folder / name).write_bytes(b"no image")
    (verdict,) = judge(engine, [("flips", flips)], open_images(folder), None)
    assert (verdict.n_seen, verdict.n_unreadable) == (30, 2)
    (folder / "004.png").write_bytes(b"no image")
    with pytest.raises(InvalidData, match="29 readable images are too few"):
        judge(engine, [("flips", flips)], open_images(folder), None)


def test_images_that_are_all_alike_cannot_judge(engine, flips, tmp_path):
    folder = write(tmp_path / "black", np.zeros((30, 32, 32, 3), np.uint8))
    with pytest.raises(InvalidData, match="nothing to judge by"):
        judge(engine, [("flips", flips)], open_images(folder), None)


@pytest.mark.parametrize(("dataset", "unseen"), [({"dataset": "photos"}, 0), ({}, 0), ({"dataset": "elsewhere"}, 10)])
def test_a_third_of_a_set_without_a_test_split_is_unseen_where_the_run_saw_another(dataset, unseen, flips, tmp_path):
    folder = write(tmp_path / "photos", digits()["x_train"][:30])
    seen, rest = open_seen_and_unseen(str(folder), [replace(flips, metadata=dataset)])
    assert len(rest.names if rest is not None else []) == unseen
    assert len(seen.names) == 30 - unseen
    assert not set(seen.names) & set(rest.names if rest is not None else [])


def test_what_the_runs_of_all_masks_kept_back_is_unseen(flips, tmp_path):
    """A candidate finds the note in its own folder. A mask without a note may have seen everything."""
    folder = write(tmp_path / "photos", digits()["x_train"][:30])
    named = replace(flips, metadata={"dataset": "photos"})
    files = [tmp_path / "a.smn", tmp_path / "b.run" / "mask.smn"]
    for run, kept_back in (("a.run", range(0, 12)), ("b.run", range(6, 18))):
        (tmp_path / run).mkdir()
        write_unseen(tmp_path / run, [f"{number:03}.png" for number in kept_back])
    seen, unseen = open_seen_and_unseen(str(folder), [named, named], files)
    assert unseen is not None
    assert unseen.names == [f"{number:03}.png" for number in range(6, 12)]
    assert sorted([*seen.names, *unseen.names]) == open_images(folder).names
    assert open_seen_and_unseen(str(folder), [named, named], [files[0], tmp_path / "c.smn"])[1] is None


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [("", {}), ('{"loss_after":2.5}', {"loss_after": 2.5}), ("fast", {"text": "fast"}), ("[1]", {"text": "[1]"})],
)
def test_a_stored_verdict_keeps_what_the_file_told(metrics, kept, flips, judged, tmp_path):
    mask = replace(flips, metadata={"metrics": metrics, "dataset": "digits"})
    written = write_mask(store_verdict(mask, judged["flips"]), tmp_path / "m.smn")
    found = read_mask(tmp_path / "m.smn")
    assert found.digest == written.digest
    assert found.metadata["dataset"] == "digits"
    assert json.loads(found.metadata["metrics"]) == kept | {"verdict": judged["flips"].as_json()}
    assert read_verdict(found.metadata) == {"answer": judged["flips"].answer, "reason": judged["flips"].reason}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Digits, fewer of them."""
    found = digits()
    np.savez(
        tmp_path / "few.npz",
        **{name: values[:60] for name, values in found.items()},
    )
    return tmp_path / "few.npz"


def test_the_command_says_it_last_and_writes_only_where_asked(world: World, data: Path, flips, tmp_path, smn_run):
    file, out = tmp_path / "a.smn", tmp_path / "judged.smn"
    write_mask(flips, file)
    before = file.read_bytes()
    ran = smn_run("verdict", file, "--data", data, *world.flags())
    assert ran.code == 0, ran.err
    last = ran.out.strip().splitlines()[-1]
    assert last in {f"verdict: {answer}" for answer in (ADOPT, LEAVE_IT, CANNOT_TELL)}
    assert "unseen" in ran.out
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.smn", "few.npz"]
    ran = smn_run("verdict", file, "--data", data, *world.flags(), "--json", "--out", out)
    (found,) = json.loads(ran.out)["verdicts"]
    assert f"verdict: {found['answer']}" == last
    assert json.loads(read_mask(out).metadata["metrics"])["verdict"] == found


def test_evaluate_shows_what_a_file_carries(world: World, data: Path, flips, judged, tmp_path, smn_run):
    write_mask(store_verdict(flips, replace(judged["flips"], answer=LEAVE_IT)), tmp_path / "a.smn")
    words = ["evaluate", "--data", data, "--mask", tmp_path / "a.smn", "--probe", "none", "--no-views", *world.flags()]
    ran = smn_run(*words)
    assert "leave it" in ran.out.split("verdict:")[0]
    assert "what the mask's file carries" in ran.out
    rows = json.loads(smn_run(*words, "--json").out)["rows"]
    assert "verdict" not in rows[0]
    assert rows[1]["verdict"]["answer"] == LEAVE_IT


def test_what_cannot_be_judged_is_one_line(world: World, data: Path, flips, tmp_path, refused):
    file = tmp_path / "a.smn"
    write_mask(flips, file)
    words = ["--data", data, *world.flags()]
    assert "one mask" in refused("verdict", file, file, *words, "--out", tmp_path / "b.smn")
    assert "a .smn file" in refused("verdict", file, *words, "--out", tmp_path / "b.txt")
    photos = write(tmp_path / "one" / "class", digits()["x_train"][:5])
    assert "one class" in refused("verdict", file, *words, "--labelled", photos.parent)
    assert "no labels" in refused("verdict", file, *words, "--labelled", photos)
