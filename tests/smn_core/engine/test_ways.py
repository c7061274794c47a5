"""Slot, scratch, patch, shared base, mixed: every way gives what a plain timm model with masked weights gives."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smn_core import bits
from smn_core.backbone import Backbone
from smn_core.engine import Engine, Segment, costs
from smn_core.engine.costs import Costs
from smn_core.mask import TaskMask
from tests.smn_core.builders import KINDS, TINY_VIT, by_hand, images, lively, weights_by_hand
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form

FREE = Costs(*[0.0] * len(fields(Costs)))
# What has to look dear or cheap for a way to be taken wherever it can be.
WAYS = {
    "slot": replace(FREE, write=1.0, scratch=1e6, flip=1e9, rescale=1e9),
    "scratch": replace(FREE, write=1e6, flip=1e9, correction=1e12),
    "patch": replace(FREE, write=1e6, scratch=1e6, correction=1e12),
    "shared base": replace(FREE, write=1e6, scratch=1e6, segment=1e12),
}
KINDS_AND_TINY = {**KINDS, "tiny vit": TINY_VIT}
DENSITIES = (0.05, 0.5, 0.9, 0.99, 0.999, 0.9999)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(costs, "CPU", WAYS[request.param])
    return request.param


@pytest.fixture(params=KINDS_AND_TINY)
def kind(request: pytest.FixtureRequest):
    return KINDS_AND_TINY[request.param]


def with_whole_tensors(mask: TaskMask, every: int) -> TaskMask:
    """The same mask with every n-th tensor all ON, as real masks have them."""
    packed = mask.packed.copy()
    for tensor in mask.layout.tensors[::every]:
        packed[tensor.bytes] = bits.pack(np.ones(tensor.n_weights, bool))
    return replace(mask, packed=packed, digest=f"{mask.digest}-whole")


def some_masks(backbone: Backbone, make_mask, densities) -> list[TaskMask]:
    masks = [make_mask(backbone, d, i, with_state=i % 2 == 0) for i, d in enumerate(densities)]
    return [*masks, with_whole_tensors(make_mask(backbone, 0.995, 99), 2)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    distance = torch.linalg.vector_norm(found - expected, dim=-1) / torch.linalg.vector_norm(expected, dim=-1)
    return float(distance.max())


def test_every_way_gives_every_row_its_own_mask(kind, way, make_mask):
    """Alone or mixed with others and the root, in segments of one row to all: what the plain model gives, to 1e-5."""
    backbone = lively(kind)
    masks: list[TaskMask | None] = [None, *some_masks(backbone, make_mask, DENSITIES)]
    engine, x = Engine(backbone, slots=8), images(kind, 6)
    engine._mixes = engine._splittable
    expected = by_hand(kind, masks, x)
    names = [mask and mask.digest for mask in masks]
    for mask in masks:
        if mask is not None:
            engine.prepare(mask)
    rng = np.random.default_rng(0)
    for n_segments in (1, 6, 3, 6, 2):
        cuts = [0, *sorted(rng.choice(range(1, 6), n_segments - 1, replace=False).tolist()), 6]
        chosen = rng.choice(len(masks), n_segments).tolist()
        segments = [Segment(names[m], a, b) for m, a, b in zip(chosen, cuts, cuts[1:], strict=False)]
        found = engine.embed(x, segments).embeddings
        wanted = torch.cat([expected[m][a:b] for m, a, b in zip(chosen, cuts, cuts[1:], strict=False)])
        assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_masks_one_after_the_other_leave_nothing_behind(name, monkeypatch, make_mask):
    """Patched masks with and without state, slots, the root and mixed batches in any order: every row is right."""
    monkeypatch.setattr(costs, "CPU", replace(costs.CPU, write=100.0))
    kind = KINDS[name]
    backbone = lively(kind)
    masks: list[TaskMask | None] = [None]
    masks += [make_mask(backbone, d, i, with_state=i % 2 == 0) for i, d in enumerate((0.999, 0.999, 0.995, 0.5))]
    engine, x = Engine(backbone, slots=1), images(kind, 2)
    expected = by_hand(kind, masks, x)
    for mask in masks[1:]:
        engine.prepare(mask)
    assert [engine._prepared[mask.digest].patched for mask in masks[1:]] == [True, True, True, False]
    engine.capacity = 2
    for i, j in np.random.default_rng(0).integers(len(masks), size=(40, 2)).tolist():
        segments = [Segment(masks[k] and masks[k].digest, n, n + 1) for n, k in enumerate((i, j))]
        assert (
            relative_error(engine.embed(x, segments).embeddings, torch.stack([expected[i][0], expected[j][1]])) < 1e-5
        )


def test_the_ways_are_really_taken(monkeypatch, make_mask):
    """With a patch dear, sparse masks take slots, or none where scratch is cheaper; and the shared base corrects."""
    made = {}
    for name, constants in WAYS.items():
        monkeypatch.setattr(costs, "CPU", constants)
        backbone = lively(TINY_VIT)
        engine, x = Engine(backbone, slots=2), images(TINY_VIT, 3)
        masks = [make_mask(backbone, 0.995, seed) for seed in range(2)]
        for mask in masks:
            engine.prepare(mask)
        corrected = []
        correct = engine._mixed._corrector.correct
        monkeypatch.setattr(engine._mixed._corrector, "correct", lambda *a, c=correct: (corrected.append(a), c(*a)))  # noqa: B023
        written = []
        write = engine._mixed.scratch.write
        monkeypatch.setattr(engine._mixed.scratch, "write", lambda *a, w=write: (written.append(a), w(*a))[1])  # noqa: B023
        engine.embed(x, [Segment(masks[0].digest, 0, 1), Segment(None, 1, 2), Segment(masks[1].digest, 2, 3)])
        made[name] = (engine.memory().resident_masks, len(written) > 0, len(corrected) > 0)
    assert made == {
        "slot": (2, False, False),
        "scratch": (0, True, False),
        "patch": (0, False, False),
        "shared base": (0, False, True),
    }


@settings(max_examples=15, deadline=None)
@given(
    way=st.sampled_from(list(WAYS)),
    densities=st.lists(st.floats(0.05, 0.9999), min_size=1, max_size=4),
    runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_any_masks_in_any_segments(make_mask, way, densities, runs, seed):
    """Random masks, densities and segments, several batches on one engine: every row is the plain model's, to 1e-5."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(costs, "CPU", WAYS[way])
        backbone = lively(TINY_VIT)
        masks: list[TaskMask | None] = [None]
        masks += [make_mask(backbone, d, [seed, i]) for i, d in enumerate(densities)]
        masks.append(with_whole_tensors(make_mask(backbone, densities[0], [seed, 9]), 3))
        engine = Engine(backbone, slots=6)
        for mask in masks[1:]:
            engine.prepare(mask)
        x = images(TINY_VIT, sum(n for _, n in runs), seed)
        expected = by_hand(TINY_VIT, masks, x)
        for batch in (runs, runs[::-1]):
            segments, wanted, start = [], [], 0
            for m, n in batch:
                mask = masks[m % len(masks)]
                segments.append(Segment(mask and mask.digest, start, start + n))
                wanted.append(expected[m % len(masks)][start : start + n])
                start += n
            assert relative_error(engine.embed(x, segments).embeddings, torch.cat(wanted)) < 1e-5


