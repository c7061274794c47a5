"""What many masks on many replicas would take: GPUs, memory, hit rates, Redis, a change, the loss of a node.

    .venv/bin/python -m benchmarks.scale_model [--quick] [--out FILE.jsonl] [--check]

For each law and placement, the fewest replicas that keep p99 latency under a limit, found by simulation (fleet.py),
then a longer run of those and one to spare, in which one dies half-way. Rows go to stdout, a table to stderr. `--check`
instead compares the simulation with a real server at small size, over HTTP: loads and images a second.

Inputs are of three kinds, and the table says which is which:
    measured now    bytes of a mask in Redis and as the engine keeps it, and the time to make the one from the other,
                    on this machine's processor, with the layout of --model at --density
    measured then   rows of benchmarks/results: what mixing masks costs, a fetch from Redis, decoding a JPEG
    assumed         what needs a GPU, a network or a data centre to be measured: give your own figures by option

The default of --images-per-s is what CLIP-as-service publishes for ViT-B/32 on one RTX 3090; no GPU was measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fleet import DEVICE, HOST, JOINED, REDIS, Figures, Fleet, Room
from benchmarks.masks import measure_mask
from benchmarks.rows import row
from benchmarks.traffic import popularity_of
from smn_core.engine.compact import SPARSE_DENSITY
from smn_core.verbs.stderr import note

RESULTS = Path(__file__).parent / "results"
MOST_REPLICAS = 400
TRIAL_S = 6.0


@dataclass(frozen=True)
class Question:
    """The load, and what is asked of the answers."""

    masks: int
    images_s: float
    exponents: tuple[float, ...]
    p99_s: float
    seconds: float
    spare: int
    changes_s: float


@dataclass(frozen=True)
class Input:
    """One figure that the model stands on."""

    name: str
    value: str
    source: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=10_000.0, help="images a second of the whole")
    parser.add_argument("--zipf", default="1.0,1.5", help="exponents of the popularity, one run each")
    parser.add_argument("--p99-ms", type=float, default=200.0, help="what the slowest hundredth may take")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run with a loss")
    parser.add_argument("--spare", type=int, default=1, help="replicas beyond the fewest")
    parser.add_argument("--changes", type=float, default=1.0, help="new versions a second, of masks by popularity")
    parser.add_argument("--model", default="vit_base_patch32_224", help="a timm model: sizes of its masks")
    parser.add_argument("--density", type=float, default=0.9995)
    parser.add_argument("--images-per-s", type=float, default=800.0, help="ASSUMED: of one replica, one mask a batch")
    parser.add_argument("--batch", type=int, default=32, help="images a forward")
    parser.add_argument("--swap-ms", type=float, default=2.5, help="ASSUMED: writing one slot on the device")
    parser.add_argument("--redis-mb-s", type=float, default=1000.0, help="ASSUMED: of the link to Redis")
    parser.add_argument("--device-gib", type=float, default=2.0, help="masks on the device, of each replica")
    parser.add_argument("--slot-gib", type=float, default=2.0, help="slots, of each replica")
    parser.add_argument("--host-gib", type=float, default=0.0, help="mask files in host memory behind the device")
    parser.add_argument("--quick", action="store_true", help="a tenth of the traffic, masks and time")
    parser.add_argument("--check", action="store_true", help="against a real server instead")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check:
        from benchmarks.scale_check import check

        sys.exit(0 if check(args.quick, args.out) else 1)
    part = 0.1 if args.quick else 1.0
    question = Question(
        int(args.masks * part), args.rate * part, tuple(map(float, args.zipf.split(","))), args.p99_ms / 1e3,
        args.seconds * part, args.spare, args.changes,
    )  # fmt: skip
    figures, room, inputs = gather(args)
    answer(question, figures, room, inputs, args.out)


def gather(args: argparse.Namespace) -> tuple[Figures, Room, list[Input]]:
    """The model's inputs, and what each stands on."""
    mixing = measured("engine", "vit_tiny_patch16_224", variant="zipf:1.5", metric="images/s, ratio to one mask")
    latency_ms = measured("http", "vit_tiny_patch16_224", variant="load, in this process", metric="fetch")
    layout_bytes, file_bytes, device_bytes, prepare_s = measure_mask(args.model, args.density)
    sparse = args.density >= SPARSE_DENSITY
    image_s = 1 / args.images_per_s
    figures = Figures(
        image_s=image_s,
        mixed_image_s=image_s / mixing,
        swap_s=0.0 if sparse else args.swap_ms / 1e3,
        fetch_latency_s=latency_ms / 1e3,
        prepare_s=prepare_s,
        file_bytes=file_bytes,
        device_bytes=device_bytes,
        slot_bytes=layout_bytes,
        redis_bytes_s=args.redis_mb_s * 1e6,
        batch=args.batch,
    )
    room = Room(
        device=int(args.device_gib * 2**30 / device_bytes),
        host=int(args.host_gib * 2**30 / file_bytes),
        slots=0 if sparse else max(1, int(args.slot_gib * 2**30 / layout_bytes)),
    )
    now, then = "measured now", "measured then"
    inputs = [
        Input("model, density", f"{args.model}, {args.density:g}", "given"),
        Input("images/s a replica, one mask", f"{args.images_per_s:g}", "ASSUMED"),
        Input("of that with masks mixed", f"{mixing:.3f}", f"{then} on a CPU, ASSUMED for a GPU"),
        Input("writing a slot, ms", "none needed" if sparse else f"{args.swap_ms:g}", "" if sparse else "ASSUMED"),
        Input("mask in Redis, bytes", f"{file_bytes:,}", now),
        Input("mask on the device, bytes", f"{device_bytes:,}", now),
        Input("slot, bytes", f"{layout_bytes:,}", now),
        Input("check and prepare a mask, ms", f"{1e3 * prepare_s:.1f}", now),
        Input("fetch from Redis, ms without the transfer", f"{latency_ms:.2f}", then),
        Input("link to Redis, MB/s", f"{args.redis_mb_s:g}", "ASSUMED"),
        Input("room of a replica, masks", f"device {room.device:,}, host {room.host:,}, slots {room.slots}", "given"),
    ]
    return figures, room, inputs


