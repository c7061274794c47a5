"""What the tests of learning share: digits, small models, and generators left as they were found."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.layers import set_fused_attn, use_fused_attn

import smn
from tests.training.builders import Stopped, World, build_world
from training.watch import StopCleanly


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Digits as an .npz, and weights of a small ViT and a small ResNet."""
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """A run seeds torch and chooses an attention; the next test finds neither."""
    ends = signal.getsignal(signal.SIGTERM)
    handler, environment, fused = signal.getsignal(signal.SIGINT), dict(os.environ), use_fused_attn()
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    set_fused_attn(bool(fused))
    os.environ.clear()
    os.environ.update(environment)
    assert signal.getsignal(signal.SIGINT) is handler
    left = signal.getsignal(signal.SIGTERM)
    if getattr(left, "__module__", "").split(".")[0] == "ray":  # Ray takes the signal where it is started
        signal.signal(signal.SIGTERM, ends)
    else:
        assert left is ends


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def smn_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`smn.main()` in this process, with these arguments."""

    def ran(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            smn.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Ran(code, *capsys.readouterr())

    return ran


@pytest.fixture
def refused(smn_run: Callable[..., Ran]) -> Callable[..., str]:
    """The one line of a command's error that the user can mend."""

    def line(*args: object) -> str:
        ran = smn_run(*args)
        assert ran.code == 2, ran
        notes = ran.err.strip().splitlines()
        assert len(notes) == 1, ran.err
        assert notes[0].startswith("smn: error: ")
        return notes[0].removeprefix("smn: error: ")

    return line


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run here, one after the other: starting processes is not what the test is about."""
    from training.several import processes

    def work(jobs: Any, on_step: Any, *, keep_going: bool = False, **_: object) -> dict[int, str]:
        return processes.work_here(jobs, on_step, keep_going=keep_going)

    monkeypatch.setattr(processes, "work_in_processes", work)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Runs end after this many steps, as after ctrl-C; None: they do not."""

    def set_step(step: int | None) -> None:
        def end(self: StopCleanly, trainer: Any, *_: object) -> None:
            if trainer.global_step == step:
                trainer.save_checkpoint(self._checkpoint)
                raise Stopped

        monkeypatch.setattr(StopCleanly, "on_train_batch_end", end)

    return set_step
