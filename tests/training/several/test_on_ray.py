"""Jobs as tasks of a real Ray: the same masks, a worker that dies goes on elsewhere, and what is finished is pushed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smn_core.maskfile import read_mask
from tests.training.builders import REPOSITORY, World, config, manifest, run, states, train_command

sys.path.insert(0, str(REPOSITORY / "tests" / "service"))

from served import ServerProcess

KEY = "the-key-of-the-tests"
NEEDS_RAY = "Ray is not installed: uv pip install -e '.[ray]'"


def test_without_the_extra_one_line_says_what_to_install(world: World, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "training.several.on_ray", raising=False)
    said = refused("train-many", manifest(world, tmp_path, 'out = "a.smn"'), "--on", "ray")
    assert said == "--on ray needs Ray: uv pip install -e '.[ray]'"


def test_an_address_where_no_ray_is_is_one_line(world: World, tmp_path, refused):
    pytest.importorskip("ray", reason=NEEDS_RAY)
    said = refused("train-many", manifest(world, tmp_path, 'out = "a.smn"'), "--on", "ray=nowhere")
    assert said.startswith("--on ray: no Ray answers at nowhere: ")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of this test run's own, with two CPUs; its workers have the key of the server in their environment."""
    ray = pytest.importorskip("ray", reason=NEEDS_RAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKS_KEY", KEY)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory) -> Iterator[ServerProcess]:
    """A real server of the same backbone that wants a key for everything."""
    folder = tmp_path_factory.mktemp("server")
    keys = {"SMN_ADMIN_KEYS": KEY, "SMN_API_KEYS": "another"}
    with ServerProcess([*world.flags(), "--registry", folder / "registry"], folder, keys) as server:
        yield server


def workers_of(task: str) -> list[int]:
    """Processes that run this task now: Ray names them after it."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(f"ray::{task}".encode()):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(3, do)`: calls `do()` in the driver once, when the first job has done so many steps."""
    from training.several import on_ray

    def set_up(wanted: int, do: Callable[[], None]) -> None:
        plain, done = on_ray.work_on_ray, []

        def work(jobs: Any, on_step: Callable[[int, int], None], **options: Any) -> dict[int, str]:
            def hear(number: int, step: int) -> None:
                on_step(number, step)
                if number == 0 and wanted <= step and not done:
                    done.append(step)
                    do()

            return plain(jobs, hear, **options)

        monkeypatch.setattr(on_ray, "work_on_ray", work)

    return set_up


@pytest.mark.timeout(900)  # workers import torch anew, which takes minutes where others hold the cores
def test_a_killed_worker_goes_on_and_every_finished_mask_is_pushed_by_its_task(
    world: World, tmp_path, smn_run, ray, server, at_step, in_this_process
):
    """Beside a broken entry; the masks are those of `smn train`, and a second start has nothing to do."""
    push = f'push = {{server = "{server.url}", key = "env:MASKS_KEY"}}'
    masks = ['out = "a.smn"\nset = ["checkpoint_steps=2", "steps=40"]\npush.name = "a"']
    masks += ['out = "b.smn"\nrecipe = "none"\npush.name = "b"', 'out = "c.smn"\nseed = 1\npush.name = "c"']
    path = manifest(world, tmp_path, *masks, defaults=push)
    killed: list[int] = []

    def kill() -> None:
        (pid,) = workers_of("a.smn")
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    at_step(4, kill)
    ran = smn_run("train-many", path, "--json", "--on", "ray", "--retries", 2)
    assert (ran.code, states(ran.out)) == (2, {"a.smn": "trained", "b.smn": "failed", "c.smn": "trained"}), ran.err
    assert "unknown recipe 'none'" in ran.err
    assert len(killed) == 1
    assert KEY not in ran.out + ran.err
    whole = ["--set", "checkpoint_steps=2", "--set", "steps=40"]
    assert smn_run(*train_command(world, tmp_path / "whole.smn", *whole)).code == 0
    assert (tmp_path / "a.smn").read_bytes() == (tmp_path / "whole.smn").read_bytes()

    def on_server() -> dict[str, tuple[str, int]]:
        listed = json.loads(smn_run("list", "--server", server.url, "--key", "env:MASKS_KEY", "--json").out)
        return {mask["name"]: (mask["current"]["digest"], mask["current"]["version"]) for mask in listed}

    there = {name: (read_mask(tmp_path / f"{name}.smn").digest, 1) for name in "ac"}
    assert on_server() == there
    assert states(smn_run("train-many", path, "--json", "--resume").out) == {
        "a.smn": "skipped", "b.smn": "failed", "c.smn": "skipped"}  # fmt: skip
    (tmp_path / "c.run" / "pushed.json").unlink()  # as if the server had been away
    assert states(smn_run("train-many", path, "--json", "--resume").out)["c.smn"] == "pushed"
    assert on_server() == there


@pytest.mark.timeout(900)  # workers import torch anew, which takes minutes where others hold the cores
def test_ctrl_c_ends_the_tasks_with_checkpoints_and_resume_goes_on(world: World, tmp_path, smn_run, ray, at_step):
    path = manifest(world, tmp_path, 'out = "a.smn"\nset = ["checkpoint_steps=1000", "steps=60"]')

    def interrupt() -> None:
        raise KeyboardInterrupt

    at_step(4, interrupt)
    assert smn_run("train-many", path, "--on", "ray").code == 130
    assert workers_of("a.smn") == []
    assert not (tmp_path / "a.smn").exists()
    assert {file.name for file in (tmp_path / "a.run").iterdir()} == {"last.ckpt", "plan.json"}
    ran = smn_run("train-many", path, "--on", "ray", "--resume", "--json")
    assert (ran.code, states(ran.out)) == (0, {"a.smn": "trained"}), ran.err
    assert len((tmp_path / "a.run" / "curve.csv").read_text().splitlines()) == 61


@pytest.mark.timeout(900)  # workers import torch anew, which takes minutes where others hold the cores
def test_the_experts_of_a_cascade_are_the_same_as_tasks_of_ray(world: World, tmp_path, smn_run, ray):
    run(world, tmp_path / "root.smn", config(checkpoint_steps=5), "test_resnet")
    where = ["--data", world.data, "--root", tmp_path / "root.smn", *world.flags("test_resnet"), "--json"]
    small = ["--experts", 2, "--set", "steps=3", "--set", "batch_size=8", "--threads", 1]
    here = smn_run("cascade", *where, *small, "--out", tmp_path / "here", "--processes", 1)
    there = smn_run("cascade", *where, *small, "--out", tmp_path / "there", "--on", "ray")
    assert (here.code, there.code) == (0, 0), there.err
    assert json.loads(here.out)["digest"] == json.loads(there.out)["digest"]
