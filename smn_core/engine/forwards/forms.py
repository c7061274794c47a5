"""Forms: in which way each kind of layer of a model runs; and how the layers of a model take a form on and off.

A layer takes a form by becoming an instance of another class. Its parameters, its buffers and its name stay, so whoever
shows it other weights need not know. Which activations follow a linear layer is found by watching one forward, not by
names: the activation gets the very tensor that the layer returned, unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smn_core.backbone import Backbone
from smn_core.engine.forwards.attention import AttentionByProducts, can_run_by_products
from smn_core.engine.forwards.linear import OneDNNLinear, activate, has_onednn


@dataclass(frozen=True)
class Forms:
    """How a model runs. The first value of each attribute is plain timm's.

    Attributes:
        linear: torch's product; oneDNN's; oneDNN's with the activation behind it in the same pass.
        attention: as timm has it, by torch's fused kernel as a rule; by timm's own products; by batched products.
    """

    linear: Literal["torch", "onednn", "onednn, activation fused"] = "torch"
    attention: Literal["timm", "timm, unfused", "products"] = "timm"

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Forms:
        """The forms that `as_json` wrote.

        Raises:
            ValueError: they are none.
        """
        if set(values) != set(CHOICES) or any(value not in CHOICES[name] for name, value in values.items()):
            raise ValueError(f"not the forms of a model: {values}")
        return cls(**values)


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
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n 3 h w"]) -> None:
        modules = [module for module in model.modules() if "forward" not in module.__dict__]
        onednn = has_onednn() and x.device.type == "cpu"
        self._linears = [module for module in modules if type(module) is nn.Linear and onednn]
        self._fused = find_activations(model, self._linears, x) if self._linears else []
        self._attentions = [module for module in modules if can_run_by_products(module)]
        self._choosing = [module for module in modules if isinstance(getattr(module, "fused_attn", None), bool)]
        self._choice = [module.fused_attn for module in self._choosing]
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []

    def offers(self, forms: Forms) -> bool:
        """Whether the model has layers for each form; without them a form is plain timm's under another name."""
        return (
            (forms.linear == "torch" or bool(self._linears))
            and (forms.linear != "onednn, activation fused" or bool(self._fused))
            and (forms.attention != "timm, unfused" or any(self._choice))
            and (forms.attention != "products" or bool(self._attentions))
        )

    def alternatives(self, forms: Forms, name: str) -> list[Forms]:
        """The forms that differ from these in one attribute and that the model has layers for."""
        others = [replace(forms, **{name: value}) for value in CHOICES[name] if value != getattr(forms, name)]
        return [other for other in others if self.offers(other)]

    def run_as(self, forms: Forms) -> None:
        """Make the model run in these forms, whatever it ran in before."""
        while self._classes:
            module, kind = self._classes.pop()
            module.__class__ = kind
        for module, fused in zip(self._choosing, self._choice, strict=True):
            module.fused_attn = fused and forms.attention == "timm"  # type: ignore[assignment]
        if forms.linear != "torch":
            for layer in self._linears:
                self._turn(layer, OneDNNLinear)
                layer.activation = "none"  # type: ignore[assignment]
        if forms.linear == "onednn, activation fused":
            for layer, module, activation in self._fused:
                layer.activation = activation  # type: ignore[assignment]
                self._turn(module, Passed)
        if forms.attention == "products":
            for module in self._attentions:
                self._turn(module, AttentionByProducts)

    def _turn(self, module: nn.Module, kind: type[nn.Module]) -> None:
        self._classes.append((module, type(module)))
        module.__class__ = kind


def put_on(backbone: Backbone, forms: Forms) -> None:
    """Make a model run in these forms as far as it has layers for them."""
    if forms != Forms():
        x = torch.zeros(1, *backbone.preprocess["input_size"], dtype=backbone.dtype, device=backbone.device)
        Layers(backbone.model, x).run_as(forms)


def find_activations(
    model: nn.Module, layers: list[nn.Linear], x: Float[Tensor, "n 3 h w"]
) -> list[tuple[nn.Linear, nn.Module, str]]:
    """Each layer that is followed by an activation of its own, that module, and the activation's name.

    Whether others read the layer's output too does not show here; then the embeddings differ, and who compares sees it.
    """
    calls: Counter[nn.Module] = Counter()
    returned: list[tuple[Tensor, int, nn.Linear]] = []
    found: list[tuple[nn.Linear, nn.Module, str]] = []

    def note(layer: Any, _: Any, y: Tensor) -> None:
        calls[layer] += 1
        returned.append((y, y._version, layer))

    def meet(module: nn.Module, given: tuple[Any, ...]) -> None:
        calls[module] += 1
        if len(given) == 1 and isinstance(given[0], Tensor) and returned:
            y, version, layer = returned[-1]
            if y is given[0] and y._version == version and (name := name_activation(module)) is not None:
                found.append((layer, module, name))

    handles = [layer.register_forward_hook(note) for layer in layers]
    simple = [
        m for m in model.modules() if not any(True for _ in m.children()) and not any(True for _ in m.parameters())
    ]
    handles += [module.register_forward_pre_hook(meet) for module in simple]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if calls[pair[0]] == calls[pair[1]] == 1]


def name_activation(module: nn.Module) -> str | None:
    """What a module without weights computes, by trying it; None where it is none that oneDNN fuses."""
    probe = torch.linspace(-6, 6, 481)
    try:
        y = module.forward(probe.clone())  # around the hooks
    except Exception:  # a module may want a tensor of another shape
        return None
    names = [name for name in ("gelu", "gelu_tanh", "relu") if torch.equal(y, activate(probe, name))]
    return names[0] if names else None
