"""The flags of `smn serve`: one for every setting, made of `Settings` at their first use."""

from __future__ import annotations

import inspect
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

GIB, MIB = 2**30, 2**20
FILES = inspect.Parameter(
    "files",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE.smn",
            help="Masks to put into the registry, under their files' names, and to serve. They say which backbone and "
            "pixels; --weights or FILE.run/ says which weights.",
        ),
    ],
)
"""The argument of `smn serve`."""


class SettingsCommand(TyperCommand):
    """A verb with a flag for every setting, and files. Its function asks `said` and `files_of` for what was given.

    The flags are made at their first use: importing pydantic would nearly double the time of `smn --help`.
    """

    @cached_property
    def _flags(self) -> Any:
        """The parameters that typer makes of a function with such a signature."""
        from service.settings import Settings

        def command() -> None:
            """Has the signature that typer reads, and is never called."""

        parameters = [FILES, *(_parameter(name, field) for name, field in Settings.model_fields.items())]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app = typer.Typer(add_completion=False)
        app.command()(command)
        return typer.main.get_command(app).params

    @property
    def params(self) -> Any:
        return self._flags

    @params.setter
    def params(self, none: Any) -> None:
        """Ignore what typer found in the function's own signature: it has the context and no flags."""

    def invoke(self, ctx: Any) -> Any:
        return ctx.invoke(self.callback)


def said(ctx: Any) -> dict[str, Any]:
    """The settings that flags gave; the others come from variables or defaults."""
    # A repeated flag that was not given has an empty list.
    given = {name: value for name, value in ctx.params.items() if name != FILES.name}
    return {name: value for name, value in given.items() if value not in (None, [], ())}


def files_of(ctx: Any) -> list[Path]:
    """The mask files to serve."""
    return [Path(file) for file in ctx.params[FILES.name] or ()]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """A flag without a default of its own: where it is not given, the variable or the setting's default holds."""
    shown, told = shown_of(field), default_words(field)
    kind: Any = str if field.annotation == list[str] and not shown["repeated"] else field.annotation
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=shown["metavar"] or None,
        help=f"{shown['short']}{f' Default: {told}.' if told else ''}",
        rich_help_panel=shown["group"] or None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def shown_of(field: FieldInfo) -> dict[str, Any]:
    """What `setting` was told for the help."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def default_words(field: FieldInfo) -> str:
    """The default in the help's words, such as `8000`, `2 GiB` or `0, one a core`; "" where the help names none."""
    told, default = shown_of(field)["otherwise"], field.default
    if told is not None:
        return str(told)
    if default is None or default == [] or default is False:
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if isinstance(default, int) and default and default % unit == 0:
            return f"{default // unit} {name}"
    return str(default)
