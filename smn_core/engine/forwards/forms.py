"""Forms: in which way each kind of layer of a model runs; and how the layers of a model take a form on and off.

A layer takes a form by becoming an instance of another class. Its parameters, its buffers and its name stay, so whoever
shows it other weights need not know. Which activations follow a linear layer is found by watching one forward, not by
names: the activation gets the very tensor that the layer returned, unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args, get_type_hints

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from smn_core.backbone import Backbone
from smn_core.engine.forwards.attention import AttentionByProducts, can_run_by_products
from smn_core.engine.forwards.convolution import (
    Chain,
    FoldedConv2d,
    NormActBehind,
    NormBehind,
    ReLUBehind,
    can_be_folded,
    fold_copies,
)
from smn_core.engine.forwards.linear import OneDNNLinear, activate, has_onednn


@dataclass(frozen=True)
class Forms:
    """How a model runs. The first value of each attribute is plain timm's.

    Attributes:
        linear: torch's product; oneDNN's; oneDNN's with the activation behind it in the same pass.
        attention: as timm has it, by torch's fused kernel as a rule; by timm's own products; by batched products.
        convolution: as timm has it; with the channels of an image last in memory, where a batch has more than one;
            with normalisations folded into the weights; folded, and the weights packed, channels last always.
    """

    linear: Literal["torch", "onednn", "onednn, activation fused"] = "torch"
    attention: Literal["timm", "timm, unfused", "products"] = "timm"
    convolution: Literal["timm", "channels last", "folded", "folded, packed"] = "timm"

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    def but(self, name: str, value: str) -> Forms:
        """These forms with another value of one attribute."""
        return Forms.of_json({**self.as_json(), name: value})

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Forms:
        """The forms that `as_json` wrote.

        Raises:
            ValueError: they are none.
        """
        if set(values) != set(CHOICES) or any(value not in CHOICES[name] for name, value in values.items()):
            raise ValueError(f"not the forms of a model: {values}")
        return cls(**values)


PACKED_FOR = 8
"""Images of the batch that weights are packed for; a batch of one runs as fast with them."""
CHOICES: dict[str, tuple[str, ...]] = {name: get_args(kind) for name, kind in get_type_hints(Forms).items()}
"""The values of each attribute of `Forms`."""


class Passed(nn.Module):
    """What an activation becomes that the layer before it has applied."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Layers:
    """The layers of a model that can take forms. The model stays as it is until `run_as`.

    Args:
        x: one image or a few, to watch a forward with.
        foldable: whether normalisations may be folded.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n 3 h w"], foldable: bool = True) -> None:
        self._model = model
        modules = [module for module in model.modules() if "forward" not in module.__dict__]
        onednn = has_onednn() and x.device.type == "cpu"
        self._linears = [module for module in modules if type(module) is nn.Linear and onednn]
        self._convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        pairs, shapes = find_followers(model, x)
        self._fused = [
            (layer, module, activation)
            for layer in self._linears
            if (module := pairs.get(layer)) is not None and (activation := name_activation(module)) is not None
        ]
        self._chains = find_chains(self._convolutions, pairs, shapes) if foldable and onednn else []
        self._folded: dict[bool, dict[nn.Conv2d, tuple[Tensor, Tensor]]] = {}
        self._attentions = [module for module in modules if can_run_by_products(module)]
        self._choosing = [module for module in modules if isinstance(getattr(module, "fused_attn", None), bool)]
        self._choice = [module.fused_attn for module in self._choosing]
        self._undo: list[Callable[[], object]] = []

    def offers(self, forms: Forms) -> bool:
        """Whether the model has layers for each form; without them a form is plain timm's under another name."""
        return (
            (forms.linear == "torch" or bool(self._linears))
            and (forms.linear != "onednn, activation fused" or bool(self._fused))
            and (forms.attention != "timm, unfused" or any(self._choice))
            and (forms.attention != "products" or bool(self._attentions))
            and (forms.convolution == "timm" or len(self._convolutions) > 1)
            and ("folded" not in forms.convolution or bool(self._chains))
        )

    def alternatives(self, forms: Forms, name: str) -> list[Forms]:
        """The forms that differ from these in one attribute and that the model has layers for."""
        others = [forms.but(name, value) for value in CHOICES[name] if value != forms.as_json()[name]]
        return [other for other in others if self.offers(other)]

    def run_as(self, forms: Forms, folded: bool = False) -> None:
        """Make the model run in these forms, whatever it ran in before.

        Args:
            folded: also hold folded copies of the weights, as the root in an engine will; else nothing is folded yet.
        """
        while self._undo:
            self._undo.pop()()
        for module, fused in zip(self._choosing, self._choice, strict=True):
            module.fused_attn = fused and forms.attention == "timm"  # type: ignore[assignment]
        if forms.linear != "torch":
            for layer in self._linears:
                self._turn(layer, OneDNNLinear, activation="none")
        if forms.linear == "onednn, activation fused":
            for layer, module, activation in self._fused:
                layer.activation = activation  # type: ignore[assignment]
                self._turn(module, Passed)
        if forms.attention == "products":
            for module in self._attentions:
                self._turn(module, AttentionByProducts)
        if forms.convolution in ("channels last", "folded, packed"):
            hook = partial(_put_channels_last, from_images=1 if "packed" in forms.convolution else 2)
            self._undo.append(self._model.register_forward_pre_hook(hook).remove)
        if "folded" in forms.convolution:
            self._take_chains(folded, "packed" in forms.convolution)

    def _take_chains(self, folded: bool, packed: bool) -> None:
        for chain in self._chains:
            activation = "none" if chain.relu is None else "relu"
            packed_for = (PACKED_FOR, *chain.input_shape[1:]) if packed else None
            self._turn(chain.convolution, FoldedConv2d, activation=activation, packed_for=packed_for)
            kind = NormActBehind if isinstance(chain.norm, BatchNormAct2d) else NormBehind
            self._turn(chain.norm, kind, convolution=chain.convolution)
            if chain.relu is not None:
                self._turn(chain.relu, ReLUBehind, convolution=chain.convolution)
        if folded:
            if packed not in self._folded:
                self._folded[packed] = fold_copies(self._chains, packed)
            for convolution, (weight, bias) in self._folded[packed].items():
                held: Any = convolution._parameters
                self._undo.append(partial(held.update, weight=held["weight"], bias=None))
                held.update(weight=weight, bias=bias)

    def _turn(self, module: nn.Module, kind: type[nn.Module], **attributes: object) -> None:
        """Make a module one of another class. What it needs to know goes past torch's list of submodules."""
        self._undo.append(partial(setattr, module, "__class__", type(module)))
        module.__class__ = kind
        module.__dict__.update(attributes)


