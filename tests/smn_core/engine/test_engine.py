"""The engine keeps its promise: z[s] = model(x[s]; theta * on / alpha), whatever happened before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smn_core.engine import Engine, Segment, costs, slots_within
from smn_core.engine.mixed.mixed import Mixed
from smn_core.errors import InvalidArgument, NotReady, OverCapacity, WrongBackbone
from smn_core.mask import TaskMask
from tests.smn_core.builders import KINDS, TINY_RESNET, TINY_VIT, all_on, images, lively, plain_model, weights_by_hand
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form


def through(engine: Engine, mask: TaskMask | None, x: Tensor) -> Tensor:
    """All rows of `x` through one mask."""
    if mask is not None:
        engine.prepare(mask)
    return engine.embed(x, [Segment(mask.digest if mask else None, 0, len(x))]).embeddings


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest):
    return KINDS[request.param]


@pytest.fixture(params=["resnet", "vit"])
def tiny(request: pytest.FixtureRequest):
    return {"resnet": TINY_RESNET, "vit": TINY_VIT}[request.param]


@pytest.fixture(scope="module")
def world(make_mask) -> Iterator[tuple[Engine, list[TaskMask | None], Tensor, list[Tensor]]]:
    """An engine with three slots, six masks and the root, eight images, and what each mask makes of them."""
    backbone = lively(TINY_RESNET)
    masks: list[TaskMask | None] = [None, *(make_mask(backbone, d, i, with_state=i % 2 == 0) for i, d in DENSITIES)]
    engine, x = Engine(backbone, slots=3), images(TINY_RESNET, 8)
    # One row at a time: convolutions may sum in another order for another batch size.
    expected = [torch.cat([through(engine, mask, row[None]) for row in x]) for mask in masks]
    yield engine, masks, x, expected


DENSITIES = list(enumerate((0.05, 0.3, 0.7, 0.9, 0.995, 1.0)))


# What a mask does to a backbone


@pytest.mark.parametrize("density", [0.1, 0.9, 0.999])
def test_embeddings_through_a_mask_equal_plain_timm_with_masked_weights(kind, density, make_mask):
    """A mask with normalisation state embeds as a plain timm model whose weights were masked by hand."""
    backbone = lively(kind)
    mask = make_mask(backbone, density, 1, with_state=True)
    name, _, args = kind
    plain = plain_model(name, args, seed=7)
    plain.load_state_dict(weights_by_hand(backbone.model, mask), strict=True)
    x = images(kind, 3)
    with torch.inference_mode():
        expected, untouched = plain(x), backbone.model(x)
    found = through(Engine(backbone), mask, x)
    assert torch.linalg.vector_norm(found - expected) < 1e-5 * torch.linalg.vector_norm(expected)
    assert not torch.allclose(found, untouched, rtol=1e-2)


def test_a_mask_that_is_all_on_is_the_backbone(kind, make_mask):
    """A mask without an OFF bit gives the untouched backbone's embeddings bit for bit."""
    backbone = lively(kind)
    mask = make_mask(backbone, 0.9)
    mask = replace(mask, packed=all_on(mask), digest="sha256:all-on")
    x, engine = images(kind, 2), Engine(backbone)
    with torch.inference_mode():
        expected = backbone.model(x)
    assert torch.equal(through(engine, None, x), expected)
    assert torch.equal(through(engine, mask, x), expected)


def test_the_untouched_backbone_comes_back(kind, make_mask):
    """After masks with normalisation state, rows without a mask are embedded as before any mask, bit for bit."""
    backbone = lively(kind)
    x, engine = images(kind, 2), Engine(backbone, slots=1)
    with torch.inference_mode():
        expected = backbone.model(x)
    for seed in range(3):
        through(engine, make_mask(backbone, 0.5, seed, with_state=True), x)
        assert torch.equal(through(engine, None, x), expected)
        with torch.inference_mode():
            assert torch.equal(backbone.model(x), expected)


def test_normalisation_state_belongs_to_its_mask(make_mask):
    """The same bits with and without state embed differently, and neither leaks into the other."""
    backbone = lively(TINY_RESNET)
    plain = make_mask(backbone, 0.8, 3)
    stateful = replace(plain, state=make_mask(backbone, 0.8, 4, with_state=True).state, digest="sha256:stateful")
    engine, x = Engine(backbone), images(TINY_RESNET, 2)
    first, second = through(engine, plain, x), through(engine, stateful, x)
    assert not torch.allclose(first, second, rtol=1e-2)
    assert torch.equal(through(engine, plain, x), first)
    assert torch.equal(through(engine, stateful, x), second)


