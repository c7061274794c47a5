"""A type that a processor computes in slowly is told before hours are lost on it."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from smn_core.backbone import load_backbone
from smn_core.precision import slow_on_cpu
from smn_core.spec import BackboneSpec


def test_float32_is_never_slow():
    assert slow_on_cpu(torch.float32, torch.device("cpu")) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_is_not_judged_by_the_processor(dtype):
    assert slow_on_cpu(dtype, torch.device("cuda")) is None


def test_bfloat16_is_called_slow_exactly_where_torch_has_no_kernels_for_it():
    said = slow_on_cpu(torch.bfloat16, torch.device("cpu"))
    assert (said is None) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert said is None or "no bfloat16 instructions" in said


def test_a_slow_type_is_warned_of_when_a_backbone_is_loaded(tmp_path, caplog):
    """Serving, embedding and evaluating all load one, and say it once."""
    model = timm.create_model("test_vit", num_classes=0, depth=1, embed_dim=8, num_heads=1)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    args = {"depth": 1, "embed_dim": 8, "num_heads": 1}
    load_backbone(BackboneSpec("test_vit", tmp_path / "w.safetensors", args, device="cpu", dtype="bfloat16"))
    said = slow_on_cpu(torch.bfloat16, torch.device("cpu"))
    assert caplog.text.count("no bfloat16 instructions") == (said is not None)