# Which models may mix


@pytest.mark.parametrize("name", KINDS)
def test_models_are_split_where_their_modules_allow_it(name):
    """All kinds but BEiT, which uses its weights behind the module's back, and those whose weights are folded."""
    engine = Engine(lively(KINDS[name]))
    assert engine._splittable == (name != "beit" and engine._theta.folding is None)
    assert engine._theta.folding is None or name in ("resnet", "mobilenet-v2", "mobilenet-v3")


def test_a_weight_used_behind_its_module_is_found_out(make_mask, caplog):
    """A model that reads a masked weight outside of its module's forward is not split, and right."""
    backbone = lively(TINY_VIT)
    block = backbone.model.blocks[0]
    inner = block.mlp.forward
    block.mlp.forward = lambda x: inner(x) + torch.nn.functional.linear(x, block.attn.proj.weight)
    x = images(TINY_VIT, 2)
    masks = [make_mask(backbone, d, i) for i, d in enumerate((0.5, 0.995))]
    expected = []
    theta = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    for i, mask in enumerate(masks):
        backbone.model.load_state_dict(weights_by_hand(backbone.model, mask))
        with torch.inference_mode():
            expected.append(backbone.model(x)[i : i + 1])
        backbone.model.load_state_dict(theta)
    engine = Engine(backbone)
    assert not engine._splittable
    assert "segment by segment" in caplog.text
    for mask in masks:
        engine.prepare(mask)
    found = engine.embed(x, [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)]).embeddings
    assert relative_error(found, torch.cat(expected)) < 1e-5


def test_images_that_meet_in_a_module_are_found_out(caplog):
    """A model in which the rows of a module's input are not the images, one after the other, is not split."""
    backbone = lively(TINY_VIT)
    mlp = backbone.model.blocks[0].mlp
    inner = mlp.forward
    mlp.forward = lambda x: inner(x.flip(0)).flip(0)
    assert not Engine(backbone)._splittable
    assert "not apart" in caplog.text


def test_rows_that_do_not_divide_run_segment_by_segment(make_mask, monkeypatch, caplog):
    """If a module's input later has no whole number of rows for each image, the batch still is right."""
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.9, seed) for seed in range(2)]
    engine, x = Engine(backbone), images(TINY_VIT, 3)
    for mask in masks:
        engine.prepare(mask)
    segments = [Segment(masks[0].digest, 0, 2), Segment(masks[1].digest, 2, 3)]
    expected = engine.embed(x, segments).embeddings
    assert engine._mixes
    mlp = backbone.model.blocks[1].mlp
    inner = mlp.forward
    mlp.forward = lambda x: inner(torch.cat([x, x[:1]]))[: len(x)]
    assert torch.allclose(engine.embed(x, segments).embeddings, expected, rtol=1e-5, atol=1e-6)
    assert not engine._mixes
    assert "rows for 3 images" in caplog.text


def test_bfloat16_masks_are_patched_and_mixed(make_mask):
    """In bfloat16 patched and mixed rows point where the float32 engine's do."""
    full, half = lively(KINDS["vit"]), lively(KINDS["vit"], dtype=torch.bfloat16)
    masks, x = [make_mask(full, 0.995, seed) for seed in range(3)], images(KINDS["vit"], 3)
    segments = [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)]
    found = []
    for engine in (Engine(full), Engine(half)):
        for mask in masks:
            engine.prepare(mask)
        found.append(engine.embed(x, segments).embeddings)
    assert torch.nn.functional.cosine_similarity(*found).min() > 0.999
