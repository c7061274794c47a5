"""oneDNN's linear layers give what torch's operations give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from smn_core.engine.forwards.linear import ACTIVATIONS, OneDNNLinear, activate, has_onednn, linear, linear_slowly

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")


def close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-5 if found.dtype == torch.float32 else 2e-2
    return bool(
        torch.linalg.vector_norm((found - expected).float()) <= tolerance * torch.linalg.vector_norm(expected.float())
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 7, 24), (2, 3, 4, 24), (0, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_layer_equals_torchs_operations(activation, shape, dtype):
    """Whatever the rows and the type, with and without a bias."""
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)
    for own in (bias, None):
        found, expected = linear(x, weight, own, activation), linear_slowly(x, weight, own, activation)
        assert found.shape == expected.shape
        assert close(found, expected)


def test_rows_that_are_not_in_order_in_memory_are_right():
    """A view that is transposed or repeats its rows is multiplied as its copy is."""
    weight = torch.randn(40, 24)
    for x in (torch.randn(24, 6).t(), torch.randn(3, 24, 5).transpose(1, 2), torch.randn(1, 24).expand(4, 24)):
        assert close(linear(x, weight), linear_slowly(x.contiguous(), weight))


def test_a_weight_that_changes_in_place_is_seen():
    """Nothing of a weight is kept between two calls."""
    x, weight = torch.randn(5, 24), torch.randn(40, 24)
    linear(x, weight)
    weight.mul_(3)
    assert close(linear(x, weight), linear_slowly(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_in", "n_out"), [(24, 40), (40, 24)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_scales_are_applied_before_the_activation(activation, n_in, n_out, dtype):
    """`activation(x @ w.T * scale + b * bias_scale)`, into whichever side the scale goes."""
    layer = nn.Linear(n_in, n_out).to(dtype).requires_grad_(False)
    layer.__class__, layer.activation = OneDNNLinear, activation
    x = torch.randn(2, 3, n_in).to(dtype)
    for bias, scale, bias_scale in (
        (layer.bias, 1.7, 0.4),
        (layer.bias, 1.0, 2.0),
        (None, 1.7, 1.0),
        (layer.bias, 1.0, 1.0),
    ):
        y = nn.functional.linear(x, layer.weight) * scale + (0 if bias is None else bias * bias_scale)
        assert close(layer.run_scaled(x, layer.weight, bias, scale, bias_scale), activate(y, activation))
