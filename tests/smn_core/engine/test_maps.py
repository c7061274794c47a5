"""A mask's map is applied to its rows and to no others, whichever way the batch was run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from smn_core.affine import Affine
from smn_core.backbone import Backbone
from smn_core.engine import Engine, Segment, costs
from smn_core.engine.device.ways import Ways
from smn_core.engine.maps import apply_maps, apply_maps_slowly, prepare_map
from smn_core.mask import TaskMask
from tests.conftest import build_affine
from tests.smn_core.builders import KINDS, TINY_RESNET, TINY_VIT, all_on, by_hand, images, lively
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form
from tests.smn_core.engine.tape import Tape, fitted
from tests.smn_core.engine.test_ways import WAYS, relative_error

FORMS = ("diagonal", "float32", "float16", "int8")


def with_maps(backbone: Backbone, make_mask, densities=(0.5, 0.9, 0.995, 0.999)) -> list[TaskMask]:
    """A mask with a map of each form, and after each the same bits without one."""
    masks = []
    for i, density in enumerate(densities):
        mapped = make_mask(backbone, density, i, with_state=i % 2 == 0, with_affine=FORMS[i % len(FORMS)])
        masks += [mapped, replace(mapped, affine=None, digest=f"{mapped.digest}-plain")]
    return masks


def mapped_by_hand(kind, masks: list[TaskMask | None], x: Tensor) -> list[Tensor]:
    """What a plain model with masked weights makes of each image, then the map in numpy, in float64."""
    found = []
    for mask, z in zip(masks, by_hand(kind, masks, x), strict=True):
        slow = z if mask is None or mask.affine is None else torch.from_numpy(mask.affine.apply_slowly(z.numpy()))
        found.append(slow)
    return found


def check_every_mixture(engine: Engine, kind, masks: list[TaskMask | None], seeds: int = 6) -> None:
    """Alone and in batches of one to six segments, every row is what `mapped_by_hand` says."""
    x = images(kind, 6)
    for mask in masks:
        if mask is not None:
            engine.prepare(mask)
    expected, rng = mapped_by_hand(kind, masks, x), np.random.default_rng(0)
    for n_segments in (1, 6, 3, 6, 2, 5)[:seeds]:
        cuts = [0, *sorted(rng.choice(range(1, 6), n_segments - 1, replace=False).tolist()), 6]
        chosen = rng.choice(len(masks), n_segments).tolist()
        segments = [
            Segment(masks[m] and masks[m].digest, a, b) for m, a, b in zip(chosen, cuts, cuts[1:], strict=False)
        ]
        wanted = torch.cat([expected[m][a:b] for m, a, b in zip(chosen, cuts, cuts[1:], strict=False)])
        assert relative_error(engine.embed(x, segments).embeddings, wanted) < 2e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["resnet", "vit", "convnext"])
def test_every_way_maps_the_rows_of_a_mapped_mask_and_no_others(name, way, make_mask, monkeypatch):
    """In a slot, as a patch, corrected from the shared base, mixed with the root and with the same bits unmapped."""
    monkeypatch.setattr(costs, "CPU", WAYS[way])
    backbone = lively(KINDS[name])
    masks: list[TaskMask | None] = [None, *with_maps(backbone, make_mask)]
    engine = Engine(backbone, slots=9)
    engine._mixes = engine._splittable
    check_every_mixture(engine, KINDS[name], masks)


@pytest.mark.parametrize("kind", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_recorded_forwards_are_mapped_too(kind, make_mask):
    """A replay writes its embeddings where it wrote the last: the map must not be applied in there."""
    backbone = fitted(kind)
    masks: list[TaskMask | None] = [None, *with_maps(backbone, make_mask, (0.5, 0.97))]
    tape = Tape(backbone.model)
    engine, x = Engine(backbone, slots=2, capacity=8, ways=Ways(False, tape)), images(kind, 3)
    for mask in masks[1:]:
        engine.prepare(mask)
    expected = mapped_by_hand(kind, masks, x)
    for m in (1, 1, 1, 2, 2, 2, 1, 1, 0, 0, 0, 3, 3, 3, 4, 1):
        found = engine.embed(x, [Segment(masks[m] and masks[m].digest, 0, 3)]).embeddings
        assert relative_error(found, expected[m]) < 2e-5
    assert tape.recorded > 2


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_that_is_all_on_may_have_a_map(form, make_mask):
    """Its embeddings are the backbone's own, mapped; the backbone's rows beside it stay bit for bit."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone, 0.9, with_affine=form)
    mask = replace(mask, packed=all_on(mask), digest="sha256:all-on")
    engine, x = Engine(backbone), images(TINY_VIT, 4)
    root = engine.embed(x, [Segment(None, 0, 4)]).embeddings
    engine.prepare(mask)
    alone = engine.embed(x, [Segment(mask.digest, 0, 4)]).embeddings
    mixed = engine.embed(x, [Segment(mask.digest, 0, 2), Segment(None, 2, 4)]).embeddings
    expected = torch.from_numpy(mask.affine.apply_slowly(root.numpy()))
    assert relative_error(alone, expected) < 1e-5
    assert relative_error(mixed[:2], expected[:2]) < 1e-5
    assert torch.equal(mixed[2:], root[2:])


