"""`smn train-many`: all entries are checked first, a broken one costs no other, what is finished is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable
from typing import Any

import pytest

from smn_core.maskfile import read_mask
from tests.training.builders import World, manifest, states, train_command
from training.several import jobs, many, processes


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the outputs whose training began, in order."""
    found, plain = [], jobs.train
    monkeypatch.setattr(
        jobs, "train", lambda request, on_step: found.append(request.out.name) or plain(request, on_step)
    )
    return found


def test_a_broken_entry_is_listed_with_its_reason_and_the_others_finish(
    world: World, tmp_path, smn_run, in_this_process
):
    """One for each way in which an entry can be broken."""
    broken = {
        'out = "b.smn"\ndata = "nowhere/"': f"{tmp_path}/nowhere does not exist",
        'out = "c.smn"\nrecipe = "none"': "unknown recipe 'none'",
        'out = "d.smn"\nimage_size = 32': "No such option: --image_size",
        'out = "e.smn"\nseed = "x"': "'--seed'",
        'out = "f.smn"\nset = ["batch_size=1000"]': "do not fill one batch of 1000",
        'out = "g.smn"\nweights = "none.pth"': "none.pth",
        'out = "h.smn"\nstages = "nothing"': "takes no maskable tensor",
        'out = "none/i.smn"': "does not exist",
        'out = "a.smn"': "mask 1 (a.smn) writes that file too",
        'out = "j.smn"\nresume = true': "say smn train-many --resume",
        'out = "k.smn"\npush = {name = "k", key = "secret"}': 'write key = "env:NAME"',
        'out = "n.smn"\npush = {name = "N"}': "'N' is not a name",
        'out = "l.smn"\npush = {name = "l", server = "http://127.0.0.1:9"}': "no answer from http://127.0.0.1:9",
        'out = "m.smn"\nset = "steps=3"': "write a list of texts",
        "seed = 1": "Missing option '--out'",
    }
    ran = smn_run("train-many", manifest(world, tmp_path, 'out = "a.smn"\nseed = 3', *broken, 'out = "z.smn"'))
    assert ran.code == 2
    lines = ran.err.strip().splitlines()
    assert lines[-1] == f"smn: error: {len(broken)} of {len(broken) + 2} masks failed, as listed; " \
        "mend them and say --resume"  # fmt: skip
    for number, said in enumerate(broken.values(), 2):
        assert any(line.startswith(f"mask {number} (") and said in line for line in lines), (said, ran.err)
    assert "secret" not in ran.err + ran.out
    assert [path.name for path in sorted(tmp_path.glob("*.smn"))] == ["a.smn", "z.smn"]


def test_an_entry_means_what_the_same_flags_mean(world: World, tmp_path, smn_run, in_this_process):
    """An entry's own settings come after the defaults'; the mask is the one of `smn train`, byte for byte."""
    ran = smn_run("train-many", manifest(world, tmp_path, 'out = "a.smn"\nseed = 3\nset = ["lr=0.05"]'), "--json")
    assert ran.code == 0, ran.err
    assert smn_run(*train_command(world, tmp_path / "b.smn", "--seed", 3, "--set", "lr=0.05")).code == 0
    assert (tmp_path / "a.smn").read_bytes() == (tmp_path / "b.smn").read_bytes()
    assert json.loads(ran.out)["masks"][0]["digest"] == read_mask(tmp_path / "a.smn").digest


def test_what_is_finished_is_skipped_and_another_configuration_is_refused(
    world: World, tmp_path, smn_run, in_this_process, trained
):
    path = manifest(world, tmp_path, 'out = "a.smn"', 'out = "b.smn"')
    assert states(smn_run("train-many", path, "--json").out) == {"a.smn": "trained", "b.smn": "trained"}
    ran = smn_run("train-many", path)
    assert ran.code == 2
    assert "exists: continue it with --resume" in ran.err
    path = manifest(world, tmp_path, 'out = "a.smn"', 'out = "b.smn"\nseed = 1', 'out = "c.smn"')
    ran = smn_run("train-many", path, "--resume", "--json")
    assert states(ran.out) == {"a.smn": "skipped", "b.smn": "failed", "c.smn": "trained"}
    assert "b.smn was begun with another seed: resume with the same options, or say --overwrite" in ran.err
    assert trained == ["a.smn", "b.smn", "c.smn"]
    (tmp_path / "a.run" / "plan.json").unlink()  # as `smn train` leaves it
    assert "a.smn was not begun by train-many" in smn_run("train-many", path, "--resume").err
    assert smn_run("train-many", path, "--overwrite").code == 0
    assert json.loads(read_mask(tmp_path / "b.smn").metadata["recipe"])["seed"] == 1