def measured(bench: str, model: str, **wanted: str) -> float:
    """The median of the last row of a benchmark's results that is of this model and has these values."""
    rows = map(json.loads, (RESULTS / f"{bench}.jsonl").read_text(encoding="utf-8").splitlines())
    found = [r for r in rows if r["params"].get("model") == model and all(r[key] == wanted[key] for key in wanted)]
    if not found:
        raise SystemExit(f"no row with {wanted} in {RESULTS / bench}.jsonl: run python -m benchmarks.{bench} --out it")
    return float(found[-1]["p50"])


def answer(question: Question, figures: Figures, room: Room, inputs: Sequence[Input], out: Path | None) -> None:
    """Rows and a table for each law and placement."""
    decode_ms = measured("http", "vit_tiny_patch16_224", variant="server", metric="decode")
    held = {"Redis memory": question.masks * figures.file_bytes / 1e9}
    slots = (room.slots + 1) * figures.slot_bytes  # and theta itself
    held |= {"device memory a replica": (room.device * figures.device_bytes + slots) / 1e9}
    held |= {"host memory a replica": room.host * figures.file_bytes / 1e9}
    params: dict[str, Any] = {
        "masks": question.masks,
        "images/s": question.images_s,
        "p99 limit ms": question.p99_s * 1e3,
    }
    params |= {given.name: f"{given.value} ({given.source})" for given in inputs}
    table: list[tuple[str, dict[str, float]]] = []
    for exponent in question.exponents:
        popularity = popularity_of(question.masks, exponent)
        for affinity in (True, False):
            name = f"zipf:{exponent:g}, {'affinity' if affinity else 'random'}"
            n = fewest(question, figures, room, popularity, affinity=affinity)
            if n is None:
                note(f"{name}: not with {MOST_REPLICAS} replicas")
                continue
            found = {"fewest replicas": float(n), "replicas": float(n + question.spare)}
            found |= loss_of_one(question, figures, room, popularity, n + question.spare, affinity=affinity) | held
            found |= {"decode, cores": question.images_s * decode_ms / 1e3}
            for metric, value in found.items():
                row("scale-model", name, params, metric, UNITS.get(metric, "1"), [value], out=out, device="simulated")
            table.append((name, found))
    note("\n| input | value | |\n|---|---|---|")
    for given in inputs:
        note(f"| {given.name} | {given.value} | {given.source} |")
    note(f"\n| {question.masks:,} masks, {question.images_s:,.0f} images/s | {' | '.join(n for n, _ in table)} |")
    note("|---" * (len(table) + 1) + "|")
    for metric in table[0][1] if table else ():
        cells = " | ".join(f"{found[metric]:,.4g}" for _, found in table)
        note(f"| {metric}{f', {UNITS[metric]}' if metric in UNITS else ''} | {cells} |")


UNITS = {"p50": "ms", "p99": "ms", "p99 after the loss": "ms", "limit kept again after": "s", "Redis, mean": "MB/s"}
UNITS |= {"Redis, busiest second": "MB/s", "Redis, busiest second after the loss": "MB/s", "Redis memory": "GB"}
UNITS |= {"device memory a replica": "GB", "host memory a replica": "GB"}


