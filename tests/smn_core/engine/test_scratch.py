"""Scratch holds theta' of one module for one mask, whatever it held before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smn_core.engine import Engine, Segment, costs
from smn_core.engine.apply import TorchApplier, apply_slowly
from smn_core.engine.compact import make_compact
from smn_core.engine.scratch import Scratch
from smn_core.engine.theta import Theta
from tests.smn_core.builders import KINDS, TINY_VIT, images, lively
from tests.smn_core.engine.every_form import every_form  # noqa: F401 - every test here runs in each form
from tests.smn_core.engine.test_ways import WAYS


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_module_gets_its_weights_bit_for_bit(name, dtype, make_mask):
    """Weight, bias and whatever else of a module is maskable equals the reference, listed or packed, in any order."""
    backbone = lively(KINDS[name], dtype=dtype)
    theta = Theta(backbone, threads=1)
    scratch = Scratch(theta)
    for density in (0.5, 0.93, 0.999, 1.0):
        mask = make_mask(backbone, density)
        compact = make_compact(mask, theta.device)
        expected = torch.from_numpy(apply_slowly(theta.flat.float().numpy(), mask)).to(dtype)
        for site in theta.sites:
            found = scratch.write(compact, site)
            assert set(found) == set(site.parameters.values())
            for index in site.tensors:
                tensor = theta.layout.tensors[index]
                assert torch.equal(found[tensor.name].flatten(), expected[tensor.elements])
    largest = max(sum(theta.layout.tensors[t].n_weights for t in site.tensors) for site in theta.sites)
    assert largest * theta.flat.itemsize <= scratch.nbytes < theta.flat.nbytes / 2


def test_without_the_loop_there_is_none_and_masks_take_slots(make_mask, monkeypatch):
    """Where numba is missing a mixed batch reads its masks from slots, and its rows are the same."""
    masks = [make_mask(lively(TINY_VIT), 0.5, seed) for seed in range(2)]
    x, found = images(TINY_VIT, 2), []
    for loop in (True, False):
        if not loop:
            monkeypatch.setattr("smn_core.engine.theta.applier_for", lambda *of: TorchApplier(*of[:2]))
        engine = Engine(lively(TINY_VIT), slots=2)
        for mask in masks:
            engine.prepare(mask)
        found.append(engine.embed(x, [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)]))
        assert engine._mixed.scratch.available == loop
        assert engine.memory().resident_masks == (0 if loop else 2)
    assert torch.allclose(found[0].embeddings, found[1].embeddings, rtol=1e-5, atol=1e-6)
    assert found[0].swaps == found[1].swaps == 2


def test_a_write_that_fails_half_way_is_never_served(make_mask, monkeypatch):
    """After a failure inside the loop the same batch, each mask alone and the root embed as before."""
    monkeypatch.setattr(costs, "CPU", WAYS["scratch"])
    backbone = lively(TINY_VIT)
    masks = [make_mask(backbone, 0.5, seed) for seed in range(2)]
    engine, x = Engine(backbone), images(TINY_VIT, 2)
    for mask in masks:
        engine.prepare(mask)
    mixed = [Segment(mask.digest, i, i + 1) for i, mask in enumerate(masks)]
    batches = [mixed, *([Segment(digest, 0, 2)] for digest in (masks[0].digest, masks[1].digest, None))]
    expected = [engine.embed(x, segments).embeddings for segments in batches]
    for mask in masks:  # their slots are free again
        engine.release(mask.digest)
    engine.embed(x, [Segment(None, 0, 2)])
    for mask in masks:
        engine.prepare(mask)

    def fail(mask, chunks, out):
        out[: len(out) // 2] = np.nan
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(engine._theta.applier, "write_near", fail)
        with pytest.raises(MemoryError):
            engine.embed(x, mixed)
    for segments, wanted in zip(batches, expected, strict=True):
        assert torch.equal(engine.embed(x, segments).embeddings, wanted)
