"""theta' in one launch is the reference's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smn_core.engine.apply import TorchApplier, apply_slowly
from smn_core.engine.compact import make_compact
from smn_core.engine.kernels.unpack import BLOCK, KernelApplier
from smn_core.errors import InvalidArgument
from smn_core.layout import Layout
from tests.kernels.layers import CPU, kernel_layout_of, layout_of_shapes
from tests.smn_core.builders import random_mask, random_theta

ODD = [(1,), (7,), (8, 1), (3, 3), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (2, 4099), (2, 3, 3, 3), (5,)]


def written(mask, theta: torch.Tensor, layout: Layout) -> torch.Tensor:
    """theta' over an array full of rubbish; the rubbish must stay between the tensors."""
    out = torch.full_like(theta, 7.0)
    KernelApplier(theta, layout).write(make_compact(mask, CPU, kernel_layout_of(layout)), out)
    used = torch.zeros_like(theta)
    for tensor in layout:
        used[tensor.elements] = out[tensor.elements]
        out[tensor.elements] = 7.0
    assert (out == 7.0).all()
    return used


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("density", [0.05, 0.5, 0.95, 0.995, 1.0])
def test_float32_is_the_reference_to_the_last_bit(density):
    """Tensors of any size and number of dimensions, of any density, the signs of zeros included."""
    layout = layout_of_shapes(ODD)
    mask, theta = random_mask(layout, density, 1), random_theta(layout)
    found = written(mask, torch.from_numpy(theta), layout)
    assert same_bits(found.numpy(), apply_slowly(theta, mask))


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    density=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_any_layout_is_the_reference_to_the_last_bit(shapes, density, seed):
    layout = layout_of_shapes([(n,) for n in shapes])
    mask, theta = random_mask(layout, density, seed), random_theta(layout, seed)
    assert same_bits(written(mask, torch.from_numpy(theta), layout).numpy(), apply_slowly(theta, mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """The product is taken in float32 and rounded, as in every other way to write theta'.

    Triton's interpreter cuts off where it makes a bfloat16, which a GPU rounds: one unit in the last place is allowed.
    """
    layout = layout_of_shapes(ODD)
    mask, theta = random_mask(layout, 0.6, 1), torch.from_numpy(random_theta(layout)).to(dtype)
    expected = torch.zeros_like(theta)
    TorchApplier(theta, layout).write(make_compact(mask, CPU), expected)
    found = written(mask, theta, layout)
    assert torch.equal(expected, torch.from_numpy(apply_slowly(theta.float().numpy(), mask)).to(dtype))
    allowed = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    assert torch.allclose(found, expected, rtol=allowed, atol=0)


def test_one_tensor_is_written_alone():
    """A tensor written by itself is the reference's; nothing beside it changes."""
    layout = layout_of_shapes(ODD)
    mask, theta = random_mask(layout, 0.8, 1), random_theta(layout)
    applier, expected = KernelApplier(torch.from_numpy(theta), layout), apply_slowly(theta, mask)
    loaded = make_compact(mask, CPU, kernel_layout_of(layout))
    for index, tensor in enumerate(layout):
        out = torch.full((layout.n_elements,), 7.0)
        applier.write_tensor(loaded, index, out)
        assert np.array_equal(out.numpy()[tensor.elements], expected[tensor.elements])
        out[tensor.elements] = 7.0
        assert (out == 7.0).all()


def test_a_mask_that_is_not_whole_on_the_device_is_refused():
    """A mask that was not prepared for the kernels has no bits for the kernel."""
    layout = layout_of_shapes([(9,)])
    loaded = make_compact(random_mask(layout, 0.5, 0), CPU)
    with pytest.raises(InvalidArgument, match="not prepared for the kernels"):
        KernelApplier(torch.zeros(layout.n_elements), layout).write(loaded, torch.zeros(layout.n_elements))
