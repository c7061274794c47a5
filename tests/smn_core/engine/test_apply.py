"""Every way to write theta' agrees with the reference to the last bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smn_core.engine.apply import LoopApplier, TorchApplier, applier_for, apply_slowly
from smn_core.engine.compact import inverse_alphas, make_compact
from smn_core.layout import Layout, MaskableTensor, layout_of
from smn_core.mask import TaskMask
from tests.smn_core.builders import random_mask, random_theta

DENSITIES = [0.05, 0.5, 0.95, 0.995, 0.9999, 1.0]


def layout_of_shapes(shapes: list[tuple[int, ...]]) -> Layout:
    tensors, first_byte = [], 0
    for i, shape in enumerate(shapes):
        tensors.append(MaskableTensor(f"t{i}.weight", shape, first_byte))
        first_byte += tensors[-1].n_bytes
    return Layout(tuple(tensors), {}, 1)


def layout_named(name: str) -> Layout:
    with torch.device("meta"):
        return layout_of(timm.create_model(name, num_classes=0))


def compact(mask: TaskMask):
    return make_compact(mask, torch.device("cpu"))


def written(applier, mask: TaskMask, layout: Layout) -> np.ndarray:
    """theta' over an array full of rubbish, padding cleared: it is nobody's."""
    out = torch.full((layout.n_elements,), float("nan"))
    applier.write(compact(mask), out)
    used = np.zeros_like(out.numpy())
    for tensor in layout:
        used[tensor.elements] = out.numpy()[tensor.elements]
    return used


@pytest.fixture(scope="module", params=["test_resnet", "test_vit", "odd sizes"])
def layout(request: pytest.FixtureRequest) -> Layout:
    odd = [(1,), (7,), (8, 1), (3, 3), (65535,), (65536,), (65537,), (2, 65541), (5,)]
    return layout_of_shapes(odd) if request.param == "odd sizes" else layout_named(request.param)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("way", ["loop 1", "loop 2", "loop 3", "torch"])
def test_every_way_equals_the_reference(layout, density, way):
    """The loop with any number of threads and torch write what the reference writes, whatever the slot held."""
    mask, theta = random_mask(layout, density, 1), random_theta(layout)
    kind, *threads = way.split()
    flat = torch.from_numpy(theta)
    applier = TorchApplier(flat, layout) if kind == "torch" else LoopApplier(flat, layout, int(threads[0]))
    assert np.array_equal(written(applier, mask, layout), apply_slowly(theta, mask))


@pytest.mark.parametrize("density", [0.9, 0.999])
def test_a_resnet18_equals_the_reference(density):
    """The same holds for a real layout of 11 million weights."""
    layout = layout_named("resnet18")
    mask, theta = random_mask(layout, density, 1), random_theta(layout)
    expected, flat = apply_slowly(theta, mask), torch.from_numpy(theta)
    for applier in (LoopApplier(flat, layout, 2), TorchApplier(flat, layout)):
        assert np.array_equal(written(applier, mask, layout), expected)


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    density=st.floats(0.0, 1.0),
    exponent=st.integers(-140, 127),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_any_shapes_and_sizes_equal_the_reference_bit_for_bit(shapes, density, exponent, dtype, threads, seed):
    """Any layout, tensors of no multiple of 8 or 32 weights, scale, and size of weights, also such that rounding makes
    subnormal or infinite; with more threads than work too. An OFF weight is +0."""
    layout = layout_of_shapes([(n,) for n in shapes])
    mask, theta = random_mask(layout, density, seed), random_theta(layout, seed)
    flat = (torch.from_numpy(theta).double() * 2.0**exponent).to(dtype)
    out = torch.full_like(flat, float("nan"))
    LoopApplier(flat, layout, threads).write(compact(mask), out)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(apply_slowly(flat.float().numpy(), mask)).to(dtype)
    kind = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    for tensor in layout:
        assert torch.equal(out.view(kind)[tensor.elements], expected.view(kind)[tensor.elements])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_that(dtype):
    """An ON weight that is infinite or not a number stays that, whatever its bits are; an OFF weight is 0."""
    layout = layout_of_shapes([(40,)])
    flat = torch.tensor([float("inf"), float("-inf"), float("nan"), -float("nan")] * 10).to(dtype)
    mask, out = random_mask(layout, 0.5, 3), torch.zeros_like(flat)
    LoopApplier(flat, layout, 1).write(compact(mask), out)
    on = torch.from_numpy(mask.bits_of("t0.weight"))
    assert torch.equal(out.isnan(), flat.isnan() & on)
    assert torch.equal(out.isinf(), flat.isinf() & on)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.integers(1, 70), min_size=1, max_size=6), density=st.floats(0.0, 1.0), seed=st.integers(0, 2**31)
)
def test_any_shapes_equal_the_reference_by_torch(shapes, density, seed):
    """Any layout is written by torch's operations as the reference writes it."""
    layout = layout_of_shapes([(n,) for n in shapes])
    mask, theta = random_mask(layout, density, seed), random_theta(layout, seed)
    assert np.array_equal(
        written(TorchApplier(torch.from_numpy(theta), layout), mask, layout), apply_slowly(theta, mask)
    )


