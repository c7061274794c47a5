"""A linear layer for many masks in one launch gives every row what a masked copy of the weights gives."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smn_core.engine.compact import CompactMask, make_compact
from smn_core.engine.kernelmask import KernelCosts, KernelLayout
from smn_core.engine.kernels import linear
from smn_core.engine.kernels.linear import Layer, from_bits, shared_base
from smn_core.engine.kernels.table import Table
from smn_core.mask import TaskMask
from tests.kernels.layers import CPU, LISTS, NO_LISTS, kernel_layout_of, layout_of_shapes, masked
from tests.smn_core.builders import random_mask, random_theta

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
WAYS = {
    "bits": (from_bits, NO_LISTS),
    "lists": (shared_base, LISTS),
    "bits in the same launch": (shared_base, NO_LISTS),
}


class Problem:
    """A layer of `n_in` inputs and `n_out` outputs between other tensors, and what its rows should become."""

    def __init__(self, n_in: int, n_out: int, dtype: torch.dtype, costs: KernelCosts, bias: str = "masked") -> None:
        self.layout = layout_of_shapes([(3, 3), (n_out, n_in), (n_out,)])
        self.kernel_layout: KernelLayout = kernel_layout_of(self.layout, costs)
        self.theta = torch.from_numpy(random_theta(self.layout)).to(dtype)
        weight, own = (self.theta[t.elements].view(t.shape) for t in self.layout.tensors[1:])
        self.bias = {"masked": own, "plain": torch.randn(n_out).to(dtype), "none": None}[bias]
        self.layer = Layer(weight, self.bias, 1, 2 if bias == "masked" else -1)

    def run(self, way, x: torch.Tensor, masks: list[TaskMask | None], stops: list[int], block: int) -> torch.Tensor:
        loaded = [mask and make_compact(mask, CPU, self.kernel_layout) for mask in masks]
        return self.run_loaded(way, x, loaded, stops, block)

    def run_loaded(self, way, x, loaded: list[CompactMask | None], stops: list[int], block: int) -> torch.Tensor:
        table = Table(len(loaded), CPU)
        table.fill([(a, m and m.for_kernels) for a, m in zip([0, *stops], loaded, strict=False)], stops[-1])
        return way(x, self.layer, self.kernel_layout, table, block)

    def expected(self, x: torch.Tensor, masks: list[TaskMask | None], stops: list[int], block: int) -> torch.Tensor:
        weights = [masked(self.layout, self.theta, mask, 1) for mask in masks]
        biases: list[torch.Tensor | None] = [None if self.bias is None else self.bias.double()] * len(masks)
        if self.layer.bias_tensor >= 0:
            biases = [masked(self.layout, self.theta, mask, 2) for mask in masks]
        return linear.multiply_slowly(x.double(), weights, biases, [stop * block for stop in stops])


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within the type's rounding of what each output sums up to."""
    error = torch.linalg.vector_norm(found.double() - expected, dim=-1)
    return bool((error <= TOLERANCE[found.dtype] * torch.linalg.vector_norm(expected, dim=-1)).all())


def rows(n: int, n_in: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "bias"), [*product(DTYPES, ["masked"]), (DTYPES[0], "plain"), (DTYPES[0], "none")])
@pytest.mark.parametrize("way", WAYS)
def test_segments_get_their_own_weights(way, dtype, bias):
    """Three masks and the root, of unequal segments and sizes that are multiples of no block."""
    run, costs = WAYS[way]
    problem = Problem(37, 71, dtype, costs, bias)
    masks = [random_mask(problem.layout, 0.99, 1), None, random_mask(problem.layout, 0.995, 2), None]
    masks[3] = random_mask(problem.layout, 0.9 if costs is NO_LISTS else 0.988, 3)
    x, stops = rows(5 * 13, 37, dtype), [1, 3, 4, 5]
    assert agree(problem.run(run, x, masks, stops, 13), problem.expected(x, masks, stops, 13))