def test_a_mask_may_bring_a_part_of_the_state(make_mask):
    """Statistics that a mask does not bring are the backbone's own, also after a mask that brought them all."""
    backbone = lively(TINY_RESNET)
    full = make_mask(backbone, 0.8, 3, with_state=True)
    partial = replace(full, state=dict(list(full.state.items())[:3]), digest="sha256:partial")
    plain = plain_model(TINY_RESNET[0], TINY_RESNET[2], seed=5)
    plain.load_state_dict(weights_by_hand(backbone.model, partial))
    engine, x = Engine(backbone), images(TINY_RESNET, 2)
    through(engine, full, x)
    with torch.inference_mode():
        assert torch.allclose(through(engine, partial, x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_slot_is_written_by_several_threads(make_mask):
    """Two threads that write a slot give what one gives."""
    mask = make_mask(lively(KINDS["resnet"]), 0.7)
    x = images(KINDS["resnet"], 2)
    one, two = (through(Engine(lively(KINDS["resnet"]), threads=n), mask, x) for n in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_bfloat16_is_close_to_float32(name, make_mask):
    """An engine in bfloat16 returns float32 embeddings in the direction of the float32 engine's."""
    kind = KINDS[name]
    full, half = lively(kind), lively(kind, dtype=torch.bfloat16)
    mask = make_mask(full, 0.9, with_state=True)
    x = images(kind, 4)
    found, expected = through(Engine(half), mask, x), through(Engine(full), mask, x)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


def test_embeddings_can_be_trained_on(make_mask):
    """What embed returns is an ordinary tensor: a probe on it has gradients."""
    backbone = lively(TINY_VIT)
    rows = through(Engine(backbone), make_mask(backbone), images(TINY_VIT, 2))
    probe = torch.nn.Linear(backbone.n_features, 2)
    probe(rows).sum().backward()
    assert probe.weight.grad is not None


# Batches


def test_mixed_batches_equal_one_mask_at_a_time(tiny, make_mask):
    """A batch of several masks and the root embeds every segment as if it came alone."""
    backbone = lively(tiny)
    masks = [make_mask(backbone, 0.6, seed, with_state=True) for seed in range(3)]
    engine, x = Engine(backbone, slots=3), images(tiny, 8)
    a, b, c = (mask.digest for mask in masks)
    parts = [
        through(engine, m, x[s])
        for m, s in zip([*masks, None], (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8)), strict=True)
    ]
    segments = [Segment(a, 0, 3), Segment(b, 3, 4), Segment(c, 4, 7), Segment(None, 7, 8)]
    assert torch.allclose(engine.embed(x, segments).embeddings, torch.cat(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.6, 0.9999])
def test_a_mask_of_many_rows_in_a_mixed_batch_embeds_bit_for_bit_as_alone(density, make_mask, monkeypatch):
    """It has a forward of its own, from its slot or as a patch; those of few rows share one, with gaps between them."""
    backbone = lively(TINY_VIT)
    monkeypatch.setattr(costs, "ROWS_ALONE", 3 * (backbone.model.patch_embed.num_patches + 1))
    masks = [make_mask(backbone, density, seed, with_state=True) for seed in range(4)]
    engine, x = Engine(backbone, slots=4), images(TINY_VIT, 9)
    parts = (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8), slice(8, 9))
    alone = [through(engine, mask, x[rows]) for mask, rows in zip([*masks, None], parts, strict=True)]
    together = []
    monkeypatch.setattr(Mixed, "run", lambda *a, run=Mixed.run: together.append(a[-1]) or run(*a))
    digests = [*(mask.digest for mask in masks), None]
    found = engine.embed(x, [Segment(d, r.start, r.stop) for d, r in zip(digests, parts, strict=True)]).embeddings
    assert [(span.start, span.stop) for span in together[0]] == [(0, 1), (1, 2), (2, 3)]
    for rows, expected in zip(parts, alone, strict=True):
        assert torch.allclose(found[rows], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0:3], alone[0]) and torch.equal(found[4:7], alone[2])


def test_no_rows_are_no_embeddings():
    """A batch without rows and segments gives an empty table as wide as an embedding."""
    backbone = lively(TINY_VIT)
    found = Engine(backbone).embed(images(TINY_VIT, 0), [])
    assert found.embeddings.shape == (0, backbone.n_features)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=6))
