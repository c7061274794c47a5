"""What the model wears is the mask that was put on last, whatever was worn, and whatever failed, before."""

from __future__ import annotations

import numpy as np
import pytest
import signatures
import torch
from torch import nn

from smn_core.backbone import Backbone
from smn_core.engine import Engine, Segment, costs
from smn_core.engine.patch import Patch
from smn_core.engine.sites import Site
from smn_core.engine.slots import Slots
from smn_core.engine.theta import Theta
from smn_core.engine.wardrobe import Wardrobe
from smn_core.engine.wearable import WearableMask, make_wearable
from smn_core.mask import TaskMask
from tests.smn_core.builders import TINY_RESNET, TINY_VIT, images, lively, weights_by_hand
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form
from tests.smn_core.engine.test_engine import through
from tests.smn_core.engine.test_ways import WAYS

DENSITIES = (0.05, 0.3, 0.7, 0.9, 0.995, 1.0)


def wardrobe_of(backbone: Backbone, *masks: TaskMask, n_slots: int = 1, way: str = "slot") -> tuple:
    """A wardrobe of a backbone, and its masks in the form that can be worn."""
    theta = Theta(backbone, threads=1)
    wardrobe = Wardrobe(theta, Slots(theta, n_slots), Patch(theta.flat, theta.layout, theta.applier))
    return wardrobe, *(make_wearable(mask, theta, WAYS[way]) for mask in masks)


# Putting masks on


def test_the_model_wears_the_mask_that_is_put_on(make_mask):
    """Parameters and statistics of the model are theta' and the mask's state; afterwards theta again."""
    backbone = lively(TINY_RESNET)
    original = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    mask = make_mask(backbone, 0.6, with_state=True)
    expected = weights_by_hand(backbone.model, mask)
    wardrobe, worn_mask = wardrobe_of(backbone, mask)
    wardrobe.wear(worn_mask)
    worn = backbone.model.state_dict()
    assert list(worn) == list(original)
    assert all(torch.allclose(worn[name], expected[name], rtol=1e-6, atol=0) for name in expected)
    wardrobe.wear(None)
    assert all(torch.equal(tensor, original[name]) for name, tensor in backbone.model.state_dict().items())


def test_what_no_mask_changes_is_shared(make_mask):
    """A mask that is put on leaves the frozen parameters the very same tensors."""
    backbone = lively(TINY_RESNET)
    wardrobe, mask = wardrobe_of(backbone, make_mask(backbone))
    frozen = {n: p for n, p in backbone.model.named_parameters() if n not in {t.name for t in backbone.layout}}
    wardrobe.wear(mask)
    worn = dict(backbone.model.named_parameters())
    assert frozen
    assert all(worn[name] is parameter for name, parameter in frozen.items())


def test_a_tied_parameter_is_swapped_in_every_place(make_mask):
    """Two modules that share one weight both wear the mask."""
    backbone = lively(TINY_VIT)
    model = backbone.model
    model.twin = nn.Linear(1, 1, bias=False)
    model.twin.weight = model.blocks[0].attn.proj.weight
    wardrobe, mask = wardrobe_of(backbone, make_mask(backbone, 0.5))
    wardrobe.wear(mask)
    assert model.twin.weight is model.blocks[0].attn.proj.weight
    assert (model.twin.weight == 0).any()
    wardrobe.wear(None)
    assert model.twin.weight is model.blocks[0].attn.proj.weight
    assert not (model.twin.weight == 0).any()


def test_only_weights_that_are_written_count(make_mask):
    """A slot counts when it is written, a patch whenever it is put on; what is worn already costs nothing."""
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.995, seed) for seed in range(2)]
    wardrobe, a, b = wardrobe_of(backbone, *masks, n_slots=2)
    assert [wardrobe.wear(mask) for mask in (a, a, b, None, a, b)] == [1, 0, 1, 0, 0, 0]
    wardrobe, a, b = wardrobe_of(lively(TINY_VIT), *masks, way="patch")
    assert [wardrobe.wear(mask) for mask in (a, a, b, None, a, b)] == [1, 0, 1, 0, 1, 1]


def test_masks_that_are_brought_together_do_not_displace_each_other(make_mask):
    """All have slots afterwards, also the one that was the next to make room; too many are refused, none is written."""
    backbone = lively(TINY_VIT)
    wardrobe, a, b, c = wardrobe_of(backbone, *(make_mask(backbone, 0.5, seed) for seed in range(3)), n_slots=2)
    assert wardrobe.bring_all([a, b]) == 2
    assert wardrobe.bring_all([c, a]) == 1
    assert [wardrobe.bring(mask) for mask in (a, c)] == [0, 0]
    assert wardrobe.bring_all([a, b, c]) is None
    assert [wardrobe.bring(mask) for mask in (a, c)] == [0, 0]


def test_a_mask_whose_slot_was_taken_is_put_on_anew(make_mask):
    """The model wears a mask while others take all slots: it finds the mask's weights again, in another slot."""
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.5, seed) for seed in range(3)]
    wardrobe, a, b, c = wardrobe_of(backbone, *masks, n_slots=2)
    expected = worn_by(wardrobe, backbone, a)
    wardrobe.bring(b)
    wardrobe.bring(c)
    assert wardrobe.wear(a) == 1
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(backbone).items())


