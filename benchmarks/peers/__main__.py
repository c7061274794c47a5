"""SMN over HTTP beside servers with one full model a task: the same model, images, client and memory budget, in turn.

    .venv/bin/python -m benchmarks.peers [--quick] [--only PEER,...] [--model NAME] [--out FILE.jsonl]

Peers: a plain FastAPI server, LitServe, Ray Serve with @serve.multiplexed, and LitServe with ONNX Runtime or OpenVINO
in place of torch; each in a process of its own with one thread for forwards, with as many full copies as the budget
holds, the least recently used one reloaded from disk. SMN gets the same budget for slots and masks. Every server
decodes the same JPEG by the same code; clients wait for their answers, and a server that has not its turn is stopped.
Before anything is timed, every server's embeddings are compared with plain timm. Where the processor has bfloat16,
OpenVINO and SMN run in it too, each beside the other.

Of the peers' weights only the first 16 files differ, the others are links to them: they stay in the page cache, which
favours the peers. SMN's masks all differ.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from benchmarks.peers.copies import GRAPH, capacity_of
from benchmarks.peers.runtimes import NEEDS
from benchmarks.peers.tasks import FILES, Tasks, name_of
from benchmarks.redis_server import free_port
from benchmarks.rows import row
from benchmarks.server import Process, Running, process, serving, tree
from benchmarks.traffic import LAWS, tasks_of
from smn_core.maskfile import parse_mask
from smn_core.precision import slow_on_cpu
from smn_core.verbs.export import masked_weights
from smn_core.verbs.stderr import note

MODEL = "vit_tiny_patch16_224"
BUDGET_BYTES = 512 * 2**20
CLIENTS, N_ADDED = 8, 5
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Peer:
    """A server script of this folder, the path that says it is ready, the packages it needs, what it computes by."""

    module: str
    ready: str
    needs: tuple[str, ...]
    runtime: str = "torch"
    dtype: str = "float32"

    @property
    def smn(self) -> str:
        """The SMN server that it is held against."""
        return SMN if self.dtype == "float32" else SMN_BF16


SMN, SMN_BF16, BEST, RAY = "smn", "smn bf16", "best of them", "ray serve"
PEERS = {
    "fastapi": Peer("fastapi_copies", "/health", ("fastapi",)),
    "litserve": Peer("litserve_copies", "/health", ("litserve",)),
    RAY: Peer("ray_multiplexed", "/embed", ("ray",)),
    **{
        name: Peer("litserve_copies", "/health", ("litserve", *NEEDS[runtime]), runtime, dtype)
        for name, runtime, dtype in (
            ("onnx runtime", "onnxruntime", "float32"),
            ("openvino", "openvino", "float32"),
            ("openvino bf16", "openvino", "bfloat16"),
        )
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 16 tasks, two laws, few requests")
    parser.add_argument("--only", default=",".join(PEERS), help="these peers")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tasks", help="numbers of tasks, with commas")
    parser.add_argument("--laws", help="by which tasks are asked for, with commas; where there is more than one task")
    parser.add_argument("--requests", type=int, help="requests a turn")
    parser.add_argument("--budget-mib", type=int, default=BUDGET_BYTES // 2**20, help="memory for copies, or masks")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if args.only != parser.get_default("only") or _usual(name)]
    if unknown := set(wanted) - set(PEERS):
        parser.error(f"--only {sorted(unknown)[0]!r}: the peers are {', '.join(PEERS)}")
    torch.set_num_threads(1)
    numbers = [int(n) for n in (args.tasks or ("1,16" if args.quick else "1,16,100,1000")).split(",")]
    bench = Bench(
        args.model,
        args.budget_mib * 2**20,
        args.requests or (24 if args.quick else 48),
        2 if args.quick else 3,
        args.out,
    )
    laws = args.laws.split(",") if args.laws else ("identical", "zipf:1.5") if args.quick else LAWS
    if unknown := set(laws) - set(LAWS):
        parser.error(f"--laws {sorted(unknown)[0]!r}: they are {', '.join(LAWS)}")
    with tempfile.TemporaryDirectory() as text:
        tasks = Tasks(args.model, Path(text), max(numbers))
        with started(tasks, wanted, bench.budget_bytes) as servers:
            for name, server in servers.items():
                check(name, server, tasks, min(3, max(numbers)))
                bench.row(name, {}, "start", "s", [server.start_s])
            bench.sizes(servers, tasks, max(numbers))
            bench.adding(servers, tasks, max(numbers))
            for n_tasks in numbers:
                for law in laws if n_tasks > 1 else LAWS[:1]:
                    bench.traffic(servers, tasks, n_tasks, law)
    if lost := [name for name in wanted if name not in servers and not absent(name)]:
        sys.exit(f"did not start: {', '.join(lost)}")


@contextlib.contextmanager
def started(tasks: Tasks, wanted: Sequence[str], budget_bytes: int) -> Iterator[dict[str, Process]]:
    """SMN and the peers that can be, one after another; one that has no package, or fails, is left out with a line."""
    with contextlib.ExitStack() as stack:
        half = str(budget_bytes // 2)
        flags = ("--slot-bytes", half, "--cache-bytes", half, "--batch-size", str(CLIENTS))
        smn = stack.enter_context(serving(tasks.model, str(tasks.registry), *flags, folder=tasks.folder))
        servers: dict[str, Process] = {SMN: smn}
        for name in wanted:
            peer = PEERS[name]
            if missing := absent(name):
                note(f"peer {name}: left out, needs {missing}: uv pip install -e '.[bench]'")
                continue
            if peer.runtime != "torch" and not (tasks.weights / GRAPH).exists():
                tasks.write_graph()
            if peer.smn not in servers:
                own = tasks.folder / peer.dtype
                shutil.copytree(tasks.registry, own / "registry")  # each writes to its own
                own_flags = ("--dtype", peer.dtype, *flags)
                servers[peer.smn] = stack.enter_context(
                    serving(tasks.model, str(own / "registry"), *own_flags, folder=own)
                )
            port = free_port()
            words = [sys.executable, "-m", f"benchmarks.peers.{peer.module}", "--model", tasks.model]
            words += ["--folder", str(tasks.weights), "--port", str(port), "--budget-bytes", str(budget_bytes)]
            words += ["--runtime", peer.runtime, "--dtype", peer.dtype]
            log = tasks.folder / f"{name}.log"
            try:
                servers[name] = stack.enter_context(process(words, port, peer.ready, log))
            except RuntimeError as error:  # the others are measured all the same
                note(f"peer {name}: {error}")
        yield servers


def absent(name: str) -> str:
    """The packages of a peer that are not installed."""
    return ", ".join(package for package in PEERS[name].needs if importlib.util.find_spec(package) is None)


def _usual(name: str) -> bool:
    """Whether the processor computes fast in the type of a peer."""
    return slow_on_cpu(getattr(torch, PEERS[name].dtype), torch.device("cpu")) is None


def dtype_of(name: str) -> str:
    """What a server computes in."""
    return PEERS[name].dtype if name in PEERS else "bfloat16" if name == SMN_BF16 else "float32"


def smn_of(name: str) -> str:
    """The SMN server that a peer is held against; empty for SMN's own."""
    return PEERS[name].smn if name in PEERS else ""


