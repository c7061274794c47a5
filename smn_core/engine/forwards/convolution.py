"""Convolutions with the normalisation behind them folded into their weights, and the activation in the same pass.

    norm(conv(x; w)) = conv(x; w * f) + b,    f = gamma / sqrt(variance + eps),    b = beta - mean * f

Weights and statistics belong to the mask, so every slot is folded for itself, when it is written. Weights that are not
folded run through the same modules: a convolution that has a bias is folded, and one without is followed by its
normalisation as ever. So only convolutions without a bias of their own can take this form.

oneDNN puts a weight into an order of its own at every call. A weight that is packed lies in that order already: packing
is done once, when a slot is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional

from smn_core.engine.forwards.linear import ACTIVATIONS, activate


class FoldedConv2d(nn.Conv2d):
    """What an `nn.Conv2d` becomes.

    Attributes:
        activation: applied where it is folded.
        packed_for: the shape of the input that folded weights are packed for; None where they are not packed.
    """

    activation: str
    packed_for: Sequence[int] | None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return self._conv_forward(x, self.weight, None)
        if x.numel() == 0:
            return activate(self._conv_forward(x, self.weight, self.bias), self.activation)
        where = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        name, algorithm = ACTIVATIONS[self.activation]
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *where, name, [], algorithm)


class Behind(nn.Module):
    """What follows a convolution that may be folded."""

    @property
    def folded(self) -> bool:
        return self.__dict__["convolution"].bias is not None


class NormBehind(Behind, nn.BatchNorm2d):
    """What an `nn.BatchNorm2d` becomes."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)


class NormActBehind(Behind, BatchNormAct2d):
    """What timm's normalisation with an activation of its own becomes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x)) if self.folded else super().forward(x)


class ReLUBehind(Behind):
    """What an activation becomes that was found to compute `relu`."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else functional.relu(x)


@dataclass(frozen=True, eq=False)
class Chain:
    """A convolution, the normalisation behind it, the `relu` behind that, if there is one; what the first one gets."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: nn.Module | None
    input_shape: tuple[int, ...]


def can_be_folded(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether two modules, one behind the other, are of the kinds that the formula holds for."""
    return (
        type(convolution) is nn.Conv2d
        and convolution.bias is None
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
        and bool(norm.affine)
        and norm.running_mean is not None
    )


def fold(
    weight: Float[Tensor, "o i h w"],
    bias: Float[Tensor, "o"],
    gamma: Float[Tensor, "o"],
    beta: Float[Tensor, "o"],
    mean: Float[Tensor, "o"],
    variance: Float[Tensor, "o"],
    eps: float,
) -> None:
    """Fold a normalisation into a weight in place, and write the bias that belongs to it."""
    factor = gamma.float() / torch.sqrt(variance.float() + eps)
    weight.data.mul_(factor.view(-1, 1, 1, 1))
    bias.data.copy_(beta.float() - mean.float() * factor)


def pack(convolution: nn.Conv2d, weight: Float[Tensor, "o i h w"], input_shape: Sequence[int]) -> Tensor:
    """A copy of a weight in the order that oneDNN wants for such an input; other inputs are right too, but slower."""
    where = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(weight.detach().to_mkldnn(), *where, list(input_shape))


class Folding:
    """The chains of a model whose weights lie in flat arrays and have names.

    Args:
        model: its convolutions are `FoldedConv2d`.
    """

    def __init__(self, model: nn.Module) -> None:
        names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        self._chains: list[tuple[str, str, FoldedConv2d, nn.BatchNorm2d, tuple[str, str, str, str]]] = []
        for norm in model.modules():
            if isinstance(norm, NormBehind | NormActBehind):
                convolution = norm.__dict__["convolution"]
                own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                weight = names[id(convolution.weight)]
                bias = f"{weight.removesuffix('weight')}bias"
                self._chains.append((weight, bias, convolution, norm, tuple(names[id(tensor)] for tensor in own)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def packs(self) -> bool:
        """Whether folded weights are packed."""
        return any(convolution.packed_for is not None for _, _, convolution, _, _ in self._chains)

    def pack(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of folded weights by name, those of the chains packed."""
        chained = {weight for weight, *_ in self._chains}
        found = {name: tensor.detach().clone() for name, tensor in weights.items() if name not in chained}
        for weight, _, convolution, _, _ in self._chains:
            assert convolution.packed_for is not None
            found[weight] = pack(convolution, weights[weight], convolution.packed_for)
        return found

    def make_biases(self, like: Tensor) -> dict[str, Tensor]:
        """Memory for the biases of one folded array of weights, by name."""
        return {
            bias: nn.Parameter(like.new_zeros(convolution.out_channels), requires_grad=False)
            for _, bias, convolution, _, _ in self._chains
        }

    def fold(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Fold weights in place.

        Args:
            weights: of one mask, by name, the biases of `make_biases` among them.
            state: its normalisation statistics, by name.
        """
        for weight, bias, _, norm, (gamma, beta, mean, variance) in self._chains:
            own = weights.get(gamma, norm.weight), weights.get(beta, norm.bias)
            fold(weights[weight], weights[bias], *own, state[mean], state[variance], norm.eps)

    def show(self, weights: Mapping[str, Tensor]) -> None:
        """Make the convolutions find their biases among these weights; those that are not folded have none."""
        for _, bias, convolution, _, _ in self._chains:
            convolution._parameters["bias"] = weights.get(bias)  # type: ignore[assignment]


def find_folding(model: nn.Module) -> Folding | None:
    """The chains of a model that runs in this form."""
    folding = Folding(model)
    return folding if len(folding) else None


def fold_copies(chains: Iterable[Chain], packed: bool) -> dict[nn.Conv2d, tuple[Tensor, Tensor]]:
    """Folded copies of the weights that the modules hold, and their biases, by convolution."""
    found = {}
    for chain in chains:
        norm, weight = chain.norm, chain.convolution.weight.detach().clone()
        bias = weight.new_zeros(len(weight))
        assert norm.running_mean is not None and norm.running_var is not None
        fold(weight, bias, norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var, norm.eps)
        if packed:
            weight = pack(chain.convolution, weight, chain.input_shape)
        found[chain.convolution] = (weight, bias)
    return found
