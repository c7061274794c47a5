"""Which types a processor computes in fast."""

from __future__ import annotations

import torch


def slow_on_cpu(dtype: torch.dtype, device: torch.device) -> str | None:
    """A sentence for the user where a type has no fast matrix product on this processor, else None.

    Without the instructions torch falls back to scalar code: a training step of ViT-Tiny took 130 s in bfloat16 and
    9 s in float32 on one thread of a Zen 3 core.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return None
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    if dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return None
    name = str(dtype).removeprefix("torch.")
    return f"this processor has no {name} instructions: expect it to be many times slower than float32"