@settings(max_examples=10, deadline=None)
@given(
    way=st.sampled_from(list(WAYS)),
    dtype=st.sampled_from(DTYPES),
    n_in=st.integers(1, 70),
    n_out=st.integers(1, 70),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    block=st.sampled_from([1, 2, 5, 31, 33]),
    densities=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_any_sizes_segments_and_densities(way, dtype, n_in, n_out, lengths, block, densities, seed):
    """Whatever the shape, the density and the lengths of the segments, every fourth of them the root's."""
    run, costs = WAYS[way]
    problem = Problem(n_in, n_out, dtype, costs)
    masks = [
        None if i % 4 == 3 else random_mask(problem.layout, densities[i % len(densities)], seed + i)
        for i in range(len(lengths))
    ]
    stops = np.cumsum(lengths).tolist()
    x = rows(stops[-1] * block, n_in, dtype, seed)
    found, expected = problem.run(run, x, masks, stops, block), problem.expected(x, masks, stops, block)
    # A few inputs can cancel out: errors count in relation to the largest row.
    error = torch.linalg.vector_norm(found.double() - expected, dim=-1).max()
    assert error <= 2 * TOLERANCE[dtype] * max(1.0, torch.linalg.vector_norm(expected, dim=-1).max())


def test_sixty_four_rows_wear_sixty_four_masks():
    """One row each, as many segments as rows: in one launch some by their lists, the others by their bits."""
    run, costs = shared_base, KernelCosts(unpack=0.01, entry=1.0)
    problem = Problem(30, 60, torch.float32, costs)
    masks: list[TaskMask | None] = [random_mask(problem.layout, 0.99, seed) for seed in range(64)]
    n_listed = [len(make_compact(mask, CPU).off) for mask in masks]
    assert min(n_listed) < 18 < max(n_listed)
    x, stops = rows(64, 30, torch.float32), list(range(1, 65))
    assert agree(problem.run(run, x, masks, stops, 1), problem.expected(x, masks, stops, 1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_rows", [1, 64, 65])
def test_one_segment_is_one_masked_layer(way, n_rows):
    """A batch of one mask, of one row too."""
    run, costs = WAYS[way]
    problem = Problem(64, 64, torch.float32, costs)
    masks: list[TaskMask | None] = [random_mask(problem.layout, 0.99, 0)]
    x = rows(n_rows, 64, torch.float32)
    assert agree(problem.run(run, x, masks, [n_rows], 1), problem.expected(x, masks, [n_rows], 1))


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_without_off_weights_is_the_root(way):
    """Empty lists, scales of 1: the rows are the root's, bit for bit."""
    run, costs = WAYS[way]
    problem = Problem(40, 70, torch.float32, costs)
    x = rows(6, 40, torch.float32)
    whole = problem.run(run, x, [random_mask(problem.layout, 1.0, 0)], [6], 1)
    assert torch.equal(whole, problem.run(run, x, [None], [6], 1))


def test_lists_are_used_exactly_where_they_pay():
    """With bits of rubbish the listed masks still are right, and with rubbish lists those that go by bits."""
    for costs, spoilt in ((LISTS, "packed"), (NO_LISTS, "off")):
        problem = Problem(64, 128, torch.float32, costs, "none")
        mask = random_mask(problem.layout, 0.992, 0)
        loaded = make_compact(mask, CPU, problem.kernel_layout)
        x = rows(3, 64, torch.float32)
        expected = problem.expected(x, [mask], [3], 1)
        assert loaded.for_kernels is not None and len(loaded.off) > 0
        getattr(loaded.for_kernels, spoilt).zero_()
        assert agree(problem.run_loaded(shared_base, x, [loaded], [3], 1), expected)


def test_images_that_fill_a_batch_up_are_the_roots():
    """A table of two images for a batch of four gives the last two the root's weights."""
    problem = Problem(20, 30, torch.float32, LISTS)
    mask = random_mask(problem.layout, 0.9, 0)
    table = Table(1, CPU)
    table.fill([(0, make_compact(mask, CPU, problem.kernel_layout).for_kernels), (2, None)], 4)
    x = rows(4 * 3, 20, torch.float32)
    found = shared_base(x, problem.layer, problem.kernel_layout, table, 3)
    assert agree(found, problem.expected(x, [mask, None], [2, 4], 3))


def test_every_row_is_written_once():
    """However a batch is cut, what one segment gives does not depend on the others."""
    problem = Problem(16, 16, torch.float32, LISTS)
    masks = [random_mask(problem.layout, 0.9, seed) for seed in range(5)]
    x, stops = rows(9 * 35, 16, torch.float32), [1, 4, 5, 8, 9]
    together = problem.run(shared_base, x, list(masks), stops, 35)
    for mask, (a, b) in zip(masks, pairwise([0, *stops]), strict=True):
        alone = problem.run(shared_base, x[a * 35 : b * 35], [mask], [b - a], 35)
        assert torch.equal(together[a * 35 : b * 35], alone)
