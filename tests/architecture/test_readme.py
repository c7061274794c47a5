"""What the README shows is true: its paths are the files, its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import smn
from service.settings import Settings
from smn_core import bits
from smn_core.backbone import load_backbone
from smn_core.mask import TaskMask
from smn_core.maskfile import write_mask
from smn_core.spec import BackboneSpec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PACKAGES = ("smn_core", "service", "training")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order; a fence opens and closes at the start of a line."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


def settings_table() -> str:
    """The table of docs/configuration.md, from the settings."""
    rows = ["| option | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = "" if field.default in (None, []) or field.default is False else f"`{field.default}`"
        rows.append(f"| `--{name.replace('_', '-')}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def stages() -> list[str]:
    path = next(block for block in blocks("") if block.startswith("request"))
    words = re.findall(r"[a-z_/]+", path.replace("masking holds the scores", "masking"))
    return [word for word in words if word not in ("request", "mask", "learning")]


@pytest.mark.parametrize("stage", sorted(set(stages())))
def test_every_stage_of_the_data_path_is_a_module(stage):
    places = [
        place for package in PACKAGES for name in (f"{stage}.py", stage) for place in (ROOT / package).rglob(name)
    ]
    assert places, f"no module is named {stage}"


def test_the_inspect_example_prints_what_the_readme_says():
    example = next(block for block in blocks("console") if "smn inspect" in block)
    done = subprocess.run(
        [sys.executable, "-m", "smn", "inspect", "tests/golden/zstd.smn"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [line for line in example.splitlines() if not line.startswith(("$", "..."))]
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert shown
    assert all(line in printed for line in shown)


def test_the_python_example_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "vit_tiny.safetensors")
    backbone = load_backbone(BackboneSpec(name, weights=tmp_path / "vit_tiny.safetensors"))
    on = np.random.default_rng(0).random(backbone.layout.n_elements) < 0.99
    packed = np.concatenate([bits.pack(on[t.elements]) for t in backbone.layout])
    mask = TaskMask(backbone.layout, backbone.model_json, backbone.fingerprint, packed)
    write_mask(mask, tmp_path / "flowers.smn")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "list.txt").write_text("photos/0.png\nphotos/2.png\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    assert names["found"].embeddings.shape == (3, 192)
    assert names["photos"].space == names["found"].space == names["row"].space
    np.testing.assert_allclose(names["row"].vector, names["found"].embeddings[2], rtol=1e-4, atol=1e-4)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 130


def test_the_configuration_table_is_the_settings():
    page = (ROOT / "docs" / "configuration.md").read_text()
    shown = re.search(r"<!-- settings:.*?-->\n(.*?)<!-- end of settings -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == settings_table(), "run `make docs`"


def test_every_setting_is_an_option_of_serve_and_its_help_says_the_default():
    import typer

    serve = typer.main.get_command(smn.app).commands["serve"]  # type: ignore[attr-defined]
    options = {option.name: option for option in serve.params if option.name not in ("help", "files")}
    assert set(options) == set(Settings.model_fields)
    words = {
        "1 GiB": 2**30,
        "2 GiB": 2**31,
        "64 MiB": 64 * 2**20,
        "256 MiB": 2**28,
        "51 million": 51_000_000,
        "a GPU where there is one": "auto",
        "by --slot-bytes": 0,
        "timm's": None,
        "timm's pretrained weights": None,
    }
    for name, option in options.items():
        said = re.search(r"Default: (.+?)[,.](?: |$)", option.help)
        if said is not None:
            assert words.get(said[1], said[1]) in (
                default := Settings.model_fields[name].default,
                f"{default}",
                f"{default:g}" if isinstance(default, float) else "",
            ), name