def _put_channels_last(_: nn.Module, given: tuple[Any, ...], from_images: int) -> tuple[Any, ...]:
    # One image is computed faster as it is, but for packed weights (benchmarks/forwards.py).
    return (
        given if len(given[0]) < from_images else (given[0].contiguous(memory_format=torch.channels_last), *given[1:])
    )


def layers_of(backbone: Backbone) -> Layers:
    """The layers of a backbone's model.

    Normalisations are folded where batches that mix masks run segment by segment anyway: where convolutions prevail.
    """
    x = torch.zeros(1, *backbone.preprocess["input_size"], dtype=backbone.dtype, device=backbone.device)
    flat = sum(tensor.n_weights for tensor in backbone.layout if len(tensor.shape) == 2)
    with torch.inference_mode(False):
        return Layers(backbone.model, x, foldable=2 * flat < backbone.layout.n_weights)


def put_on(backbone: Backbone, forms: Forms) -> None:
    """Make a model run in these forms as far as it has layers for them."""
    if forms != Forms():
        layers_of(backbone).run_as(forms)


def find_followers(
    model: nn.Module, x: Float[Tensor, "n 3 h w"]
) -> tuple[dict[nn.Module, nn.Module], dict[nn.Module, tuple[int, ...]]]:
    """For each module without submodules, the one that gets what it returns, unchanged; and the shape of its own input.

    Both are called once. That no other code reads the tensor does not show here: then the embeddings differ, and who
    compares sees it.
    """
    calls: Counter[nn.Module] = Counter()
    returned: list[tuple[Tensor, int, nn.Module]] = []
    found: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, _: Any, y: Any) -> None:
        calls[module] += 1
        if isinstance(y, Tensor):
            returned[:] = [(y, y._version, module)]

    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def meet(module: nn.Module, given: tuple[Any, ...]) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor):
            shapes[module] = tuple(given[0].shape)
        for y, version, before in returned:
            if len(given) == 1 and given[0] is y and y._version == version:
                found.append((before, module))

    handles: list[RemovableHandle] = []
    for module in model.modules():
        single = next(module.children(), None) is None or isinstance(module, BatchNormAct2d)
        if single and "forward" not in module.__dict__:
            handles += [module.register_forward_pre_hook(meet), module.register_forward_hook(note)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {before: behind for before, behind in found if calls[before] == calls[behind] == 1}, shapes


def find_chains(
    convolutions: Sequence[nn.Conv2d],
    pairs: Mapping[nn.Module, nn.Module],
    shapes: Mapping[nn.Module, tuple[int, ...]],
) -> list[Chain]:
    """The convolutions whose normalisation can be folded into them; see `Chain`."""
    found, uses = [], Counter(id(convolution.weight) for convolution in convolutions)
    for convolution in convolutions:
        norm = pairs.get(convolution)
        if norm is not None and uses[id(convolution.weight)] == 1 and can_be_folded(convolution, norm):
            relu = pairs.get(norm) if type(norm) is nn.BatchNorm2d else None
            while type(relu) is nn.Identity:
                relu = pairs.get(relu)
            is_relu = relu is not None and name_activation(relu) == "relu"
            found.append(Chain(convolution, norm, relu if is_relu else None, shapes[convolution]))  # type: ignore[arg-type]
    return found


def name_activation(module: nn.Module) -> str | None:
    """What a module without weights computes, by trying it; None where it is none that oneDNN fuses."""
    if next(module.parameters(), None) is not None:
        return None
    probe = torch.linspace(-6, 6, 481)
    try:
        y = module(probe.clone())
    except Exception:  # a module may want a tensor of another shape
        return None
    names = [name for name in ("gelu", "gelu_tanh", "relu") if torch.equal(y, activate(probe, name))]
    return names[0] if names else None