def test_any_segments_give_every_row_its_own_mask(world, runs):
    """Whatever the segments and whoever was resident, each row is embedded through the mask that it names."""
    engine, masks, x, expected = world
    edges = np.minimum(np.cumsum([0, *(n for _, n in runs)]), len(x)).tolist()
    wanted = [m for (m, _), a, b in zip(runs, edges, edges[1:], strict=False) if b > a]
    segments, rows = [], []
    for m, start, stop in zip(wanted, edges, edges[1:], strict=False):
        segments.append(Segment(masks[m].digest if masks[m] else None, start, stop))
        rows.append(expected[m][start:stop])
    batch = x[: segments[-1].stop]
    if len({m for m in wanted if m}) > engine.capacity:
        with pytest.raises(OverCapacity):
            engine.embed(batch, segments)
    else:
        assert torch.allclose(engine.embed(batch, segments).embeddings, torch.cat(rows), rtol=1e-4, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    slots=st.integers(1, 4),
    densities=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_density_and_number_of_slots_give_the_same_embeddings(make_mask, slots, densities, seed):
    """Masks of any density, visited in any order with any number of slots, equal hand-masked weights."""
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, d, [seed, i]) for i, d in enumerate(densities)]
    plain = plain_model(TINY_VIT[0], TINY_VIT[2])
    state, x, expected = plain.state_dict(), images(TINY_VIT, 1), []
    original = {name: tensor.clone() for name, tensor in state.items()}
    for mask in masks:
        plain.load_state_dict(original)
        plain.load_state_dict(weights_by_hand(plain, mask))
        with torch.inference_mode():
            expected.append(plain(x))
    engine = Engine(backbone, slots=slots)
    for i in np.random.default_rng(seed).integers(len(masks), size=10):
        assert torch.allclose(through(engine, masks[i], x), expected[i], rtol=1e-4, atol=1e-5)


# Swaps


def test_the_least_recently_used_mask_is_swapped_out(make_mask):
    """A resident mask costs no swap; the one that was used longest ago makes room."""
    backbone = lively(TINY_VIT)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    engine, x = Engine(backbone, slots=2), images(TINY_VIT, 1)
    for mask in (a, b, c):
        engine.prepare(mask)
    visits = [(a, 1), (b, 1), (a, 0), (c, 1), (a, 0), (b, 1), (c, 1), (b, 0)]
    assert [engine.embed(x, [Segment(mask.digest, 0, 1)]).swaps for mask, _ in visits] == [n for _, n in visits]


def test_a_batch_never_swaps_out_its_own_masks(make_mask):
    """A resident mask that a batch names stays, even if it was the next to go."""
    backbone = lively(TINY_VIT)
    a, b, c = (make_mask(backbone, 0.5, seed) for seed in range(3))
    engine, x = Engine(backbone, slots=2), images(TINY_VIT, 2)
    expected = torch.cat([through(engine, c, x[:1]), through(engine, a, x[1:])])
    through(engine, b, x)
    found = engine.embed(x, [Segment(c.digest, 0, 1), Segment(a.digest, 1, 2)])
    assert torch.equal(found.embeddings, expected)
    assert found.swaps == 1


def test_a_mask_twice_in_a_batch_takes_one_slot(make_mask):
    """Segments that share a mask count once, in swaps and against the capacity."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone, 0.5)
    engine, x = Engine(backbone, slots=1), images(TINY_VIT, 3)
    engine.prepare(mask)
    segments = [Segment(mask.digest, 0, 1), Segment(None, 1, 2), Segment(mask.digest, 2, 3)]
    assert engine.embed(x, segments).swaps == 1


# Prepare and release


def test_a_released_mask_is_not_ready(make_mask):
    """Release forgets a mask, resident or not; releasing it again or an unknown one does nothing."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone)
    engine, x = Engine(backbone), images(TINY_VIT, 1)
    expected = through(engine, mask, x)
    assert engine.ready(mask.digest)
    for _ in range(2):
        engine.release(mask.digest)
    engine.release("sha256:unknown")
    assert not engine.ready(mask.digest)
    with pytest.raises(NotReady, match=mask.digest):
        engine.embed(x, [Segment(mask.digest, 0, 1)])
    assert torch.equal(through(engine, mask, x), expected)


def test_a_mask_released_and_prepared_between_batches_still_serves(make_mask):
    """Release and prepare without a batch in between leave the mask ready and right."""
    backbone = lively(TINY_VIT)
    a, b = (make_mask(backbone, 0.5, seed) for seed in range(2))
    engine, x = Engine(backbone, slots=1), images(TINY_VIT, 1)
    expected = {m.digest: through(engine, m, x) for m in (a, b)}
    for mask in (b, a, b, b, a):
        engine.release(mask.digest)
        assert torch.equal(through(engine, mask, x), expected[mask.digest])


