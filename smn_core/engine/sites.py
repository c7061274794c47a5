"""The modules that a mask changes, and how to run one of them with other weights, for a part of a batch, or scaled.

A site is a module that owns maskable parameters or running statistics. `nn.Linear` and `nn.Conv2d` themselves are
linear in their weight, so `1 / alpha` may be applied behind the product instead of to every weight:
`f(x; theta * on / alpha) = f(x; theta * on) / alpha`. Their subclasses may not be (weight standardisation is not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.layout import Layout

Forward = Callable[[Tensor], Tensor]
Weights = Mapping[str, Tensor]
"""Tensors by the names of the model."""


@dataclass(eq=False)
class Site:
    """One module: `parameters` and `buffers` map its own names for its tensors to those of the model.

    `tensors`, `weight` and `bias` are indices in the layout; None where the module has none or it is not maskable.
    `scalable`: `1 / alpha` may be applied behind it. `calls` and `out_elements` are what a rehearsal saw: calls of its
    forward in one of the model, elements of its output for one image.
    """

    module: nn.Module
    parameters: dict[str, str]
    buffers: dict[str, str]
    tensors: list[int]
    weight: int | None = None
    bias: int | None = None
    scalable: bool = False
    calls: int = 0
    out_elements: int = 0
    original: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.module.forward

    def show(self, weights: Weights, state: Weights) -> None:
        """Make the module find these tensors."""
        for own, name in self.parameters.items():
            self.module._parameters[own] = weights[name]  # type: ignore[assignment]
        for own, name in self.buffers.items():
            self.module._buffers[own] = state[name]

    def replace(self, forward: Forward) -> None:
        """Run `forward` wherever the model calls the module."""
        self.module.__dict__["forward"] = forward

    def restore(self) -> None:
        self.module.__dict__.pop("forward", None)

    @property
    def is_linear(self) -> bool:
        return self.scalable and isinstance(self.module, nn.Linear)

    def scaled(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, bias_scale: float) -> Tensor:
        """`f(x; weight) * scale + bias * bias_scale`, for a scalable site."""
        if isinstance(self.module, nn.Linear):
            out = x.new_empty(*x.shape[:-1], weight.shape[0])
            multiply(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]), weight, bias, scale, bias_scale)
            return out
        assert isinstance(self.module, nn.Conv2d)
        y = self.module._conv_forward(x, weight, None).mul_(scale)
        return y if bias is None else y.add_(bias.view(-1, 1, 1), alpha=bias_scale)


def scale_behind(sites: Iterable[Site], scales: Sequence[float] | None) -> None:
    """Apply `scales[t]`, looked up at every call, behind the product with weight t and to bias t; None: to nothing."""
    for site in sites:
        if scales is None or not site.scalable:
            site.restore()
        else:
            site.replace(partial(_scaled, site, scales))


def _scaled(site: Site, scales: Sequence[float], x: Tensor) -> Tensor:
    assert site.weight is not None
    scale, module = scales[site.weight], site.module
    bias_scale = 1.0 if site.bias is None else scales[site.bias]
    if scale == 1 and bias_scale == 1:
        return site.original(x)
    return site.scaled(x, module.weight, module.bias, scale, bias_scale)  # type: ignore[arg-type]


def multiply(
    out: Float[Tensor, "r o"],
    x: Float[Tensor, "r i"],
    weight: Tensor,
    bias: Tensor | None,
    scale: float = 1.0,
    bias_scale: float = 1.0,
) -> None:
    """`out = x @ weight.T * scale + bias * bias_scale`: the scales cost nothing inside the product."""
    if bias is None:
        torch.addmm(out, x, weight.t(), beta=0, alpha=scale, out=out)
    else:
        torch.addmm(bias, x, weight.t(), beta=bias_scale, alpha=scale, out=out)


def sites_of(model: nn.Module, layout: Layout) -> list[Site]:
    """The sites of a model, in its order. A tied tensor belongs to every module that has it."""
    names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    index = {tensor.name: i for i, tensor in enumerate(layout)}
    found = []
    for module in model.modules():
        parameters = _owned(module._parameters, names, index)
        buffers = _owned(module._buffers, names, layout.buffers)
        if parameters or buffers:
            weight, bias = (index.get(parameters.get(own, "")) for own in ("weight", "bias"))
            scalable = weight is not None and _is_plain(module)
            tensors = [index[name] for name in parameters.values()]
            found.append(Site(module, parameters, buffers, tensors, weight, bias, scalable))
    return found


def _owned(table: Mapping[str, Tensor | None], names: Mapping[int, str], wanted: Iterable[str]) -> dict[str, str]:
    return {own: names[id(t)] for own, t in table.items() if t is not None and names[id(t)] in wanted}


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what `nn.Linear` or `nn.Conv2d` does, and nothing listens to it."""
    kind = type(module)
    plain = kind.forward is nn.Linear.forward or (
        kind.forward is nn.Conv2d.forward and getattr(kind, "_conv_forward", None) is nn.Conv2d._conv_forward
    )
    return plain and "forward" not in module.__dict__
