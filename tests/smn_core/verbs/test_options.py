"""The options that every verb with a model shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options, parse_model_args


@pytest.fixture
def app() -> tuple[typer.Typer, list[BackboneSpec]]:
    """A verb that keeps the specs it was called with."""
    app, specs = typer.Typer(), []

    @app.command()
    @model_options
    def verb(data: str, spec: BackboneSpec, rows: int = 3) -> None:
        """A verb of a test."""
        specs.append((data, rows, spec))

    return app, specs


def test_nothing_said_is_nothing_decided(app):
    """Without options the spec leaves everything to timm and the mask."""
    verb, called = app
    assert CliRunner().invoke(verb, ["d"]).exit_code == 0
    assert called == [("d", 3, BackboneSpec(name=""))]


def test_every_option_arrives_in_the_spec(app):
    """All shared options reach the verb as one spec, beside the verb's own."""
    verb, called = app
    options = (
        "--backbone vit --weights w.pth --model-arg depth=3 --model-arg pad_type=same --image-size 64 "
        "--mean 0.5 --std .1,.2,.3 --crop-pct 1 --device cpu --dtype bfloat16 --rows 5"
    )
    assert CliRunner().invoke(verb, ["d", *options.split()]).exit_code == 0
    args = {"depth": 3, "pad_type": "same"}
    spec = BackboneSpec("vit", Path("w.pth"), args, 64, (0.5,), (0.1, 0.2, 0.3), 1.0, "cpu", "bfloat16")
    assert called == [("d", 5, spec)]


def test_the_help_of_a_verb_lists_the_shared_options(app):
    """--help shows the verb's own text and the options of the backbone."""
    shown = CliRunner().invoke(app[0], ["--help"], env={"COLUMNS": "200"}).output
    for text in ("A verb of a test.", "--rows", "--backbone", "--weights", "--model-arg", "--dtype"):
        assert text in shown


def test_pixels_are_read_as_the_mask_was_trained_unless_said_otherwise(make_backbone, make_mask):
    """Size, crop, mean and deviation of the mask; an option goes before it, and what is no number is timm's."""
    mask = make_mask(make_backbone("test_vit"), with_preprocess=True)
    pixels = {**mask.preprocess, "crop_pct": 0.5, "mean": [0.1, 0.2, 0.3]}
    spec = as_trained(BackboneSpec(""), replace(mask, preprocess=pixels))
    assert (spec.name, spec.crop_pct, spec.mean) == ("test_vit", 0.5, (0.1, 0.2, 0.3))
    assert as_trained(BackboneSpec("", crop_pct=1.0), replace(mask, preprocess=pixels)).crop_pct == 1.0
    assert as_trained(BackboneSpec(""), replace(mask, preprocess={"crop_pct": "all"})).crop_pct is None


@pytest.mark.parametrize("option", [["--mean", "grey"], ["--std", "1,,2"], ["--model-arg", "depth"]])
def test_an_option_that_cannot_be_read_is_refused(app, option):
    """Numbers that are none and arguments without a value are InvalidArgument that names the option."""
    result = CliRunner().invoke(app[0], ["d", *option])
    assert isinstance(result.exception, InvalidArgument)
    assert str(result.exception).startswith(option[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=3", 3),
        ("k=3.5", 3.5),
        ("k=true", True),
        ("k=null", None),
        ("k=[1,2]", [1, 2]),
        ("k=", ""),
        ("k=a=b", "a=b"),
        ("k='x'", "'x'"),
    ],
)
def test_a_value_is_json_where_it_reads_as_json(text, value):
    """Numbers, booleans and lists are taken as such, anything else as text."""
    assert parse_model_args([text]) == {"k": value}


@pytest.mark.parametrize("text", ["", "k", "=3", "a-b=3", "1k=3"])
def test_an_argument_needs_a_name(text):
    """Without KEY= there is nothing to pass on."""
    with pytest.raises(InvalidArgument, match="KEY=VALUE"):
        parse_model_args([text])