def test_prepare_twice_does_nothing(make_mask):
    """A second prepare of one digest keeps what the first made."""
    backbone = lively(TINY_VIT)
    mask, engine = make_mask(backbone), Engine(backbone)
    engine.prepare(mask)
    first = engine._prepared[mask.digest]
    engine.prepare(mask)
    assert engine._prepared[mask.digest] is first


def test_prepare_and_release_from_other_threads_never_give_a_wrong_answer(make_mask):
    """While two threads prepare and release masks, embed gives each answer right or says NotReady."""
    backbone = lively(TINY_RESNET)
    masks = [make_mask(backbone, 0.6, seed, with_state=True) for seed in range(4)]
    engine, x = Engine(backbone, slots=2), images(TINY_RESNET, 1)
    expected = [through(engine, mask, x) for mask in masks]
    stop, failures, rng = threading.Event(), [], np.random.default_rng(0)

    def churn(seed: int) -> None:
        mine = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                mask = masks[mine.integers(len(masks))]
                engine.release(mask.digest) if mine.random() < 0.4 else engine.prepare(mask)
                time.sleep(0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    served, until = 0, time.monotonic() + 2
    while served <= 20 or time.monotonic() < until:
        i, j = rng.choice(len(masks), 2, replace=False)
        try:
            found = engine.embed(
                x.expand(2, -1, -1, -1), [Segment(masks[k].digest, n, n + 1) for n, k in enumerate((i, j))]
            )
        except NotReady:
            continue
        assert torch.equal(found.embeddings, torch.cat([expected[i], expected[j]]))
        served += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# Refusals


@pytest.mark.parametrize(
    "edges",
    [
        [(0, 1), (2, 4)],
        [(0, 3), (2, 4)],
        [(0, 5)],
        [(0, 3)],
        [(1, 4)],
        [(0, 0), (0, 4)],
        [(0, 4), (4, 4)],
        [(-1, 4)],
        [],
    ],
    ids=["gap", "overlap", "beyond", "short", "late", "empty first", "empty last", "negative", "none"],
)
def test_segments_that_are_not_the_batch_are_refused(edges):
    """Segments that leave rows out, name rows twice or name none are refused."""
    engine = Engine(lively(TINY_VIT))
    with pytest.raises(InvalidArgument, match="4 rows"):
        engine.embed(images(TINY_VIT, 4), [Segment(None, a, b) for a, b in edges])


def test_a_mask_that_was_not_prepared_is_refused():
    """NotReady names the digest."""
    engine = Engine(lively(TINY_VIT))
    with pytest.raises(NotReady, match="sha256:nowhere"):
        engine.embed(images(TINY_VIT, 1), [Segment("sha256:nowhere", 0, 1)])


def test_more_masks_than_the_capacity_are_refused(make_mask):
    """OverCapacity says how many masks a batch may mix, and the engine serves on."""
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.5, seed) for seed in range(3)]
    engine, x = Engine(backbone, slots=2), images(TINY_VIT, 3)
    expected = [through(engine, mask, x) for mask in masks]
    with pytest.raises(OverCapacity, match="at most 2"):
        engine.embed(x, [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)])
    assert all(torch.equal(through(engine, m, x), e) for m, e in zip(masks, expected, strict=True))


def test_masks_with_equal_bits_and_state_share_a_slot_until_the_last_is_released(make_mask, make_backbone):
    """Another head, or none, is another file: the weights are the same, and so is the slot."""
    backbone = make_backbone("test_resnet")
    mask = make_mask(backbone, 0.5, with_state=True)
    twin, other = replace(mask, digest="sha256:twin", metadata={"dataset": "x"}), make_mask(backbone, 0.5, rng=7)
    engine, x = Engine(backbone, slots=2), torch.randn(2, 3, 32, 32)
    for prepared in (mask, twin, other):
        engine.prepare(prepared)
    first = engine.embed(x, [Segment(mask.digest, 0, 2)])
    again = engine.embed(x, [Segment(twin.digest, 0, 2)])
    assert (first.swaps, again.swaps) == (1, 0) and torch.equal(first.embeddings, again.embeddings)
    assert (engine.memory().resident_masks, engine.memory().prepared_masks) == (1, 3)
    alone = Engine(make_backbone("test_resnet"), slots=2)
    for prepared in (mask, other):
        alone.prepare(prepared)
    assert engine.memory().masks == alone.memory().masks
    engine.release(mask.digest)
    assert engine.embed(x, [Segment(twin.digest, 0, 2)]).swaps == 0
    mixed = engine.embed(torch.cat([x, x]), [Segment(twin.digest, 0, 2), Segment(other.digest, 2, 4)]).embeddings
    assert torch.allclose(mixed[:2], first.embeddings, atol=1e-4)
    engine.release(twin.digest)
    engine.embed(x, [Segment(None, 0, 2)])
    assert not engine.ready(twin.digest) and engine.memory().prepared_masks == 1
    engine.prepare(twin)
    assert torch.allclose(engine.embed(x, [Segment(twin.digest, 0, 2)]).embeddings, first.embeddings, atol=1e-5)