def test_a_batch_without_maps_is_the_same_bit_for_bit(make_mask):
    """That another mask of the engine has a map changes no bit of the rows without one."""
    backbone = lively(TINY_RESNET)
    plain, mapped = make_mask(backbone, 0.8, 1, with_state=True), make_mask(backbone, 0.8, 2, with_affine="float32")
    engine, x = Engine(backbone), images(TINY_RESNET, 3)
    engine.prepare(plain)
    before = engine.embed(x, [Segment(plain.digest, 0, 3)]).embeddings
    engine.prepare(mapped)
    engine.embed(x, [Segment(mapped.digest, 0, 3)])
    assert torch.equal(engine.embed(x, [Segment(plain.digest, 0, 3)]).embeddings, before)


def test_a_released_map_is_gone_and_comes_back_with_its_mask(make_mask):
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone, with_affine="float32")
    plain = replace(mask, affine=None)
    engine, x = Engine(backbone), images(TINY_VIT, 2)
    whole = [Segment(mask.digest, 0, 2)]
    engine.prepare(mask)
    mapped = engine.embed(x, whole).embeddings
    engine.release(mask.digest)
    assert engine.bytes_of(mask.digest) == 0
    assert engine.memory().masks == 0
    engine.prepare(plain)  # what a digest cannot do in a registry: the map would have to stay behind to be found
    unmapped = engine.embed(x, whole).embeddings
    assert relative_error(torch.from_numpy(mask.affine.apply_slowly(unmapped.numpy())), mapped) < 1e-5
    assert relative_error(unmapped, mapped) > 0.1


def test_a_bfloat16_backbone_is_mapped_in_float32(make_mask):
    """The map acts on the float32 embeddings that the engine gives out: rounding stays the backbone's own."""
    backbone = lively(KINDS["vit"], dtype=torch.bfloat16)
    masks: list[TaskMask] = with_maps(backbone, make_mask, (0.9, 0.995))
    engine, x = Engine(backbone), images(KINDS["vit"], 4)
    for mask in masks:
        engine.prepare(mask)
    for mapped, plain in zip(masks[::2], masks[1::2], strict=True):
        found = engine.embed(x, [Segment(mapped.digest, 0, 4)]).embeddings
        bare = engine.embed(x, [Segment(plain.digest, 0, 4)]).embeddings
        assert found.dtype == torch.float32
        assert relative_error(found, torch.from_numpy(mapped.affine.apply_slowly(bare.numpy()))) < 1e-5


@pytest.mark.parametrize(
    ("form", "n_numbers"),
    [("diagonal", lambda d: 2 * d), ("float32", lambda d: d + d * d), ("int8", lambda d: d + d * d)],
)
def test_the_bytes_of_a_map_are_counted_as_the_engine_keeps_it(form, n_numbers, make_mask):
    """In float32, also where the file stores fewer bytes."""
    backbone = lively(TINY_VIT)
    mapped = make_mask(backbone, with_affine=form)
    plain = replace(mapped, affine=None, digest="sha256:plain")
    engine = Engine(backbone)
    for mask in (plain, mapped):
        engine.prepare(mask)
    more = engine.bytes_of(mapped.digest) - engine.bytes_of(plain.digest)
    assert more == 4 * n_numbers(backbone.n_features)
    # Both have the same bits, which the engine keeps once.
    assert engine.memory().masks == engine.bytes_of(mapped.digest)


def test_the_engine_keeps_no_memory_of_the_file(make_mask):
    """A change of the arrays behind a mask, as a mapped file would have them, changes no embedding."""
    affine = build_affine(4)
    mean, matrix = affine.mean.copy(), affine.matrix.copy()
    prepared = prepare_map(Affine(mean, matrix=matrix))
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = prepared.apply(z)
    for array in (mean, matrix):
        array.setflags(write=True)
        array[:] = 0
    assert torch.equal(prepared.apply(z), before)


@pytest.mark.parametrize("form", FORMS)
def test_maps_in_place_agree_with_the_slow_reference(form):
    z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    segments = [Segment("a", 0, 2), Segment(None, 2, 3), Segment("b", 3, 6), Segment("a", 6, 7)]
    affine = build_affine(5, 1, form)
    expected, found = apply_maps_slowly(z, segments, {"a": affine}), z.clone()
    apply_maps(found, segments, {"a": prepare_map(affine)})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2:6], z[2:6])
    assert not torch.equal(found[:2], z[:2])
