"""A type that a processor computes in slowly is told before hours are lost on it."""

from __future__ import annotations

import pytest
import torch

from smn_core.precision import slow_on_cpu


def test_float32_is_never_slow():
    assert slow_on_cpu(torch.float32, torch.device("cpu")) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_is_not_judged_by_the_processor(dtype):
    assert slow_on_cpu(dtype, torch.device("cuda")) is None


def test_bfloat16_is_called_slow_exactly_where_torch_has_no_kernels_for_it():
    said = slow_on_cpu(torch.bfloat16, torch.device("cpu"))
    assert (said is None) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert said is None or "no bfloat16 instructions" in said