def test_a_mask_without_a_digest_is_refused(make_mask):
    """A mask that is not a file yet has no identity to serve it by."""
    backbone = lively(TINY_VIT)
    with pytest.raises(InvalidArgument, match="digest"):
        Engine(backbone).prepare(replace(make_mask(backbone), digest=None))


def test_a_mask_of_another_backbone_is_refused(make_mask):
    """The same architecture with other weights is another backbone."""
    engine = Engine(lively(TINY_VIT))
    with pytest.raises(WrongBackbone, match="fingerprint"):
        engine.prepare(make_mask(lively(TINY_VIT, seed=1)))


def test_a_mask_trained_on_other_pixels_is_refused_or_warned_of(make_mask):
    """Another mean is refused; another crop is a warning."""
    backbone = lively(TINY_VIT)
    mask, engine = make_mask(backbone, with_preprocess=True), Engine(backbone)
    with pytest.raises(WrongBackbone, match="mean"):
        engine.prepare(replace(mask, preprocess={**mask.preprocess, "mean": [0.1, 0.2, 0.3]}))
    assert engine.prepare(mask) == []
    warnings = engine.prepare(replace(mask, preprocess={**mask.preprocess, "crop_pct": 0.123}))
    assert len(warnings) == 1
    assert "crop_pct 0.123" in warnings[0]


def test_a_batch_may_mix_more_masks_than_there_are_slots(tiny, make_mask):
    """With a capacity above the slots, every row is still its own mask's, whoever had to make room."""
    backbone = lively(tiny)
    masks = [make_mask(backbone, 0.5, seed, with_state=True) for seed in range(5)]
    engine, x = Engine(backbone, slots=2, capacity=5), images(tiny, 5)
    expected = torch.cat([through(engine, mask, x[i : i + 1]) for i, mask in enumerate(masks)])
    for _ in range(2):
        found = engine.embed(x, [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)])
        assert torch.equal(found.embeddings, expected)
        assert engine.memory().resident_masks == 2


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"threads": 0}, {"slots": -1}, {"capacity": 0}])
def test_an_engine_needs_a_slot_and_a_thread(sizes):
    """No slot, thread or capacity is refused."""
    with pytest.raises(InvalidArgument, match="at least 1"):
        Engine(lively(TINY_VIT), **sizes)


# Memory


def test_memory_is_counted_by_what_holds_it(make_mask):
    """theta, prepared masks and what was made of them are counted apart; a released mask counts no more."""
    backbone = lively(KINDS["resnet"])
    engine, x = Engine(backbone), images(KINDS["resnet"], 1)
    masks = [make_mask(backbone, 0.5, seed) for seed in range(2)]
    before = engine.memory()
    assert (before.theta, before.masks) == (4 * backbone.layout.n_elements, 0)
    # The root's packed copy, and the array where weights are folded.
    assert before.slots == (2 * before.theta if engine._theta.packs else 0)
    for mask in masks:
        engine.prepare(mask)
        assert 0.9 < engine.bytes_of(mask.digest) / (backbone.layout.n_weights / 8) < 1.05
    assert engine.memory().masks == sum(engine.bytes_of(mask.digest) for mask in masks)
    through(engine, masks[0], x)
    assert engine.memory().slots == before.slots + before.theta
    assert (engine.memory().resident_masks, engine.memory().prepared_masks) == (1, 2)
    engine.release(masks[1].digest)
    assert engine.bytes_of(masks[1].digest) == 0
    assert engine.memory().prepared_masks == 1


def test_slots_are_as_many_as_a_budget_holds():
    """A budget in bytes gives whole slots, and never none."""
    backbone = lively(TINY_VIT)
    slot = 4 * backbone.layout.n_elements
    assert [slots_within(backbone, budget) for budget in (0, slot, 3 * slot - 1, 3 * slot)] == [1, 1, 2, 3]