@pytest.mark.parametrize("tiny", [TINY_RESNET, TINY_VIT], ids=["resnet", "vit"])
def test_ten_thousand_swaps_leave_no_trace(tiny, make_mask):
    """After 10,000 random swaps the backbone and every mask embed as before, bit for bit."""
    backbone = lively(tiny)
    masks = [make_mask(backbone, d, i, with_state=True) for i, d in enumerate(DENSITIES)]
    engine, x = Engine(backbone, slots=2), images(tiny, 1)
    before = [through(engine, mask, x) for mask in (None, *masks)]
    prepared = [engine._prepared[mask.digest] for mask in masks]
    with signatures.unchecked():
        for i in np.random.default_rng(0).integers(len(masks), size=10_000):
            engine._wardrobe.bring(prepared[i])
            engine._wardrobe.wear(prepared[i] if i % 2 else None)
    after = [through(engine, mask, x) for mask in (None, *masks)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Failures


def test_a_failed_write_of_a_slot_is_never_served(make_mask, monkeypatch):
    """A swap that fails half way leaves the mask absent: the next batch writes its slot anew."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone, 0.5)
    engine, x = Engine(backbone, slots=1), images(TINY_VIT, 1)
    expected = through(engine, mask, x)
    through(engine, make_mask(backbone, 0.5, 1), x)

    def fail_half_way(loaded, out):
        out[: len(out) // 2] = 7.0
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(engine._theta.applier, "write", fail_half_way)
        with pytest.raises(MemoryError):
            through(engine, mask, x)
    assert torch.equal(through(engine, mask, x), expected)


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (1, 1, 16, 16)])
def test_images_of_a_wrong_shape_leave_the_engine_right(make_mask, shape):
    """After a forward that failed inside the model, a mask and the root are embedded as before."""
    backbone = lively(TINY_VIT)
    mask = make_mask(backbone)
    engine, x = Engine(backbone), images(TINY_VIT, 1)
    before = [through(engine, m, x) for m in (mask, None)]
    with pytest.raises(Exception, match=r"\S"):
        engine.embed(torch.zeros(shape), [Segment(mask.digest, 0, 1)])
    assert all(torch.equal(through(engine, m, x), e) for m, e in zip((mask, None), before, strict=True))
    assert torch.equal(through(engine, None, x), before[1])


@pytest.mark.parametrize("where", ["take_out", "put_back"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_patch_that_fails_half_way_is_never_served(make_mask, monkeypatch, where, mixed):
    """After a failure while the shared array was written, every mask embeds as before."""
    monkeypatch.setattr(costs, "CPU", WAYS["patch"])
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.99, seed) for seed in range(2)]
    engine, x = Engine(backbone), images(TINY_VIT, 2)
    for mask in masks:
        engine.prepare(mask)
    alone = [[Segment(mask.digest, 0, 2)] for mask in masks]
    expected = [engine.embed(x, segments).embeddings for segments in alone]

    def fail_half_way(flat, *others):
        flat[: len(flat) // 2] = 7.0
        raise MemoryError

    batch = [Segment(masks[0].digest, 0, 1), Segment(masks[1].digest, 1, 2)] if mixed else alone[0]
    with monkeypatch.context() as broken:
        broken.setattr(f"smn_core.engine.patch.{where}", fail_half_way)
        with pytest.raises(MemoryError):
            engine.embed(x, batch)
    assert torch.equal(
        engine.embed(x, [Segment(None, 0, 2)]).embeddings,
        Engine(lively(TINY_VIT)).embed(x, [Segment(None, 0, 2)]).embeddings,
    )
    for segments, wanted in zip(alone, expected, strict=True):
        assert torch.equal(engine.embed(x, segments).embeddings, wanted)


@pytest.mark.parametrize("way", ["slot", "patch"])
@pytest.mark.parametrize("number", [0, 1, -1])
def test_modules_that_were_changed_half_way_are_changed_again(make_mask, monkeypatch, way, number):
    """After a failure between two modules, the mask that was worn before is put on in full, and so is the root."""
    backbone = lively(TINY_RESNET)
    masks = [make_mask(backbone, 0.99, seed, with_state=True) for seed in range(2)]
    wardrobe, *worn = wardrobe_of(backbone, *masks, n_slots=2, way=way)
    original = tensors(backbone)
    expected = [(mask, worn_by(wardrobe, backbone, mask)) for mask in worn]
    wardrobe.wear(worn[0])
    broken_site, show = wardrobe._theta.sites[number], Site.show

    def fail(site, weights, state):
        if site is broken_site:
            raise MemoryError
        show(site, weights, state)

    with monkeypatch.context() as broken:
        broken.setattr(Site, "show", fail)
        with pytest.raises(MemoryError):
            wardrobe.wear(worn[1])
    for mask, wanted in [*expected, (None, original), *expected[::-1]]:
        found = worn_by(wardrobe, backbone, mask)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_reset_puts_the_root_on_whatever_was_done_to_the_model(make_mask):
    """Also where the wardrobe has the root for worn and somebody else showed the model other weights."""
    backbone = lively(TINY_VIT)
    wardrobe, mask = wardrobe_of(backbone, make_mask(backbone, 0.5))
    original = tensors(backbone)
    wardrobe.bring(mask)
    wardrobe.wear(None)
    wardrobe._theta.show(wardrobe._slots.views_of(mask), {})
    wardrobe.reset()
    assert all(torch.equal(tensor, original[name]) for name, tensor in tensors(backbone).items())


def tensors(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def worn_by(wardrobe: Wardrobe, backbone: Backbone, mask: WearableMask | None) -> dict[str, torch.Tensor]:
    """What the model holds while it wears a mask."""
    wardrobe.wear(mask)
    return tensors(backbone)
