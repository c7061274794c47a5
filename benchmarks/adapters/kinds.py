"""The adapters that a mask is held against: what each moves, what its file holds, and the weights that it means.

lora      PEFT's, on the layers that masks mask: `W + 2 * B @ A`, rank r. A and B are stored as float16.
one-bit   the same with signs: `W + sum over k of scale[k] * outer(sign(b[k]), sign(a[k]))`. Each of the r rows of a and
          of b is a row of bits, and the two rows of a pair share one scale. It is binarised while it learns: the signs
          take part in every forward, their gradient goes straight through to a and b. Stored: bits, scales as float16.
bias      BitFit: every bias of the model, norms too, stored as float16.

Every adapter starts as the untouched backbone. `read` gives what the file holds, so that what is scored is what is
stored, rounding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smn_core import bits, tensorfile

LAYERS = ("qkv", "proj", "fc1", "fc2")
LORA_SCALE = 2
SIGN_DEVIATION = 1e-3
"""Of a and b at the start. Adam moves an entry by about its rate a step, so some tens of steps turn a sign."""
ZSTD_LEVEL = 19
Stored = dict[str, ndarray]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """How an adapter is put on a model, read off it, and merged into the weights of the plain model.

    `attach(model, rank)` leaves a gradient to the adapter alone. `read(model)` is what its file holds.
    `merge(theta, stored)` are the weights that it means.
    """

    attach: Callable[[nn.Module, int], None]
    read: Callable[[nn.Module], Stored]
    merge: Callable[[Weights, Stored], Weights]


def serialise(stored: Mapping[str, ndarray]) -> bytes:
    """The file of an adapter: safetensors under zstd."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(tensorfile.serialise_tensors(dict(stored), {}))


def find_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a ViT's blocks: those that masks mask."""
    for name, module in model.named_modules():
        if name.startswith("blocks.") and name.rpartition(".")[2] in LAYERS and isinstance(module, nn.Linear):
            yield name, module


def _attach_lora(model: nn.Module, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, _ in find_layers(model)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, target_modules=names), model)


def _read_lora(model: nn.Module) -> Stored:
    stored = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            for part in ("lora_A", "lora_B"):
                factor = getattr(module, part)["default"].weight
                stored[f"{name}.{part}"] = factor.detach().cpu().numpy().astype(np.float16)
    return stored


def _merge_lora(theta: Weights, stored: Stored) -> Weights:
    weights = dict(theta)
    for key in stored:
        name, _, part = key.rpartition(".")
        if part == "lora_A":
            a, b = (torch.from_numpy(stored[f"{name}.{p}"].astype(np.float32)) for p in ("lora_A", "lora_B"))
            weights[f"{name}.weight"] = theta[f"{name}.weight"] + LORA_SCALE * (b @ a)
    return weights


class Sign(torch.autograd.Function):
    """The sign, +1 at 0; its gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (nothing is kept for the gradient)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # noqa: ARG004
        return grad_outputs[0]


class SignPairs(nn.Module):
    """r pairs of rows of signs and their scales, as a torch parametrization of a weight [out, in]."""

    def __init__(self, n_out: int, n_in: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(SIGN_DEVIATION * torch.randn(rank, n_in))
        self.b = nn.Parameter(SIGN_DEVIATION * torch.randn(rank, n_out))
        self.scale = nn.Parameter(torch.zeros(rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (Sign.apply(self.b) * self.scale[:, None]).T @ Sign.apply(self.a)


def _attach_one_bit(model: nn.Module, rank: int) -> None:
    model.requires_grad_(False)
    for _, layer in list(find_layers(model)):
        pairs = SignPairs(layer.out_features, layer.in_features, rank)
        parametrize.register_parametrization(layer, "weight", pairs, unsafe=True)


def _read_one_bit(model: nn.Module) -> Stored:
    stored = {}
    for name, layer in find_layers(model):
        pairs: Any = layer.parametrizations["weight"][0]  # type: ignore[index]
        for part in ("a", "b"):
            signs = (getattr(pairs, part).detach().cpu() >= 0).numpy()
            stored[f"{name}.{part}"] = np.stack([bits.pack(row) for row in signs])
        stored[f"{name}.scale"] = pairs.scale.detach().cpu().numpy().astype(np.float16)
    return stored


def _merge_one_bit(theta: Weights, stored: Stored) -> Weights:
    weights = dict(theta)
    for key, scale in stored.items():
        name, _, part = key.rpartition(".")
        if part == "scale":
            weight = theta[f"{name}.weight"]
            b, a = (_signs(stored[f"{name}.{p}"], n) for p, n in zip("ba", weight.shape, strict=True))
            weights[f"{name}.weight"] = weight + (b * torch.from_numpy(scale.astype(np.float32))[:, None]).T @ a
    return weights


def _signs(packed: ndarray, n: int) -> Tensor:
    return torch.from_numpy(np.stack([bits.unpack(row, n) for row in packed]).astype(np.float32) * 2 - 1)


def _attach_bias(model: nn.Module, rank: int) -> None:  # noqa: ARG001 (a bias has none)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def _read_bias(model: nn.Module) -> Stored:
    return {
        name: p.detach().cpu().numpy().astype(np.float16) for name, p in model.named_parameters() if p.requires_grad
    }


def _merge_bias(theta: Weights, stored: Stored) -> Weights:
    return {**theta, **{name: torch.from_numpy(values.astype(np.float32)) for name, values in stored.items()}}


KINDS = {
    "lora": Kind(_attach_lora, _read_lora, _merge_lora),
    "one-bit lora": Kind(_attach_one_bit, _read_one_bit, _merge_one_bit),
    "bias": Kind(_attach_bias, _read_bias, _merge_bias),
}