def check(name: str, server: Process, tasks: Tasks, n_tasks: int) -> None:
    """The server's embeddings are plain timm's.

    Raises:
        RuntimeError: they are not.
    """
    for index in range(n_tasks):
        found = ask(server, tasks, index)
        expected = tasks.expected(index)
        distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if distance > TOLERANCE[dtype_of(name)]:
            raise RuntimeError(f"{name}, {name_of(index)}: {distance:.3g} away from plain timm's embedding")


def call(server: Process, tasks: Tasks, index: int) -> dict[str, Any]:
    """One request: SMN's task is in the query, the peers' in the form, Ray's in a header."""
    name = name_of(index)
    form = {} if isinstance(server, Running) else {"data": {"task": name}}
    return {
        "url": f"{server.url}/embed?mask={name}",
        **form,
        "files": {"image": ("photo.jpg", tasks.image, "image/jpeg")},
        "headers": {"serve_multiplexed_model_id": name},
        "timeout": 120,
    }


def ask(server: Process, tasks: Tasks, index: int) -> NDArray[np.float32]:
    """The server's embedding of the image through a task."""
    return embedding(tasks.client.post(**call(server, tasks, index)))


def embedding(answer: httpx2.Response) -> NDArray[np.float32]:
    answer.raise_for_status()
    return np.asarray(answer.json()["embeddings"][0], np.float32)


