"""The help of the verbs: flags take no value, and what a verb learns with is said as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import smn
from smn.command import GROUPS


def verbs(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All verbs, and those of verbs, by the words that call them."""
    for name, verb in getattr(command, "commands", {}).items():
        yield (*words, name), verb
        yield from verbs(verb, *words, name)


VERBS = dict(verbs(typer.main.get_command(smn.app)))


def help_of(*words: str) -> str:
    done = CliRunner().invoke(smn.app, [*words, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_flag_is_shown_without_a_value_and_an_option_with_one(words):
    shown = help_of(*words)
    assert "--help" in shown and "<bool>" not in shown
    for option in VERBS[words].params:
        if not getattr(option, "is_flag", True) and not getattr(option, "hidden", False):
            (line,) = (line for line in shown.splitlines() if f" {option.opts[0]}  " in line)
            assert (option.metavar or "<") in line


@pytest.mark.parametrize(
    ("words", "backbone"),
    [
        (["adapt"], "vit_tiny_patch16_224"),
        (["train"], "that of --start, else vit_tiny_patch16_224"),
        (["cascade"], "the root's own"),
        (["embed"], "the mask's own, else vit_tiny_patch16_224"),
    ],
)
def test_the_help_says_which_backbone_a_verb_takes_by_itself(words, backbone):
    assert f"timm model name. Default: {backbone}." in help_of(*words)


@pytest.mark.parametrize("words", [["adapt"], ["train"], ["cascade"], ["bench", "paper"]], ids=" ".join)
def test_the_servers_precision_is_no_variable_of_a_verb_that_learns(words):
    shown = help_of(*words)
    assert "SMN_DTYPE" not in shown and "SMN_DEVICE" in shown
    assert "SMN_DTYPE" in help_of("embed")


def test_the_list_of_verbs_names_each_once_under_a_heading_that_says_what_it_is_for():
    shown = help_of()
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(smn.app).commands)  # type: ignore[attr-defined]
    assert "Other verbs:" not in shown
    for title, names in GROUPS.items():
        _, below = shown.split(f"\n{title}:\n")
        assert all(f"\n  {name} " in f"\n{below}" for name in names)
