"""The engine with the kernels, and with forwards that are recorded: the way that a GPU takes, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from smn_core.engine import Engine, Segment
from smn_core.engine.device.ways import Ways
from smn_core.engine.kernels import linear
from tests.smn_core.builders import by_hand, images
from tests.smn_core.engine.tape import Tape, fitted, prepared, right, some_masks

TINY_VIT = ("vit_tiny_patch16_224", 16, {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2})
TINY_CONVNEXT = ("test_convnext", 32, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]})


def test_a_vit_mixes_any_masks_without_a_slot():
    """Mixed batches, recorded once and replayed for other masks, segments and fewer images; no slot is written."""
    engine, tape, masks, x, expected = prepared(TINY_VIT, (0.5, 0.97, 0.999, 1.0), slots=1, kernels=True)
    for batch in ([(1, 1), (0, 1), (3, 1)], [(2, 2), (4, 1)], [(3, 1), (2, 2)]):
        assert right(engine, x, masks, expected, batch)
    assert tape.recorded == 1
    assert engine.memory().resident_masks == 0


def test_a_network_of_both_takes_slots_for_its_convolutions():
    """A ConvNeXt's linear layers run in one launch for all masks, its convolutions from the slots, by segment."""
    engine, _, masks, x, expected = prepared(TINY_CONVNEXT, (0.5, 0.97), slots=2, kernels=True)
    assert engine._mixes
    assert right(engine, x, masks, expected, [(1, 1), (0, 1), (2, 1)])
    assert engine.memory().resident_masks == 2


def test_half_precision_points_where_float32_does():
    """In bfloat16, mixed and alone, in slots and without."""
    backbone = fitted(TINY_VIT, torch.bfloat16)
    masks = some_masks(backbone, (0.6,))
    engine = Engine(backbone, slots=1, ways=Ways(True, Tape(backbone.model)))
    engine.prepare(masks[1])
    x = images(TINY_VIT, 2)
    root, expected = by_hand(TINY_VIT, masks, x)
    mixed = engine.embed(x, [Segment(None, 0, 1), Segment(masks[1].digest, 1, 2)]).embeddings
    assert torch.cosine_similarity(mixed, torch.stack([root[0], expected[1]])).min() > 0.999
    alone = engine.embed(x, [Segment(masks[1].digest, 0, 2)]).embeddings
    assert torch.cosine_similarity(alone, expected).min() > 0.999


def test_a_kernel_that_fails_is_not_used(monkeypatch, caplog):
    """Where the compiler gives up on the linear layer, mixed batches run in torch's operations; one line says so."""

    def fail(*_: object) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(linear, "shared_base", fail)
    engine, _, masks, x, expected = prepared(TINY_VIT, (0.5, 0.97), slots=2, kernels=True)
    assert right(engine, x, masks, expected, [(1, 1), (0, 1), (2, 1)])
    assert caplog.text.count("without Triton's kernels: RuntimeError: out of resource") == 1


def test_a_kernel_that_writes_other_weights_is_not_used(monkeypatch, caplog):
    """theta' is compared with torch's before any mask is served by the kernel."""
    monkeypatch.setattr("smn_core.engine.kernels.unpack.KernelApplier.write", lambda *given: given[-1].zero_())
    engine, _, masks, x, expected = prepared(TINY_VIT, (0.5,), slots=1, kernels=True)
    assert right(engine, x, masks, expected, [(1, 3)])
    assert caplog.text.count("torch's operations instead of Triton's kernels: RuntimeError: the kernel writes") == 1
