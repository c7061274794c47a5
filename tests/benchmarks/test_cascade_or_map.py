"""Cascades are held against one mask with a map, each with the bytes that its files would have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import cascade_or_map
from smn_core import bits
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import FILE_NAME, serialise_cascade
from smn_core.cascade.fusion import Fusion
from smn_core.files import write_bytes
from smn_core.maskfile import read_mask, write_mask
from smn_core.verbs.options import model_options
from smn_core.verbs.repack import repack
from tests.training.builders import World, build_world
from training.evaluation.controls import make_all_on


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade of two masks that are drawn, without texts, in codec zstd."""
    backbone, folder = world.backbone("test_resnet"), tmp_path_factory.mktemp("made")
    rng, digests = np.random.default_rng(0), []
    for name in ("root", "expert-1"):
        packed = [bits.pack(rng.random(tensor.n_weights) < 0.95) for tensor in backbone.layout]
        write_mask(replace(make_all_on(backbone), packed=np.concatenate(packed)), folder / f"{name}.smn")
        digests.append(str(read_mask(folder / f"{name}.smn").digest))
    cascade = Cascade(backbone.fingerprint, digests[0], (digests[1],), Fusion("concat", {}), "unconditional")
    write_bytes(folder / FILE_NAME, serialise_cascade(cascade))
    return folder


def run(world: World, *words: object) -> dict[str, dict[str, Any]]:
    app = Typer()
    app.command()(model_options(cascade_or_map.main))
    given = ["--data", world.data, *world.flags("test_resnet"), "--most", 120, *words]
    result = CliRunner().invoke(app, list(map(str, given)), catch_exceptions=False)
    return {line["space"]: line for line in map(json.loads, result.stdout.splitlines())}


def test_every_space_has_the_bytes_of_its_repacked_files_and_its_change_over_the_mask_with_a_map(
    world: World, made: Path, tmp_path: Path
) -> None:
    lines = run(world, "--cascade", made, "--fusion", "pca:8:int8", "--out", tmp_path / "rows.jsonl")
    assert list(lines) == [
        "mask + map", "mask", "frozen", "frozen + map", f"{made.name}: root, whitened", f"{made.name}: concatenated",
        f"{made.name}: unconditional as stored (concat)", f"{made.name}: unconditional pca:16:float32",
        f"{made.name}: unconditional pca:8:int8",
    ]  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == list(lines.values())
    repack(world.spec("test_resnet"), made, tmp_path / "small", "context", made / "root.smn")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "small").iterdir()}
    assert lines["frozen"]["bytes"] == 0
    assert lines["mask"]["bytes"] == sizes["root.smn"] < (made / "root.smn").stat().st_size
    assert lines[f"{made.name}: concatenated"]["bytes"] == sum(sizes.values())
    assert lines["mask + map"]["bytes"] > lines["mask"]["bytes"]
    for kind in ("knn", "probe", "five_labels"):
        assert {line[kind]["before"] for line in lines.values()} == {lines["mask + map"][kind]["after"]}


def test_the_test_split_is_opened_only_where_it_is_asked_for(world: World, made: Path) -> None:
    folds, tested = run(world, "--cascade", made), run(world, "--cascade", made, "--test")
    assert {line["split"] for line in folds.values()} == {"train"}
    assert {line["split"] for line in tested.values()} == {"test"}
    assert folds["frozen"]["knn"] != tested["frozen"]["knn"]
