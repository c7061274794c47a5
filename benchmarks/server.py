"""Server processes for benchmarks: `smn serve` and others, on a free port, one torch thread, ended with the block."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.masks import random_mask
from benchmarks.redis_server import free_port
from smn_core.backbone import Backbone, load_backbone
from smn_core.maskfile import serialise_mask
from smn_core.spec import BackboneSpec

START_LIMIT_S = 600
END_LIMIT_S = 30


@dataclass
class Process:
    """A server process that answers at `url`; `start_s` is what that took."""

    url: str
    pid: int
    start_s: float

    def cpu_s(self) -> float:
        """User and system time of the process and all that descend from it, all threads; in steps of 10 ms."""
        ticks = 0
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Memory of the process and all that descend from it; pages that several share count once in all (PSS)."""
        total = 0
        for pid in tree(self.pid):
            with contextlib.suppress(OSError):  # it ended meanwhile
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


@dataclass
class Running(Process):
    """`smn serve`, its backbone here too, and the files of masks for it."""

    registry: str
    backbone: Backbone
    folder: Path

    def mask(self, seed: int, density: float = 0.99) -> bytes:
        """A mask file."""
        return mask_file(self.backbone, density, seed)

    def waits_ns(self) -> dict[str, tuple[int, int]]:
        """Of every thread: nanoseconds on a processor, and nanoseconds that it was ready and had none."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the thread ended since
                ran, waited, _ = (task / "schedstat").read_text(encoding="utf-8").split()
                found[task.name] = int(ran), int(waited)
        return found


@contextlib.contextmanager
def process(
    words: Sequence[str | Path],
    port: int,
    path: str,
    log: Path,
    cwd: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Start a server and wait until `GET path` answers; end it, and all that descends from it, with the block.

    `more` are variables of its environment.

    Raises:
        RuntimeError: it ended by itself or never answered; with the end of its log.
    """
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(more or {})}
    began = time.perf_counter()
    with log.open("wb") as written:
        server = subprocess.Popen(
            [str(word) for word in words], stdout=written, stderr=written, env=os.environ | alone, cwd=cwd
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{url}{path}"):
            if server.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
                raise RuntimeError(f"{log.name}: no server:\n{log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)
        yield Process(url, server.pid, time.perf_counter() - began)
    finally:
        _end(server)


@contextlib.contextmanager
def serving(
    name: str, registry: str | None = None, *flags: str, slots: int = 0, folder: Path | None = None
) -> Iterator[Running]:
    """`smn serve` of random weights. Without a registry's URL or folder, on a folder of its own."""
    with tempfile.TemporaryDirectory() as text:
        folder, port = folder or Path(text), free_port()
        spec = random_weights(name, folder)
        registry = registry or str(folder / "registry")
        smn = Path(sys.executable).parent / "smn"
        words: list[str | Path] = [smn, "serve", "--backbone", name, "--weights", f"{spec.weights}"]
        words += ["--device", "cpu", "--registry", registry, "--port", str(port), "--threads", "1", *flags]
        words += ["--slots", str(slots)] if slots else []
        backbone = load_backbone(spec)
        with process(words, port, "/readyz", folder / "smn.log") as server:
            yield Running(server.url, server.pid, server.start_s, registry, backbone, folder)


def random_weights(name: str, folder: Path) -> BackboneSpec:
    """A backbone whose weights are random, always the same, in a file of the folder."""
    weights = folder / "theta.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(timm.create_model(name, num_classes=0).state_dict(), weights)
    return BackboneSpec(name, weights=weights, device="cpu")


def backbone_again(server: Running) -> Backbone:
    """An engine takes its backbone over."""
    return load_backbone(random_weights(server.backbone.architecture, server.folder))


def mask_file(backbone: Backbone, density: float, seed: int) -> bytes:
    """A mask file with random bits."""
    mask = random_mask(backbone.layout, density, np.random.default_rng(seed))
    return serialise_mask(replace(mask, model=backbone.model_json, fingerprint=backbone.fingerprint), "zstd")


def pixels(backbone: Backbone, n: int) -> NDArray[np.float32]:
    """n random images as a model takes them, always the same."""
    size = backbone.preprocess["input_size"]
    return np.random.default_rng(0).standard_normal((n, *size), dtype=np.float32)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def tree(pid: int) -> list[int]:
    """The process and all its descendants that live."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then end what is left of its tree."""
    below = tree(server.pid)
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_LIMIT_S)
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    server.wait()