def test_the_reference_is_the_formula_of_the_paper(layout):
    """theta' is theta * M / sqrt(mean M), tensor by tensor."""
    mask, theta = random_mask(layout, 0.7, 2), random_theta(layout)
    found = apply_slowly(theta, mask)
    for tensor in layout:
        on = mask.bits_of(tensor.name)
        by_hand = theta[tensor.elements].astype(np.float64) * on / np.sqrt(on.mean())
        assert np.allclose(found[tensor.elements], by_hand, rtol=3e-7, atol=0)


def test_a_tensor_that_is_all_on_is_scaled_by_exactly_one(layout):
    """A mask without an OFF bit leaves theta as it is, bit for bit."""
    mask, theta = random_mask(layout, 1.0, 0), random_theta(layout)
    assert (inverse_alphas(mask) == 1).all()
    assert np.array_equal(apply_slowly(theta, mask), theta)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("kind", [LoopApplier, TorchApplier])
def test_one_tensor_is_written_alone(layout, density, kind):
    """A tensor written by itself is the reference's; nothing beside it changes."""
    mask, theta = random_mask(layout, density, 1), random_theta(layout)
    flat = torch.from_numpy(theta)
    applier = applier_for(flat, layout, 1) if kind is LoopApplier else TorchApplier(flat, layout)
    expected, loaded = apply_slowly(theta, mask), compact(mask)
    for index, tensor in enumerate(layout):
        out = torch.full((layout.n_elements,), 7.0)
        applier.write_tensor(loaded, index, out)
        assert np.array_equal(out.numpy()[tensor.elements], expected[tensor.elements])
        out[tensor.elements] = 7.0
        assert (out == 7.0).all()


def test_the_applier_follows_the_type_of_theta(layout):
    """float32 and bfloat16 on the CPU are the loop's; any other type is torch's."""
    theta = torch.from_numpy(random_theta(layout))
    assert isinstance(applier_for(theta, layout, 1), LoopApplier)
    assert isinstance(applier_for(theta.bfloat16(), layout, 1), LoopApplier)
    assert isinstance(applier_for(theta.half(), layout, 1), TorchApplier)


def test_without_numba_torch_writes_and_the_log_says_so(monkeypatch, caplog):
    """What cannot compile serves all the same."""
    layout = layout_of_shapes([(40,)])
    monkeypatch.setitem(sys.modules, "smn_core.engine.loop", None)
    assert isinstance(applier_for(torch.from_numpy(random_theta(layout)), layout, 1), TorchApplier)
    assert "several times as long" in caplog.text


@pytest.mark.parametrize("kind", [LoopApplier, TorchApplier])
def test_half_precision_is_rounded_once(layout, kind):
    """In bfloat16, theta' is the rounded product: within one unit in the last place of the float32 one."""
    theta = torch.from_numpy(random_theta(layout)).bfloat16()
    mask = random_mask(layout, 0.6, 1)
    out = torch.zeros_like(theta)
    applier = applier_for(theta, layout, 1) if kind is LoopApplier else TorchApplier(theta, layout)
    applier.write(compact(mask), out)
    expected = torch.from_numpy(apply_slowly(theta.float().numpy(), mask))
    assert torch.equal(out, expected.bfloat16())