def test_a_stop_names_the_command_that_goes_on_with_what_is_left(
    world: World, tmp_path, smn_run, in_this_process, monkeypatch
):
    """Before the runs begin it is the same command: with --overwrite, earlier masks of these names are still there."""
    plain, stops = jobs.train, ["b.smn"]

    def train(request: Any, on_step: Any) -> Any:
        if request.out.name in stops:
            signal.raise_signal(signal.SIGTERM)
        return plain(request, on_step)

    typed = ["train-many", str(manifest(world, tmp_path, 'out = "a.smn"', 'out = "b.smn"')), "--overwrite"]
    monkeypatch.setattr("sys.argv", ["smn", *typed])
    with monkeypatch.context() as patching:
        patching.setattr(many, "make_plan", lambda *_: signal.raise_signal(signal.SIGINT))
        ran = smn_run(*typed)
    assert (ran.code, ran.err.splitlines()[-1]) == (130, shlex.join(["smn", *typed]))
    monkeypatch.setattr(jobs, "train", train)
    ran = smn_run(*typed)
    goes_on = ["train-many", typed[1], "--resume"]
    assert (ran.code, ran.err.splitlines()[-1]) == (143, shlex.join(["smn", *goes_on]))
    stops.clear()
    assert states(smn_run(*goes_on, "--json").out) == {"a.smn": "skipped", "b.smn": "trained"}


@pytest.mark.timeout(900)  # three processes import torch anew, which takes minutes where others hold the cores
def test_a_run_whose_process_is_killed_goes_on_from_its_checkpoint(world: World, tmp_path, smn_run, monkeypatch):
    """Without a retry it failed, and `--resume` goes on; with one nobody notices. The mask is that of `smn train`."""
    plain, kill_at = processes.work_in_processes, [4, 6]

    def kill(jobs: Any, on_step: Callable[[int, int], None], **options: Any) -> dict[int, str]:
        def hear(number: int, step: int) -> None:
            on_step(number, step)
            if kill_at and step == kill_at[0]:
                # Another test of this process may have left a child of its own.
                (child,) = (c for c in multiprocessing.active_children() if c.name.startswith("smn-run"))
                os.kill(child.pid, signal.SIGKILL)
                kill_at.pop(0)

        return plain(jobs, hear, **options)

    monkeypatch.setattr(processes, "work_in_processes", kill)
    more = ["checkpoint_steps=1", "steps=20"]
    path = manifest(world, tmp_path, f'out = "a.smn"\nset = {json.dumps(more)}')
    ran = smn_run("train-many", path, "--json")
    assert (ran.code, states(ran.out), kill_at) == (2, {"a.smn": "failed"}, [6]), ran.err
    assert "killed by signal 9" in ran.err
    assert not (tmp_path / "a.smn").exists()
    ran = smn_run("train-many", path, "--json", "--resume", "--retries", 1)
    assert (ran.code, states(ran.out), kill_at) == (0, {"a.smn": "trained"}, []), ran.err
    assert smn_run(*train_command(world, tmp_path / "b.smn", *(w for s in more for w in ("--set", s)))).code == 0
    assert (tmp_path / "a.smn").read_bytes() == (tmp_path / "b.smn").read_bytes()


WHOLE = {
    "a file that is not there": (None, "does not exist"),
    "no TOML": ("[[mask", "is not TOML"),
    "no mask": ("[defaults]\nseed = 1", "has no [[mask]]"),
    "an unknown table": ("[masks]\n", "unknown 'masks'"),
    "defaults that are many": ("[[defaults]]\n[[mask]]\n", "write [defaults] once"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_manifest_that_makes_no_sense_is_one_line(what, tmp_path, refused):
    text, said = WHOLE[what]
    if text is not None:
        (tmp_path / "m.toml").write_text(text)
    assert said in refused("train-many", tmp_path / "m.toml")


def test_another_place_to_run_than_ray_is_refused(world: World, tmp_path, refused):
    assert "there is ray" in refused("train-many", manifest(world, tmp_path, 'out = "a.smn"'), "--on", "slurm")
