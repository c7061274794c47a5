"""What verbs say on stderr: notes, and what was left out of a result. It imports nothing slow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import typer

from smn_core.verbs.texts import visible

SOME_LEFT_OUT = 1
"""The exit code where a result was written without some of the images."""


def note(text: str) -> None:
    """A line on stderr: stdout belongs to results. Control characters of names are shown as escapes, never obeyed."""
    print(visible(text), file=sys.stderr, flush=True)


def name_unreadable(reasons: Sequence[str], where: str = "", say: Callable[[str], None] = note) -> None:
    """Say how many images could not be read, and which ones, with the reasons. Without any, nothing is said."""
    if reasons:
        what, verb = ("image", "was") if len(reasons) == 1 else ("images", "were")
        say(f"warning: {len(reasons)} {what}{where} could not be read and {verb} left out:")
        for reason in reasons:
            say(f"  {visible(reason)}")


def count_others(others: Mapping[str, int], where: str = "", say: Callable[[str], None] = note) -> None:
    """Say how many files beside the images are of kinds that are not read, by suffix. Without any, nothing is said."""
    if others:
        from smn_core.imageset import say_others

        n = sum(others.values())
        what = "file of another kind is" if n == 1 else "files of other kinds are"
        say(f"{n:,} {what} not read{where}: {visible(say_others(others))}")


def end_by(left_out: Sequence[str]) -> None:
    """End the verb, whose work is done: with code 1 where images were left out.

    Raises:
        typer.Exit: some were.
    """
    if left_out:
        raise typer.Exit(SOME_LEFT_OUT)
