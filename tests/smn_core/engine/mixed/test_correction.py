"""The shared base: one compiled pass gives every mask's own output of a layer."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smn_core.engine.compact import CompactMask
from smn_core.engine.mixed.correction import Corrector, correct_slowly
from smn_core.engine.mixed.lists import Lists
from smn_core.engine.span import Span
from smn_core.engine.wearable import WearableMask
from smn_core.layout import Layout, MaskableTensor


def layer(n_in: int, n_out: int) -> Layout:
    """A layout of something else, a weight and a bias."""
    weight = MaskableTensor("w", (n_out, n_in), 1)
    bias = MaskableTensor("b", (n_out,), 1 + weight.n_bytes)
    return Layout((MaskableTensor("other", (7,), 0), weight, bias), {}, 1)


def listed(layout: Layout, share: float, rng: np.random.Generator) -> WearableMask:
    """A mask that lists its OFF weights, some of every tensor."""
    lists, counts, scales = [], [0], []
    for tensor in layout:
        off = np.flatnonzero(rng.random(tensor.n_weights) < share) + tensor.first_element
        lists.append(off)
        counts.append(len(off))
        scales.append(1 / np.sqrt(1 - min(len(off), tensor.n_weights - 1) / tensor.n_weights))
    off = torch.from_numpy(np.concatenate(lists).astype(np.int32))
    bounds = np.cumsum(counts).astype(np.int32)
    return WearableMask("", CompactMask(off, bounds, {}, np.array(scales, np.float32)), {})


@settings(max_examples=40, deadline=None)
@given(
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 40),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    share=st.sampled_from([0.0, 0.02, 0.3]),
    threads=st.integers(1, 3),
    kind=st.sampled_from(["maskable", "fixed", "none"]),
    seed=st.integers(0, 2**31),
)
def test_it_equals_a_layer_of_its_own_for_every_mask(n_in, n_out, lengths, share, threads, kind, seed):
    """Any shapes, spans, root among them, on any number of threads: to 1e-5 what masked weights give."""
    rng, layout = np.random.default_rng(seed), layer(n_in, n_out)
    theta = torch.from_numpy(rng.standard_normal(layout.n_elements, np.float32))
    _, at_weight, at_bias = layout.tensors
    weight, bias = theta[at_weight.elements].view(n_out, n_in), theta[at_bias.elements]
    edges = np.cumsum([0, *lengths]).tolist()
    masks = [None if rng.random() < 0.3 else listed(layout, share, rng) for _ in lengths]
    spans = [Span(a, b, mask) for a, b, mask in zip(edges, edges[1:], masks, strict=False)]
    x = torch.from_numpy(rng.standard_normal((edges[-1], n_in), np.float32))
    out = x @ weight.t()
    own_bias = {"maskable": 2, "fixed": bias, "none": None}[kind]
    Corrector(theta, layout, threads).correct(out, x, Lists(spans, 3), 1, own_bias)
    if kind == "maskable":
        expected = correct_slowly(x, spans, (1, weight, at_weight.first_element), (2, bias, at_bias.first_element))
    else:  # index 0 is of another tensor, which no OFF weight of this bias is in
        zero = torch.zeros(n_out)
        whole = [Span(s.start, s.stop, s.mask and without(s.mask, 2)) for s in spans]
        fixed = bias if kind == "fixed" else zero
        expected = correct_slowly(x, whole, (1, weight, at_weight.first_element), (2, fixed, at_bias.first_element))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def without(mask: WearableMask, tensor: int) -> WearableMask:
    """The same mask with its last tensor all ON."""
    compact = mask.compact
    bounds, scales = compact.bounds.copy(), compact.scales.copy()
    bounds[tensor + 1], scales[tensor] = bounds[tensor], 1.0
    return WearableMask("", CompactMask(compact.off, bounds, compact.packed, scales), {})


def test_without_numba_it_is_not_available_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    layout = layer(3, 3)
    assert not Corrector(torch.zeros(layout.n_elements), layout).available
    assert "without the shared base" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_for_float32_alone(dtype):
    layout = layer(3, 3)
    assert not Corrector(torch.zeros(layout.n_elements, dtype=dtype), layout).available
