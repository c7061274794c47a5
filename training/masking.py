"""A mask while it is learned: every maskable weight has a score, and the weight is ON where the score is high.

The model runs on `theta' = theta * on / alpha`, and the scores learn:

    on    = 1[S > mu]                       (or the top k scores of the tensor, for a fixed density)
    alpha = sqrt(mean(on))
    dL/dS = g * theta / sqrt(m) - sum(g * theta * on) / (2 * N * m ** 1.5)      with g = dL/dtheta', m = mean(on)

The gradient passes the threshold unchanged (straight-through), and alpha is differentiated: docs/method.md, "Gradient".
The scores of OFF weights get a gradient too, so a weight can come back.

Source: Warmerdam, Caron, Asano, "Self-Masking Networks for Unsupervised Adaptation", GCPR 2024.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smn_core.errors import InvalidArgument
from smn_core.layout import Layout


@dataclass(frozen=True)
class MaskRule:
    """Says how scores become a mask, and which weights may be switched off at all.

    Args:
        init: every score at the start, S0.
        threshold: mu; a score must be above it to be ON.
        density: fraction ON of every tensor by top-k instead of the threshold (the paper's ablation); None: threshold.
        only: regular expression that the names of masked tensors must contain; others stay ON.
        share: random fraction of the weights that may be switched off; the others stay ON.
        seed: of the random share.
    """

    init: float = 1.0
    threshold: float = 0.0
    density: float | None = None
    only: str = ""
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.init <= self.threshold:
            raise InvalidArgument(f"scores must start above the threshold: {self.init} is not above {self.threshold}")
        if self.density is not None and not 0 < self.density <= 1:
            raise InvalidArgument(f"mask density {self.density} is not in (0, 1]")
        if not 0 < self.share <= 1:
            raise InvalidArgument(f"mask share {self.share} is not in (0, 1]")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgument(f"mask seed {self.seed} is not in [0, 2^63)")
        try:
            re.compile(self.only)
        except re.error as error:
            raise InvalidArgument(f"--stages {self.only!r} is not a regular expression: {error}") from error


class Masked(torch.autograd.Function):
    """Computes `theta * on / sqrt(mean(on))`; its gradient goes straight through to the scores."""

    @staticmethod
    def forward(ctx: Any, theta: Float[Tensor, "*s"], scores: Float[Tensor, "*s"], on: Bool[Tensor, "*s"]) -> Tensor:  # noqa: ARG004 (gets the gradient)
        # A tensor without an ON weight would be 0/0. Counting one ON weight keeps it finite, and it can recover.
        mean = (on.sum(dtype=torch.float64) / on.numel()).clamp_min(1 / on.numel()).to(theta.dtype)
        ctx.save_for_backward(theta, on, mean)
        return (theta * on).mul_(mean.rsqrt())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        theta, on, mean = ctx.saved_tensors
        product = grad_outputs[0] * theta
        through_alpha = (product * on).sum() / (2 * on.numel() * mean**1.5)
        return None, product.mul_(mean.rsqrt()).sub_(through_alpha), None


class Scores(nn.Module):
    """The scores of one tensor, as a torch parametrization that turns theta into theta'."""

    def __init__(self, theta: Tensor, rule: MaskRule, allowed: Bool[Tensor, "*s"] | None) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(theta, rule.init))
        self.rule = rule
        # True where a weight must stay ON; None where every weight may be switched off.
        self.register_buffer("kept", None if allowed is None else ~allowed)

    def forward(self, theta: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return Masked.apply(theta, self.scores, self.on())

    @torch.no_grad()
    def on(self) -> Bool[Tensor, "*s"]:
        """The mask that the scores mean now."""
        if self.rule.density is None:
            on = self.scores > self.rule.threshold
        else:
            n_on = max(1, round(self.rule.density * self.scores.numel()))
            on = torch.zeros_like(self.scores, dtype=torch.bool)
            on.view(-1)[self.scores.flatten().topk(n_on).indices] = True
        kept = self.kept
        return on if kept is None else on | kept  # type: ignore[operator]


def choose_tensors(layout: Layout, rule: MaskRule) -> set[str]:
    """Names of the maskable tensors that get scores under a rule.

    Raises:
        InvalidArgument: there are none.
    """
    names = {tensor.name for tensor in layout if re.search(rule.only, tensor.name)}
    if not names:
        stages = ", ".join(list(layout.stages)[:12])
        raise InvalidArgument(f"--stages {rule.only!r} takes no maskable tensor; the stages are {stages}")
    return names


def attach(model: nn.Module, layout: Layout, rule: MaskRule) -> None:
    """Freeze the model and give every maskable tensor that the rule takes a parametrization with scores.

    Raises:
        InvalidArgument: the rule takes no tensor.
    """
    names = choose_tensors(layout, rule)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(rule.seed)
    for tensor in layout:
        owner_name, _, local = tensor.name.rpartition(".")
        theta = model.get_parameter(tensor.name)
        # Every tensor draws, with scores or without: the random share of a tensor does not depend on `only`.
        drawn = torch.rand(theta.shape, generator=generator) < rule.share if rule.share < 1 else None
        if tensor.name not in names:
            continue
        allowed = drawn.to(theta.device) if drawn is not None else None
        scores = Scores(theta.detach(), rule, allowed)
        parametrize.register_parametrization(model.get_submodule(owner_name), local, scores, unsafe=True)


def list_scores(model: nn.Module) -> Iterator[tuple[str, Scores]]:
    """The scores of every tensor that has them, with its name in the plain model."""
    for owner_name, owner in model.named_modules():
        if parametrize.is_parametrized(owner):
            for local, chain in owner.parametrizations.items():
                if isinstance(chain[0], Scores):
                    yield (f"{owner_name}.{local}" if owner_name else local), chain[0]


def count_on(model: nn.Module) -> tuple[int, int]:
    """Count the ON weights and all weights, over the tensors that have scores."""
    on = [s.on() for _, s in list_scores(model)]
    return sum(int(o.sum()) for o in on), sum(o.numel() for o in on)
