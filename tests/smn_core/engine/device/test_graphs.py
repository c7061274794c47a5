"""Forwards that are recorded once and replayed give what plain forwards give, whatever the slots hold by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smn_core.engine import Engine, Segment
from smn_core.engine.device import graphs
from smn_core.engine.device.ways import Ways
from tests.smn_core.builders import TINY_RESNET, TINY_VIT, by_hand, images
from tests.smn_core.engine.tape import Tape, fitted, prepared, right, some_masks


@pytest.mark.parametrize("kind", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_recorded_forwards_follow_their_slots(kind):
    """Two slots, three masks with and without normalisation state, the root: replays read what a slot holds now."""
    engine, tape, masks, x, expected = prepared(kind, (0.5, 0.97, 0.999), slots=2, kernels=False)
    for m in (1, 1, 1, 2, 2, 2, 1, 3, 3, 0, 0, 0, 2, 1, 3, 1, 0):
        assert right(engine, x, masks, expected, [(m, 3)])
    assert tape.recorded == 3
    assert right(engine, x, masks, expected, [(3, 6)])


def test_a_resnet_runs_mixed_batches_by_segment():
    """Convolutions keep the swap, segment by segment."""
    engine, _, masks, x, expected = prepared(TINY_RESNET, (0.5, 0.97, 0.999), slots=1, kernels=False)
    for _ in range(3):
        assert right(engine, x, masks, expected, [(1, 2), (0, 1), (2, 1), (3, 2)])


def test_a_forward_that_cannot_be_recorded_runs_as_it_is(caplog):
    """One line says why; every row is right."""

    def fail(_: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    backbone = fitted(TINY_RESNET)
    masks = some_masks(backbone, (0.5,))
    engine, x = Engine(backbone, slots=1, ways=Ways(False, fail)), images(TINY_RESNET, 3)
    engine.prepare(masks[1])
    expected = by_hand(TINY_RESNET, masks, x)
    for m in (1, 1, 1, 0, 0, 1):
        assert right(engine, x, masks, expected, [(m, 3)])
    assert caplog.text.count("forwards run without graphs: operation not permitted") == 1


def test_batches_are_filled_up_to_few_sizes():
    """At most an eighth of a batch beyond 16 images is filling; what is too large or another size runs as it is."""
    captured = graphs.Graphs((3, 4, 4), torch.float32, torch.device("cpu"), Tape(torch.nn.Identity()))
    sizes = [captured.size_for(torch.zeros(n, 3, 4, 4)) for n in range(1, graphs.MAX_IMAGES + 1)]
    assert all(size is not None and n <= size < n + 8 for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 12
    assert captured.size_for(torch.zeros(graphs.MAX_IMAGES + 1, 3, 4, 4)) is None
    assert captured.size_for(torch.zeros(1, 3, 5, 4)) is None


def test_images_of_another_size_are_embedded_too():
    """An engine takes what its model takes; only the backbone's own size is recorded."""
    backbone = fitted(TINY_RESNET)
    tape = Tape(backbone.model)
    engine, x = Engine(backbone, ways=Ways(False, tape)), torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        expected = backbone.model(x)
    for _ in range(3):
        assert torch.allclose(engine.embed(x, [Segment(None, 0, 2)]).embeddings, expected, rtol=1e-5, atol=1e-6)
    assert tape.recorded == 0


def test_the_oldest_recordings_go(monkeypatch):
    """No more recordings than the limit; one that went is recorded again."""
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    engine, tape, masks, x, expected = prepared(TINY_RESNET, (0.5, 0.9, 0.97), slots=3, kernels=False)
    for m in (1, 1, 2, 2, 3, 3, 1, 2, 3):
        assert right(engine, x, masks, expected, [(m, 2)])
    assert len(engine._graphs._replays) == 2
    assert tape.recorded > 3