@contextlib.contextmanager
def others_stopped(servers: dict[str, Process], name: str) -> Iterator[None]:
    """One server has the machine to itself: an idle LitServe asks its queues with a quarter of a core a process.

    Ray's cluster goes on: it takes a node that does not answer for dead.
    """
    others = [pid for other, server in servers.items() if other not in (name, RAY) for pid in tree(server.pid)]
    _signal(others, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(others, signal.SIGCONT)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Bench:
    """Settings of a run, and where its rows go."""

    def __init__(self, model: str, budget_bytes: int, requests: int, turns: int, out: Path | None) -> None:
        self.budget_bytes, self.requests, self.turns, self.out = budget_bytes, requests, turns, out
        self.copies = capacity_of(model, budget_bytes)
        self.params = {"model": model, "budget MiB": budget_bytes // 2**20}
        self.smn: dict[tuple[str, str], list[float]] = {}

    def row(self, variant: str, params: dict[str, Any], metric: str, unit: str, values: Sequence[float]) -> None:
        row("peers", variant, self.params | params, metric, unit, values, out=self.out)

    def sizes(self, servers: dict[str, Process], tasks: Tasks, n_tasks: int) -> None:
        """Bytes a task: its file, and how much the processes grow by one more that was asked for."""
        n_more = min(n_tasks, self.copies, FILES) - 1
        for name, server in servers.items():
            size = len(tasks.mask(0)) if not smn_of(name) else tasks.file(0).stat().st_size
            self.compare(name, "disk a task", "B", [float(size)])
            if not n_more:
                continue
            ask(server, tasks, 0)
            before = server.memory_bytes()
            for index in range(1, n_more + 1):
                ask(server, tasks, index)
            self.compare(name, "memory a task", "B", [max(1.0, (server.memory_bytes() - before) / n_more)])

    def adding(self, servers: dict[str, Process], tasks: Tasks, n_tasks: int) -> None:
        """Milliseconds from a new task's bytes to its first answer: SMN gets an upload, the others find a file."""
        added: dict[str, list[float]] = {name: [] for name in servers}
        for index in range(n_tasks, n_tasks + N_ADDED):
            data = tasks.mask(index)
            weights = save(masked_weights(tasks.backbone, parse_mask(data, tasks.backbone.layout)))
            for name, server in servers.items():
                with others_stopped(servers, name):
                    began = time.perf_counter()
                    if not smn_of(name):
                        tasks.client.put(f"{server.url}/masks/{name_of(index)}", content=data).raise_for_status()
                    else:
                        tasks.file(index).write_bytes(weights)
                    ask(server, tasks, index)
                    added[name].append(1e3 * (time.perf_counter() - began))
        for name, values in added.items():
            self.compare(name, "time to add a task", "ms", values)

    def compare(self, name: str, metric: str, unit: str, values: list[float]) -> None:
        """The row of a server, and of SMN's ratio to it; SMN comes first."""
        self.row(name, {}, metric, unit, values)
        if not (smn := smn_of(name)):
            self.smn[name, metric] = values
        else:
            ratios = [a / b for a, b in zip(self.smn[smn, metric], values, strict=True)]
            self.row(name, {}, f"{metric}, SMN's ratio to it", "x", ratios)

    def traffic(self, servers: dict[str, Process], tasks: Tasks, n_tasks: int, law: str) -> None:
        """Images a second and processor time of every server under the same requests, in turn; the first warms up."""
        rates: dict[str, list[float]] = {name: [] for name in servers}
        cpu_ms: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(self.turns + 1):
            order = tasks_of(law, self.requests, n_tasks, np.random.default_rng(turn))
            for name in _rotated(list(servers), turn):  # none always comes after the one that leaves most behind
                server = servers[name]
                with others_stopped(servers, name):
                    before = server.cpu_s()
                    rate = asyncio.run(drive(server, tasks, order))
                if turn:
                    rates[name].append(rate)
                    cpu_ms[name].append(1e3 * (server.cpu_s() - before) / len(order))
        params = {"tasks": n_tasks, "law": law, "clients": CLIENTS, "copies fit": n_tasks <= self.copies}
        for name, values in rates.items():
            self.row(name, params, "images/s", "images/s", values)
            if smn := smn_of(name):
                ratios = [a / b for a, b in zip(rates[smn], values, strict=True)]
                self.row(name, params, "images/s, SMN's ratio to it", "x", ratios)
        if others := [name for name in rates if smn_of(name) == SMN]:
            best = max(others, key=lambda name: float(np.median(rates[name])))
            ratios = [a / b for a, b in zip(rates[SMN], rates[best], strict=True)]
            self.row(BEST, params, "images/s, SMN's ratio to it", "x", ratios)
        # What neighbours on the machine disturb least: who waits for a core does not count.
        for name, values in cpu_ms.items():
            self.row(name, params, "processor time an image", "ms", values)
            if smn := smn_of(name):
                ratios = [a / b for a, b in zip(cpu_ms[smn], values, strict=True)]
                self.row(name, params, "processor time an image, SMN's ratio to it", "x", ratios)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


async def drive(server: Process, tasks: Tasks, order: Sequence[int]) -> float:
    """Send the requests by clients that wait for their answers; returns images a second."""
    todo = iter(order)
    async with httpx2.AsyncClient() as client:

        async def one_client() -> None:
            for index in todo:
                embedding(await client.post(**call(server, tasks, index)))

        began = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        return len(order) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
