"""Unfold BatchNorm for learning, in backbones whose norms were folded into the convolutions.

A folded norm does (nearly) nothing. So weights that are switched off shift the mean of a channel, and no norm corrects
it. Here the norm is rewritten. Its input has mean `m0` and variance `v0` under the untouched backbone, and the same
function is a norm with these statistics and

    weight' = weight * sqrt((v0 + eps) / (var + eps))        bias' = bias + weight * (m0 - mean) / sqrt(var + eps)

During learning it normalises by the statistics of each batch, as in a network that kept its norms. After the last step
the statistics `m`, `v` of plain images under the mask are translated back for the backbone's own weight and bias. The
mask file carries them as its state:

    var = (v + eps) * (var + eps) / (v0 + eps) - eps         mean = m - (m0 - mean) * sqrt((v + eps) / (v0 + eps))

Source: batch normalisation as in Ioffe and Szegedy, 2015; why it is needed: docs/results.md, "Why MobileNetV2 fails".
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.errors import InvalidArgument

Norm = nn.BatchNorm2d | nn.SyncBatchNorm
See = Callable[[int, Norm, Tensor, Tensor], None]
"""Called with the number of a norm, the norm, and the mean and variance of each channel of its input."""


class Recentred(nn.Module):
    """Rewrites the norms of a model in place, and keeps what is needed to translate their statistics back.

    In evaluation mode the model computes what it computed before.

    Args:
        model: with BatchNorm2d modules.
        x: images [n, 3, h, w] as they will be served. They run as one batch, which gives `m0` and `v0`.
        masked: names of the tensors that have scores.

    Raises:
        InvalidArgument: the model has no such norms, or some of their own weights are masked.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n 3 h w"], masked: Collection[str]) -> None:
        super().__init__()
        found = find_norms(model)
        if not found:
            raise InvalidArgument("recentre_norm=true: this backbone has no BatchNorm with statistics")
        for name in found:
            if clash := sorted({f"{name}.weight", f"{name}.bias"} & set(masked)):
                raise InvalidArgument(f"recentre_norm=true: {clash[0]} is masked itself; leave it out with --stages")
        self._model, self._names = [model], list(found)  # in a list, since the model is no submodule of this one
        before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in self._norms]  # type: ignore[union-attr]
        measured: dict[int, tuple[Tensor, Tensor]] = {}
        self._pass(x, lambda i, _, mean, var: measured.update({i: (mean, var)}))
        for i, (own_mean, own_var) in enumerate(before):
            mean, var = measured.get(i, (own_mean, own_var))  # a norm that never ran stays as it is
            for key, value in (("own_mean", own_mean), ("own_var", own_var), ("mean", mean), ("var", var)):
                self.register_buffer(f"{key}_{i}", value)
        self._unfold()

    @property
    def _norms(self) -> list[Norm]:
        return [self._model[0].get_submodule(name) for name in self._names]  # type: ignore[misc]

    def _kept(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The statistics that norm i had in the backbone, and those that were measured on images."""
        own_mean, own_var, mean, var = (self.get_buffer(f"{key}_{i}") for key in ("own_mean", "own_var", "mean", "var"))
        return own_mean, own_var, mean, var

    @torch.no_grad()
    def _unfold(self) -> None:
        for i, norm in enumerate(self._norms):
            own_mean, own_var, mean, var = self._kept(i)
            own_spread = (own_var + norm.eps).sqrt()
            norm.bias.add_(norm.weight * (mean - own_mean) / own_spread)
            norm.weight.mul_((var + norm.eps).sqrt() / own_spread)
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(var)  # type: ignore[union-attr]

    def settle(self, x: Float[Tensor, "n 3 h w"]) -> None:
        """Give every norm the statistics that these images have under the mask. They run as one batch."""

        def take(_: int, norm: Norm, mean: Tensor, var: Tensor) -> None:
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(var)  # type: ignore[union-attr]

        self._pass(x, take)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The running statistics for the backbone's own weights and biases, by buffer name, as a mask file has them."""
        state = {}
        for i, (name, norm) in enumerate(zip(self._names, self._norms, strict=True)):
            own_mean, own_var, mean, var = self._kept(i)
            ratio = (norm.running_var + norm.eps) / (var + norm.eps)  # type: ignore[operator]
            state[f"{name}.running_mean"] = norm.running_mean - (mean - own_mean) * ratio.sqrt()  # type: ignore[operator]
            state[f"{name}.running_var"] = (ratio * (own_var + norm.eps) - norm.eps).clamp_min(0)
        return state

    @torch.no_grad()
    def _pass(self, x: Tensor, see: See) -> None:
        """Run the model in evaluation mode. `see` gets the input statistics of every norm before that norm runs."""

        def hook(i: int, norm: Any, got: tuple[Tensor, ...]) -> None:
            var, mean = torch.var_mean(got[0].float(), dim=(0, 2, 3), correction=0)
            see(i, norm, mean, var)

        handles = [
            norm.register_forward_pre_hook(lambda norm, got, i=i: hook(i, norm, got))
            for i, norm in enumerate(self._norms)
        ]
        try:
            self._model[0].eval()(x)
        finally:
            for handle in handles:
                handle.remove()


def find_norms(model: nn.Module) -> dict[str, Norm]:
    """Find the two-dimensional batch norms with running statistics, by name, in the order in which they run."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Norm) and module.running_mean is not None
    }
