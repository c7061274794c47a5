"""A setting is declared once: flags, pages and files are made of it, and a file that fell behind is found."""

import subprocess
import sys

import pytest
import typer
from served import ROOT

import smn
from service import describe
from service.settings import Settings
from smn_core.verbs.options import OPTIONS


@pytest.mark.parametrize("name", describe.parts())
def test_no_generated_part_is_stale(name):
    assert describe.renewed(ROOT)[ROOT / name] == (ROOT / name).read_text(), "run `make docs` and commit what it writes"


@pytest.fixture
def clone(tmp_path):
    """The files with generated parts, as they are here."""
    for name in describe.parts():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((ROOT / name).read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("docs/configuration.md", "| `--port` | `8000` |", "| `--port` | `80` |"),
        (".env.example", "#SMN_SLOTS=0\n", ""),
        ("docker-compose.yml", "SMN_PIN: ${SMN_PIN:-}", "SMN_PINS: ${SMN_PINS:-}"),
    ],
)
def test_a_part_that_fell_behind_is_found_and_mended(clone, name, old, new):
    before = (clone / name).read_text()
    assert old in before
    (clone / name).write_text(before.replace(old, new))
    assert describe.renewed(clone)[clone / name] == before


def test_what_is_written_by_hand_stays(clone):
    path = clone / ".env.example"
    path.write_text(path.read_text() + "#MINE=1\n")
    assert describe.renewed(clone)[path] == path.read_text()


def test_a_file_that_lost_its_marks_is_an_error_that_names_it(clone):
    path = clone / "docker-compose.yml"
    path.write_text(path.read_text().replace("end of settings of the servers", "the end"))
    with pytest.raises(ValueError, match=r"docker-compose\.yml has 0 parts between marks `settings of the servers`"):
        describe.renewed(clone)


def test_every_setting_is_in_compose_but_those_that_it_says_itself_or_that_are_of_ray():
    left_out = {*describe.OF_COMPOSE, *describe.OF_RAY}
    assert set(describe.BACKBONE) | set(describe.SERVERS) == set(Settings.model_fields) - left_out
    assert left_out < set(Settings.model_fields)


def test_the_trainers_script_hands_on_every_option_of_the_backbone_but_the_servers_precision():
    script = (ROOT / "deploy" / "training" / "train-and-push").read_text()
    missing = {option.name for option in OPTIONS if f"SMN_{option.name.upper()}" not in script}
    assert missing == {"dtype"}


def test_an_option_of_the_backbone_reads_alike_on_the_server_and_on_other_verbs():
    verbs = typer.main.get_command(smn.app).commands
    flags = [{param.name: param for param in verbs[verb].params} for verb in ("serve", "embed", "train")]
    for option in OPTIONS:
        ours = [found[option.name] for found in flags]
        assert len({(*flag.opts, flag.metavar, flag.multiple, flag.rich_help_panel) for flag in ours}) == 1
        assert all(flag.help.startswith(f"{option.said.help}.") for flag in ours)


def test_flags_go_before_variables_and_a_list_has_commas_or_is_repeated(monkeypatch, theta):
    monkeypatch.setenv("SMN_MAX_IMAGES", "3")
    monkeypatch.setenv("SMN_BATCH_SIZE", "5")
    words = ["--max-images", "4", "--pin", "a,b", "--model-arg", "depth=1", "--model-arg", "num_heads=1", "--insecure"]
    serve = typer.main.get_command(smn.app).commands["serve"]
    from service.flags import said

    given = said(serve.make_context("serve", words))
    assert set(given) == {"max_images", "pin", "model_arg", "insecure"}
    assert said(serve.make_context("serve", [])) == {}
    settings = Settings(**given)
    assert (settings.max_images, settings.batch_size, settings.pin) == (4, 5, ["a", "b"])
    assert settings.insecure is True and settings.spec().args == {"depth": 1, "num_heads": 1}


def test_the_list_of_verbs_needs_no_settings():
    """Reading them takes longer than all of `smn --help`."""
    run = "import sys, smn\nsys.argv = ['smn', '--help']\ntry:\n    smn.main()\nexcept SystemExit:\n    pass"
    done = subprocess.run(
        [sys.executable, "-c", f"{run}\nprint(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"pydantic", "pydantic_settings", "service.settings"} & set(done.stdout.splitlines()[-1].split())
