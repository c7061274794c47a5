"""Which tensors of a backbone are maskable, in which order and at which offsets.

The packed mask is one byte string: tensor t owns bytes `[t.first_byte, t.first_byte + t.n_bytes)`. In a flat array of
weights the same tensor starts at element `8 * t.first_byte`, so packed byte i always covers elements `8*i .. 8*i+7`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from timm.models.deit import VisionTransformerDistilled
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smn_core.bits import packed_bytes
from smn_core.errors import InvalidArgument

VIT_LINEAR = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))\.(weight|bias)")


@dataclass(frozen=True)
class MaskableTensor:
    """One maskable parameter: `n_weights` bits, C-order, in `n_bytes` whole bytes from `first_byte`."""

    name: str
    shape: tuple[int, ...]
    first_byte: int

    @cached_property
    def n_weights(self) -> int:
        return prod(self.shape)

    @cached_property
    def n_bytes(self) -> int:
        return packed_bytes(self.n_weights)

    @property
    def first_element(self) -> int:
        return 8 * self.first_byte

    @property
    def bytes(self) -> slice:
        """Where the tensor lies in the packed mask."""
        return slice(self.first_byte, self.first_byte + self.n_bytes)

    @property
    def elements(self) -> slice:
        """Where the tensor lies in a flat array of weights."""
        return slice(self.first_element, self.first_element + self.n_weights)


@dataclass(frozen=True)
class Layout:
    """The maskable tensors of a backbone in `named_parameters()` order, and what else a mask may carry for it.

    `buffers` names the normalisation running statistics (a mask's `state`), `n_features` is the embedding's width.
    """

    tensors: tuple[MaskableTensor, ...]
    buffers: Mapping[str, tuple[int, ...]]
    n_features: int

    @cached_property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)

    @cached_property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors)

    @property
    def n_elements(self) -> int:
        """Length of a flat array of weights, the padding to whole bytes included."""
        return 8 * self.n_bytes

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over `name|[shape]\\n` of every maskable tensor in order (docs/formats.md)."""
        lines = "".join(f"{t.name}|{list(t.shape)}\n" for t in self.tensors)
        return hashlib.sha256(lines.encode()).hexdigest()

    def __iter__(self) -> Iterator[MaskableTensor]:
        return iter(self.tensors)

    @cached_property
    def stages(self) -> dict[str, list[MaskableTensor]]:
        """Tensors by the stage of the network that holds them, in order."""
        found: dict[str, list[MaskableTensor]] = {}
        for tensor in self.tensors:
            found.setdefault(stage_of(tensor.name), []).append(tensor)
        return found


def layout_of(model: nn.Module) -> Layout:
    """The layout of a timm model that was built with `num_classes=0`."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tensors, first_byte = [], 0
    for name in maskable_names(model):
        tensor = MaskableTensor(name, shapes[name], first_byte)
        tensors.append(tensor)
        first_byte += tensor.n_bytes
    if not tensors:
        raise InvalidArgument(
            f"this {type(model).__name__} has no maskable weights: its blocks are not those of the rule"
        )
    width = getattr(model, "head_hidden_size", None) or model.num_features
    return Layout(tuple(tensors), dict(_running_statistics(model)), int(width))  # type: ignore[arg-type]


def maskable_names(model: nn.Module) -> list[str]:
    """Names of the maskable parameters by the exact class of the model, in `named_parameters()` order.

    The rule is the paper's for ResNet and ViT; every other architecture masks the weights of Conv2d and Linear
    (their subclasses too: timm's padded and standardised convolutions are convolutions).
    """
    names: Iterable[str] = (name for name, _ in model.named_parameters())
    if type(model) in (VisionTransformer, VisionTransformerDistilled):
        return [name for name in names if VIT_LINEAR.fullmatch(name)]
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,) if type(model) is ResNet else (nn.Conv2d, nn.Linear)
    weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)}
    if type(model) is ResNet:
        return [name for name in names if name in weights or ".downsample." in name]
    return [name for name in names if name in weights]


def stage_of(name: str) -> str:
    """`layer3.1.conv2.weight` -> `layer3`; `blocks.7.mlp.fc1.bias` -> `blocks.7`; `conv1.weight` -> `conv1`."""
    first, second, *_ = [*name.split("."), ""]
    return f"{first}.{second}" if second.isdigit() and not first[-1].isdigit() else first


def _running_statistics(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for module_name, module in model.named_modules():
        for name in ("running_mean", "running_var"):
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield f"{module_name}.{name}", tuple(buffer.shape)
