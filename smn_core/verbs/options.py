"""The options that every verb with a model shares, `--backbone, --weights, ...`: one a field of `BackboneSpec`.

Each is an `SMN_` variable too. A flag counts first, then what the mask says, then the variable, then the default.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import typer

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec, Said
from smn_core.verbs.recorded import missing_weights, read_weights

if TYPE_CHECKING:
    from smn_core.mask import TaskMask

Made = TypeVar("Made")
GROUP = "Backbone"
DEFAULT_BACKBONE = "vit_tiny_patch16_224"
OF_MASKS = ("name", "args", "image_size", "mean", "std", "crop_pct")
"""Fields of a spec that a mask says something of."""


@dataclass(frozen=True)
class Option:
    """One field of `BackboneSpec` as an option.

    Args:
        field: its name in the spec.
        type: of what a user types: a mapping is typed as a list of KEY=VALUE, numbers as one text with commas.
        default: where nothing is typed.
        read: makes the field's value of what was typed.
    """

    field: str
    said: Said
    type: Any
    default: Any
    read: Callable[[Any], Any]

    @property
    def name(self) -> str:
        return self.said.name


def _option(field: Field[Any], of: Any) -> Option:
    """The option of a field of this type."""
    said: Said = field.metadata["said"]
    if get_origin(of) is get_origin(Mapping[str, Any]):
        return Option(field.name, said, list[str], None, _model_args)
    if of == tuple[float, ...] | None:
        return Option(field.name, said, str, None, partial(numbers, said.name))
    return Option(field.name, said, of, "" if field.default is MISSING else field.default, _as_typed)


def _model_args(texts: list[str] | None) -> dict[str, Any]:
    return parse_model_args(texts or [])


def _as_typed(value: Any) -> Any:
    return value


def learning_options(backbone: str) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """As `model_options`, for a verb that learns: its help says so of --dtype, and does not name SMN_DTYPE.

    Args:
        backbone: what holds without --backbone, in the help's words.
    """
    differently: dict[str, dict[str, Any]] = {
        "backbone": {"otherwise": backbone},
        "dtype": {"more": " A run takes float32 alone.", "show_envvar": False},
    }
    return partial(model_options, differently=differently)


def model_options(
    command: Callable[..., Made], differently: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Callable[..., Made]:
    """Give a command the shared options; it receives them together as `spec: BackboneSpec`.

    Args:
        differently: by option what its help says otherwise: `otherwise`, `more`, `show_envvar`.
    """
    own = inspect.signature(command, eval_str=True)
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [_parameter(option, **differently.get(option.name, {})) for option in OPTIONS]
    parameters = [context, *(p for p in own.parameters.values() if p.name != "spec"), *shared]

    def wrapped(**given: Any) -> Made:
        context = given.pop("context")
        typed = {option.name: given.pop(option.name) for option in OPTIONS}
        variables = {name: typed.pop(name) for name in list(typed) if _is_variable(context, name)}
        return command(spec=_said(typed, variables), **given)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapped


def _parameter(
    option: Option, *, otherwise: str | None = None, more: str = "", show_envvar: bool = True
) -> inspect.Parameter:
    """The option as a parameter that typer reads."""
    otherwise = option.said.otherwise if otherwise is None else otherwise
    shown = typer.Option(
        metavar=option.said.metavar,
        help=f"{option.said.help}.{more}{f' Default: {otherwise}.' if otherwise else ''}",
        rich_help_panel=GROUP,
        envvar=f"SMN_{option.name.upper()}",
        show_envvar=show_envvar,
    )
    kind = option.type if option.default is not None else option.type | None
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=Annotated[kind, shown]
    )


def _is_variable(context: Any, name: str) -> bool:
    # The context is of typer's own copy of click, which is not the class that typer has one annotate.
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _said(typed: Mapping[str, Any], variables: Mapping[str, Any]) -> BackboneSpec:
    """The spec of flags; a variable is noted in it, and stands in it at once where no mask can say otherwise."""
    if "model_arg" in variables:  # typer splits a variable at spaces
        variables = {**variables, "model_arg": split_list(" ".join(variables["model_arg"]))}
    defaults = {option.name: option.default for option in OPTIONS}
    by_variable = {o.field: o.read(variables[o.name]) for o in OPTIONS if o.name in variables}
    at_once = {field: value for field, value in by_variable.items() if field not in OF_MASKS}
    return replace(spec_of({**defaults, **typed}), **at_once, by_variable=by_variable)


def split_list(text: str) -> list[str]:
    """The parts of a list as a variable has it: `a,b`, or `["a,b", "c"]` where a part has commas itself."""
    return json.loads(text) if text.startswith("[") else [part for part in text.split(",") if part]


def spec_of(typed: Mapping[str, Any]) -> BackboneSpec:
    """The backbone that options name: `{"backbone": "test_vit", "model_arg": ["depth=3"], ...}`, all of `OPTIONS`.

    Raises:
        InvalidArgument: a model argument, mean or std that cannot be read.
    """
    return BackboneSpec(**{option.field: option.read(typed[option.name]) for option in OPTIONS})


def as_trained(spec: BackboneSpec, mask: TaskMask | None, file: Path | None = None) -> BackboneSpec:
    """What no flag said is as the mask has it: architecture, arguments, image size, crop, normalisation.

    The weights are those that the run beside the mask's `file` noted. What neither flag nor mask says is as an `SMN_`
    variable has it, or else the default.

    Raises:
        InvalidArgument: the run's note is damaged, or it names weights that are not there and nothing else does.
    """
    if mask is not None and file is not None:
        spec = with_noted_weights(spec, file, mask.fingerprint)
    otherwise: Mapping[str, Any] = {key: value for key, value in spec.by_variable.items() if key in OF_MASKS}
    spec = replace(spec, by_variable={})
    if mask is not None:
        if not spec.name:
            model = json.loads(mask.model)
            spec = replace(spec, name=model["architecture"], args=spec.args or model["args"])
            otherwise = {key: value for key, value in otherwise.items() if key != "args"}
        spec = _with_pixels(spec, mask.preprocess or {})
    left = {key: value for key, value in otherwise.items() if getattr(spec, key) in ("", None, {})}
    spec = replace(spec, **left)
    return spec if spec.name else replace(spec, name=DEFAULT_BACKBONE)


def with_noted_weights(spec: BackboneSpec, file: Path, fingerprint: str) -> BackboneSpec:
    """The spec with the weights that the run beside a mask file learned on, where no flag names others.

    Raises:
        InvalidArgument: the note is damaged, or it names weights that are not there and nothing else does.
    """
    said_by_flag = spec.weights is not None and "weights" not in spec.by_variable
    noted = read_weights(file, fingerprint) if not said_by_flag else None
    if noted is None:
        return spec
    if noted.exists():
        return replace(spec, weights=noted)
    if spec.weights is None:
        raise InvalidArgument(missing_weights(file, noted))
    return spec


def for_learning(spec: BackboneSpec) -> BackboneSpec:
    """The spec of a run: it learns in float32, whatever SMN_DTYPE says for the servers that share the environment.

    Raises:
        InvalidArgument: `--dtype` says another: the steps of scores are too small for it.
    """
    if "dtype" in spec.by_variable:
        return replace(spec, dtype="float32")
    if spec.dtype != "float32":
        raise InvalidArgument(f"--dtype {spec.dtype}: training keeps float32 weights; set precision=bf16-mixed")
    return spec


def _with_pixels(spec: BackboneSpec, pixels: Mapping[str, Any]) -> BackboneSpec:
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


_TYPES = get_type_hints(BackboneSpec)
OPTIONS = tuple(_option(field, _TYPES[field.name]) for field in fields(BackboneSpec) if "said" in field.metadata)
"""All of them, in the order of the spec's fields."""
