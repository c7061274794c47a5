"""The options that every verb with a model shares: `--backbone, --weights, --model-arg, ...`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec

if TYPE_CHECKING:
    from smn_core.mask import TaskMask

Made = TypeVar("Made")
GROUP = "Backbone"
DEFAULT_BACKBONE = "resnet50"


def model_options(command: Callable[..., Made]) -> Callable[..., Made]:
    """Give a command the shared options; it receives them together as `spec: BackboneSpec`."""
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(_spec, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name != "spec"] + list(shared.parameters.values())

    def wrapped(**given: Any) -> Made:
        spec = _spec(**{name: given.pop(name) for name in shared.parameters})
        return command(spec=spec, **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapped


def _spec(
    *,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="timm model name. Default: the mask's own, else resnet50.", rich_help_panel=GROUP
        ),
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="safetensors or weights_only checkpoint. Default: timm's pretrained weights.",
            rich_help_panel=GROUP,
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Extra create_model argument; may be repeated.", rich_help_panel=GROUP),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PX", help="Side of the input. Default: timm's.", rich_help_panel=GROUP)
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Pixel mean, one or three numbers. Default: timm's.", rich_help_panel=GROUP),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Pixel deviation, likewise.", rich_help_panel=GROUP)
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of the shorter side, how much is seen; 1: all. Default: timm's.",
            rich_help_panel=GROUP,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU where there is one.", rich_help_panel=GROUP)
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=GROUP)] = "float32",
) -> BackboneSpec:
    return BackboneSpec(
        name=backbone,
        weights=weights,
        args=parse_model_args(model_arg or []),
        image_size=image_size,
        mean=numbers("mean", mean),
        std=numbers("std", std),
        crop_pct=crop_pct,
        device=device,
        dtype=dtype,
    )


def as_trained(spec: BackboneSpec, mask: TaskMask | None) -> BackboneSpec:
    """What the user did not say is as the mask has it: architecture, arguments, image size, crop, normalisation."""
    if mask is None:
        return spec if spec.name else replace(spec, name=DEFAULT_BACKBONE)
    if not spec.name:
        model = json.loads(mask.model)
        spec = replace(spec, name=model["architecture"], args=spec.args or model["args"])
    pixels: Mapping[str, Any] = mask.preprocess or {}
    size, seen = pixels.get("input_size"), pixels.get("crop_pct")
    return replace(
        spec,
        image_size=spec.image_size or (int(size[-1]) if size else None),
        mean=spec.mean or (tuple(pixels["mean"]) if "mean" in pixels else None),
        std=spec.std or (tuple(pixels["std"]) if "std" in pixels else None),
        crop_pct=float(seen) if spec.crop_pct is None and isinstance(seen, (int, float)) else spec.crop_pct,
    )


def parse_model_args(texts: list[str]) -> dict[str, Any]:
    """`["depth=3", "pad_type=same"]` -> `{"depth": 3, "pad_type": "same"}`: a value is JSON where it reads as JSON."""
    args = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InvalidArgument(f"--model-arg {text!r}: write KEY=VALUE")
        try:
            args[key] = json.loads(value)
        except ValueError:
            args[key] = value
    return args


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """`"0.5,0.4,0.3"` -> `(0.5, 0.4, 0.3)`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"--{name} {text!r}: write one or three numbers, as 0.5,0.5,0.5") from error
