"""What Ray costs and what it brings: `smn serve` against the application on simulated Ray nodes of this machine.

    .venv/bin/python -m benchmarks.scale [--quick] [--only overhead,throughput,affinity] [--model NAME] [--out FILE]

overhead    one client, one image a request, plain server and one replica in turn, request by request: what the client
            waits, what it waits beyond decode and forward, and by how much more that is on Ray.
throughput  closed loop of 8 clients on one hot mask and on 16 alike, with 1 and 2 replicas in turn. Replicas share this
            machine's cores: with fewer than 3 of them the second replica can bring nothing.
affinity    closed loop of 8 clients on masks that fit into the slots of two replicas together but not of one, placed by
            digest or by Ray's own choice (least in work of two at random), in turn: what swaps cost an image.

Weights and images are random; masks have density .9, so that each takes a slot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.http import stages
from benchmarks.ray_cluster import Served
from benchmarks.redis_server import RedisServer
from benchmarks.rows import row
from benchmarks.server import mask_file, random_weights, serving
from service.client import AsyncClient, Client
from service.on_ray.application import HOLDERS
from service.settings import Settings
from smn_core.backbone import Backbone, load_backbone

CLIENTS = 8
SLOTS = 4
AFFINE_MASKS = 7
"""More than one replica's slots, fewer than two's."""
MASKS = 16


@dataclass
class Machine:
    """The application on Ray, and what it serves."""

    served: Served
    settings: Settings
    backbone: Backbone
    folder: Path

    @property
    def pixels(self) -> NDArray[np.float32]:
        size = self.backbone.preprocess["input_size"]
        return np.random.default_rng(0).standard_normal((1, *size), dtype=np.float32)

    @property
    def params(self) -> dict[str, Any]:
        return {"model": self.backbone.architecture, "slots": SLOTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few turns of each")
    parser.add_argument("--only", default="overhead,throughput,affinity", help="which of the three")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm name")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"overhead": overhead, "throughput": throughput, "affinity": affinity}
    with machine(args.model) as found:
        for part in args.only.split(","):
            parts[part](found, args.quick, args.out)


@contextlib.contextmanager
def machine(name: str) -> Iterator[Machine]:
    """A head and two workers with one replica, random weights, masks in a Redis of its own."""
    with tempfile.TemporaryDirectory() as text, RedisServer(Path(text) / "redis") as redis:
        folder = Path(text)
        spec = random_weights(name, folder)
        settings = Settings(
            on="ray", registry=redis.url, backbone=name, weights=spec.weights, device="cpu",
            slots=SLOTS, threads=1, host="127.0.0.1", api_keys=[], admin_keys=[], log_format="console",
        )  # fmt: skip
        backbone = load_backbone(settings.spec())
        served = Served(settings, 2)
        try:
            with Client(served.url) as client:
                for seed in range(MASKS):
                    client.push(f"mask-{seed}", mask_file(backbone, 0.9, seed))
            yield Machine(served, settings, backbone, folder)
        finally:
            served.close()


@contextlib.contextmanager
def plain(found: Machine) -> Iterator[str]:
    """The URL of a plain server with the same settings."""
    with serving(found.backbone.architecture, found.settings.registry, slots=SLOTS, folder=found.folder) as server:
        yield server.url


def overhead(found: Machine, quick: bool, out: Path | None) -> None:
    """One client, in turn."""
    taken: dict[str, list[dict[str, float]]] = {"plain": [], "ray": []}
    with plain(found) as url, Client(url) as one, Client(found.served.url) as other:
        for turn in range(5 + (20 if quick else 300)):
            for variant, client in (("plain", one), ("ray", other)):
                began = time.perf_counter()
                answer = client.embed(found.pixels, "mask-0")
                waited = 1e3 * (time.perf_counter() - began)
                if turn >= 5:
                    taken[variant].append(stages(answer.server_timing) | {"client": waited})
    params = {**found.params, "form": "npy", "clients": 1, "replicas": 1}
    beyond = {
        variant: [a["client"] - a["decode"] - a["forward"] for a in answers] for variant, answers in taken.items()
    }
    for variant, answers in taken.items():
        row("scale", variant, params, "client's wait", "ms", [a["client"] for a in answers], out=out)
        row("scale", variant, params, "client's wait beyond decode and forward", "ms", beyond[variant], out=out)
    more = [b - a for a, b in zip(beyond["plain"], beyond["ray"], strict=True)]
    row("scale", "ray", params, "more than plain, beyond decode and forward", "ms", more, out=out)


def throughput(found: Machine, quick: bool, out: Path | None) -> None:
    """1 and 2 replicas in turn."""
    n = 60 if quick else 240
    laws = {"identical": [0] * n, f"uniform over {MASKS}": spread(n, MASKS)}
    for _ in range(1 if quick else 3):
        for replicas in (1, 2):
            found.served.deploy(found.settings.model_copy(update={"replicas": replicas}))
            for law, order in laws.items():
                params = {**found.params, "law": law, "replicas": replicas, "placement": "by digest"}
                asyncio.run(drive(found, order, params, "closed loop", out))


def affinity(found: Machine, quick: bool, out: Path | None) -> None:
    """By digest and at random in turn, two replicas."""
    order = spread(60 if quick else 240, AFFINE_MASKS)
    for _ in range(1 if quick else 3):
        for placement, router in (("by digest", HOLDERS), ("at random", None)):
            found.served.deploy(found.settings.model_copy(update={"replicas": 2}), router=router)
            params = {**found.params, "law": f"uniform over {AFFINE_MASKS}", "replicas": 2, "placement": placement}
            asyncio.run(drive(found, order, params, "closed loop", out))


def spread(n: int, n_masks: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(n_masks, size=n)]


async def drive(found: Machine, order: Sequence[int], params: dict[str, Any], variant: str, out: Path | None) -> None:
    """Clients that wait for their answers; every mask once before that."""
    waits_ms: list[float] = []
    swaps_ms: list[float] = []
    todo, x = iter(order), found.pixels
    async with AsyncClient(found.served.url) as client:
        for index in sorted(set(order)):
            await client.embed(x, f"mask-{index}")

        async def one() -> None:
            for index in todo:
                began = time.perf_counter()
                answer = await client.embed(x, f"mask-{index}")
                waits_ms.append(1e3 * (time.perf_counter() - began))
                swaps_ms.append(stages(answer.server_timing)["swap"])

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        took_s = time.perf_counter() - began
    params = {**params, "requests": len(order), "clients": CLIENTS}
    row("scale", variant, params, "latency", "ms", waits_ms, out=out)
    row("scale", variant, params, "latency p99", "ms", [float(np.percentile(waits_ms, 99))], out=out)
    row("scale", variant, params, "throughput", "images/s", [len(order) / took_s], out=out)
    row("scale", variant, params, "swaps in its batch, mean", "ms", [float(np.mean(swaps_ms))], out=out)


if __name__ == "__main__":
    main()
