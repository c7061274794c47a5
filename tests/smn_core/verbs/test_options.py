"""The options that every verb with a model shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import DEFAULT_BACKBONE, as_trained, for_learning, model_options, parse_model_args
from smn_core.verbs.recorded import write_backbone


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


def test_weights_are_those_that_the_masks_run_noted_unless_a_flag_says_otherwise(make_backbone, make_mask, tmp_path):
    """The note beats a variable; a flag beats the note; a note of weights that are gone names --weights."""
    backbone = make_backbone("test_vit")
    mask, file, noted = make_mask(backbone), tmp_path / "photos.smn", tmp_path / "noted.safetensors"
    (tmp_path / "photos.run").mkdir()
    write_backbone(tmp_path / "photos.run", BackboneSpec("test_vit", weights=noted), backbone.fingerprint)
    other = Path("other.safetensors")
    with pytest.raises(InvalidArgument, match="which is not there: say --weights"):
        as_trained(BackboneSpec(""), mask, file)
    noted.touch()
    by_variable = BackboneSpec("", weights=other, by_variable={"weights": other})
    assert as_trained(BackboneSpec(""), mask, file).weights == noted
    assert as_trained(by_variable, mask, file).weights == noted
    assert as_trained(BackboneSpec("", weights=other), mask, file).weights == other
    assert as_trained(BackboneSpec(""), replace(mask, fingerprint="0" * 64), file).weights is None
    assert as_trained(BackboneSpec(""), mask, tmp_path / "elsewhere.smn").weights is None


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


VARIABLES = {
    "SMN_BACKBONE": "vit", "SMN_WEIGHTS": "w.pth", "SMN_MODEL_ARG": "depth=3,pad_type=same", "SMN_IMAGE_SIZE": "64",
    "SMN_MEAN": "0.5", "SMN_STD": ".1,.2,.3", "SMN_CROP_PCT": "1", "SMN_DEVICE": "cpu", "SMN_DTYPE": "bfloat16",
}  # fmt: skip


@pytest.fixture
def spec_with(app):
    """`spec_with(variables, *words)`: what a verb is told by variables and flags."""

    def call(variables: dict[str, str], *words: str) -> BackboneSpec:
        verb, called = app
        done = CliRunner().invoke(verb, ["d", *words], env=variables)
        assert done.exit_code == 0, done.output
        return called.pop()[2]

    return call


def test_every_variable_counts_in_every_verb_with_a_model(spec_with):
    """SMN_BACKBONE to SMN_DTYPE are what the flags would be; several arguments have commas; an empty one is none."""
    spec = BackboneSpec(
        "vit", Path("w.pth"), {"depth": 3, "pad_type": "same"}, 64, (0.5,), (0.1, 0.2, 0.3), 1.0, "cpu", "bfloat16"
    )
    assert as_trained(spec_with(VARIABLES), None) == spec
    empty = dict.fromkeys(VARIABLES, "")
    assert as_trained(spec_with(empty), None) == BackboneSpec(DEFAULT_BACKBONE)
    commas = {"SMN_MODEL_ARG": '["channels=[8, 9]", "stem_width=8"]'}
    assert as_trained(spec_with(commas), None).args == {"channels": [8, 9], "stem_width": 8}


def test_a_flag_goes_before_its_variable_alone(spec_with):
    """The other variables still count."""
    spec = as_trained(spec_with(VARIABLES, "--backbone", "other", "--weights", "x.pth", "--dtype", "float32"), None)
    assert (spec.name, spec.weights, spec.dtype) == ("other", Path("x.pth"), "float32")
    assert (spec.args, spec.image_size, spec.device) == ({"depth": 3, "pad_type": "same"}, 64, "cpu")


def test_a_mask_goes_before_the_variables(spec_with, make_backbone, make_mask):
    """A mask fits one backbone: what it says of it holds, unless a flag says otherwise. The rest is the variables'."""
    mask = make_mask(make_backbone("test_vit", depth=1, embed_dim=8, num_heads=1), with_preprocess=True)
    pixels = mask.preprocess
    spec = as_trained(spec_with(VARIABLES), mask)
    assert (spec.name, spec.args) == ("test_vit", {"depth": 1, "embed_dim": 8, "num_heads": 1})
    assert (spec.image_size, spec.mean, spec.std) == (pixels["input_size"][-1], pixels["mean"], pixels["std"])
    assert (spec.weights, spec.device, spec.dtype) == (Path("w.pth"), "cpu", "bfloat16")
    assert as_trained(spec_with(VARIABLES, "--image-size", "96"), mask).image_size == 96
    silent = as_trained(spec_with(VARIABLES), replace(mask, preprocess=None))
    assert (silent.image_size, silent.mean, silent.crop_pct) == (64, (0.5,), 1.0)


def test_runs_learn_in_float32_whatever_the_servers_variable_says(spec_with):
    """A trainer shares its environment with servers that may run in bfloat16; a flag that says another is refused."""
    assert for_learning(spec_with({"SMN_DTYPE": "bfloat16"})).dtype == "float32"
    assert for_learning(spec_with({"SMN_DTYPE": "bfloat16"}, "--dtype", "float32")).dtype == "float32"
    with pytest.raises(InvalidArgument, match="--dtype float16: training keeps float32 weights"):
        for_learning(spec_with({"SMN_DTYPE": "bfloat16"}, "--dtype", "float16"))