def fewest(
    question: Question, figures: Figures, room: Room, popularity: NDArray[np.float64], *, affinity: bool
) -> int | None:
    """The least number of replicas whose p99 latency is within the limit, by short runs; None: more than fits."""

    def enough(n: int) -> bool:
        fleet = started(question, figures, room, popularity, n, TRIAL_S, affinity=affinity)
        fleet.env.run(until=TRIAL_S)
        # The second half: by then the tiers are as this traffic and placement leave them, not as they were filled.
        late = np.array(fleet.seen.end_s) > TRIAL_S / 2
        latency_s = np.array(fleet.seen.latency_s)[late]
        answered = len(latency_s) >= 0.97 * question.images_s * TRIAL_S / 2
        return answered and float(np.percentile(latency_s, 99)) <= question.p99_s

    low, high = 0, max(2, int(np.ceil(question.images_s * figures.mixed_image_s / 0.9)))
    while not enough(high):
        low, high = high, high + max(1, high // 5)
        if high > MOST_REPLICAS:
            return None
    low = max(low, int(question.images_s * figures.image_s))  # fewer cannot keep up at all
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def started(
    question: Question,
    figures: Figures,
    room: Room,
    popularity: NDArray[np.float64],
    n_replicas: int,
    seconds: float,
    *,
    affinity: bool,
) -> Fleet:
    """A fleet whose tiers are warm, with Poisson arrivals, and changes, for so many seconds to come."""
    rng = np.random.default_rng(1)
    fleet = Fleet(figures, room, n_replicas, popularity, affinity=affinity)
    fleet.warm()
    n = int(question.images_s * seconds)
    masks = rng.choice(len(popularity), n, p=popularity)
    fleet.open_loop(masks.tolist(), rng.exponential(1 / question.images_s, n).tolist())
    n_changes = int(question.changes_s * seconds)
    for mask, when_s in zip(rng.choice(len(popularity), n_changes, p=popularity), rng.random(n_changes), strict=True):
        fleet.at(float(when_s) * seconds, lambda mask=int(mask): fleet.change(mask))  # type: ignore[misc]
    return fleet


def loss_of_one(
    question: Question, figures: Figures, room: Room, popularity: NDArray[np.float64], n: int, *, affinity: bool
) -> dict[str, float]:
    """A run in which one replica dies half-way: the steady half, and what the loss costs."""
    half_s = question.seconds / 2
    fleet = started(question, figures, room, popularity, n, question.seconds, affinity=affinity)
    fleet.env.run(until=half_s)
    seen, tiers, busy_s = fleet.seen, fleet.seen.tiers.copy(), fleet.seen.busy_s
    fleet.lose_one()
    fleet.env.run(until=question.seconds)
    end_s, latency_s = np.array(seen.end_s), np.array(seen.latency_s)
    before, after = latency_s[end_s < half_s], latency_s[end_s >= half_s]
    seconds = np.arange(0, question.seconds + 1)
    loaded = np.histogram(seen.loads_s, seconds)[0] * figures.file_bytes / 1e6
    asked = tiers.total()
    found = {"p50": 1e3 * float(np.median(before)), "p99": 1e3 * float(np.percentile(before, 99))}
    found |= {"busy": busy_s / (n * half_s)}
    found |= {f"hits, {tier}": tiers[tier] / asked for tier in (DEVICE, HOST)}
    found |= {"waited for another's load": tiers[JOINED] / asked, "misses, to Redis": tiers[REDIS] / asked}
    if seen.worn:
        found |= {"hits, slot": 1 - seen.swaps / seen.worn}
    steady = loaded[: max(1, int(half_s))]
    found |= {"Redis, mean": float(steady.mean()), "Redis, busiest second": float(steady.max())}
    found |= {"told of changes, a second": question.changes_s * n}
    found |= {"copies made stale by a change": seen.stale / max(1.0, question.changes_s * question.seconds)}
    found |= {"asked again at the loss": float(seen.moved), "p99 after the loss": 1e3 * float(np.percentile(after, 99))}
    found |= {"Redis, busiest second after the loss": float(loaded[int(half_s) :].max(initial=0.0))}
    return found | {"limit kept again after": until_kept(end_s - half_s, latency_s, question)}


def until_kept(since_s: NDArray[np.float64], latency_s: NDArray[np.float64], question: Question) -> float:
    """Seconds from the loss to the end of the last tenth of a second whose p99 was over the limit; 0 if none was."""
    late = since_s[(since_s >= 0) & (latency_s > question.p99_s)]
    tenths = np.unique((late * 10).astype(int))
    over = [t for t in tenths if np.percentile(latency_s[(since_s * 10).astype(int) == t], 99) > question.p99_s]
    return (max(over) + 1) / 10 if over else 0.0


if __name__ == "__main__":
    main()
