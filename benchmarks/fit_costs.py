"""Fit the constants of smn_core/engine/costs.py to this machine: nanoseconds of one thread's processor time.

Every way is run on a few shapes and numbers of OFF weights; a linear model is fitted by least squares,
negative constants left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.masks import random_mask
from benchmarks.rows import row
from benchmarks.turns import CLOCKS, seconds_in_turn
from smn_core.engine.apply import LoopApplier, applier_for, cut, put_back, take_out
from smn_core.engine.compact import CompactMask, make_compact
from smn_core.engine.costs import Costs
from smn_core.engine.kernelmask import KernelCosts, KernelLayout
from smn_core.engine.kernels.table import Table
from smn_core.engine.mixed.correction import Corrector
from smn_core.engine.mixed.lists import Lists
from smn_core.engine.patch import Patch
from smn_core.engine.sites import multiply
from smn_core.engine.span import Span
from smn_core.engine.wearable import WearableMask
from smn_core.layout import Layout, MaskableTensor

# Rows, inputs and outputs of linear layers of a ViT-Tiny (197 rows an image) and a ViT-B/32 (50); the first are so
# small that what remains is what a segment costs at all.
SHAPES = ((1, 192, 192), (197, 192, 576), (197, 768, 192), (50, 768, 768), (50, 768, 2304), (400, 768, 768))
N_SEGMENTS = 8
N_WEIGHTS = 2**22
LAYER = (192, 768)
"""Of a ViT-Tiny: with its part of theta it fills a core's cache, where scratch is written."""


def fit(turns: int, out: Path | None) -> Costs:
    """Measure, print a row for every constant, and return them."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        write, scratch, flip = _of_arrays(turns)
        values = torch.randn(64, 56, 56)
        rescale = _ns({"rescale": lambda: values.mul_(1.0)}, turns)["rescale"] / values.numel()
        segment, correction = _of_products(turns)
    found = Costs(write, scratch, flip, rescale, *segment, *correction)
    for name, value in vars(found).items():
        row("fit", "cpu", {"threads": 1, "clock": "process"}, name, "ns", [value], out=out)
    return found


def fit_kernels(device: torch.device, dtype: torch.dtype, turns: int, out: Path | None) -> KernelCosts:
    """The same for Triton's kernels (smn_core/engine/kernelmask.py), on a GPU, by its own clock."""
    from triton.testing import do_bench_cudagraph

    from smn_core.engine.kernels.linear import TILE_ROWS, Layer, from_bits, shared_base

    rng = np.random.default_rng(0)
    of: dict[str, list[float]] = {"unpack": [], "entry": []}
    always = KernelCosts(unpack=1.0, entry=0.0)
    for rows, n_in, n_out in SHAPES[1:]:
        layout = Layout((MaskableTensor("w", (n_out, n_in), 0),), {}, 1)
        kernel_layout, n_tiles = KernelLayout(layout, always), N_SEGMENTS * -(-rows // TILE_ROWS)
        layer = Layer(torch.randn(n_out, n_in, device=device, dtype=dtype), None, 0)
        x = torch.randn(N_SEGMENTS * rows, n_in, device=device, dtype=dtype)
        masks = {
            d: make_compact(random_mask(layout, d, rng), device, kernel_layout) for d in (0.95, 0.99, 0.995, 0.999)
        }
        tables = {density: Table(N_SEGMENTS, device) for density in (1.0, *masks)}
        for density, table in tables.items():
            mask = masks[density].for_kernels if density in masks else None
            table.fill([(i, mask) for i in range(N_SEGMENTS)], N_SEGMENTS)
        runs = {
            d: partial(from_bits if d == 0.95 else shared_base, x, layer, kernel_layout, t, rows)
            for d, t in tables.items()
        }
        taken: dict[float, list[float]] = {density: [] for density in runs}
        for _ in range(turns):
            for density, run in runs.items():
                taken[density].append(1e6 * float(do_bench_cudagraph(run, return_mode="median")))
        ns = {density: float(np.median(values)) for density, values in taken.items()}
        of["unpack"].append((ns[0.95] - ns[1.0]) / n_tiles / (n_in * n_out))
        of["entry"] += [(ns[d] - ns[1.0]) / n_tiles / len(masks[d].off) for d in masks if d != 0.95]
    for name, values in of.items():
        params = {"dtype": str(dtype).removeprefix("torch.")}
        row("fit", "kernels", params, name, "ns", values, out=out, device=torch.cuda.get_device_name(device))
    return KernelCosts(*(max(0.0, float(f"{np.median(of[name]):.3g}")) for name in ("unpack", "entry")))


def _of_arrays(turns: int) -> tuple[float, float, float]:
    """By weight written to a slot, by weight written to scratch, by OFF weight cleared or restored."""
    layout = Layout((MaskableTensor("w", (2048, 2048), 0),), {}, 1)
    theta, rng = torch.randn(N_WEIGHTS), np.random.default_rng(0)
    flat = theta.clone()
    applier = applier_for(theta, layout, 1)
    masks = {d: make_compact(random_mask(layout, d, rng), theta.device) for d in (0.95, 0.99, 0.9995)}
    off = {d: masks[d].off for d in (0.99, 0.9995)}
    runs: dict[str, Callable[[], object]] = {f"write {d}": lambda m=m: applier.write(m, flat) for d, m in masks.items()}  # type: ignore[misc]
    for d, positions in off.items():
        runs[f"flip {d}"] = lambda p=positions: put_back(flat, p, take_out(flat, p))  # type: ignore[misc]
    layer = MaskableTensor("w", LAYER, 0)
    near, chunks = torch.empty(layer.n_weights), cut(0, layer, 0)
    few = make_compact(random_mask(Layout((layer,), {}, 1), 0.93, rng), theta.device)
    if isinstance(applier, LoopApplier):

        def write_segments(loop: LoopApplier = applier) -> None:
            for _ in range(N_SEGMENTS):
                loop.write_near(few, chunks, near)

        runs["scratch"] = write_segments
    taken = _ns(runs, turns)
    scratch = taken.get("scratch", np.inf) / N_SEGMENTS / layer.n_weights
    write = float(np.median([taken[f"write {d}"] for d in masks])) / N_WEIGHTS
    return write, scratch, float(np.median([taken[f"flip {d}"] / 2 / len(p) for d, p in off.items()]))


def _of_products(turns: int) -> tuple[list[float], list[float]]:
    """What separate products cost above one for all, and what corrections cost, by segment."""
    rng = np.random.default_rng(0)
    terms: dict[str, list[list[float]]] = {"segment": [], "correction": []}
    taken: dict[str, list[float]] = {"segment": [], "correction": []}
    products: list[float] = []
    for rows, n_in, n_out in SHAPES:
        layout = Layout((MaskableTensor("w", (n_out, n_in), 0),), {}, 1)
        weight, bias, x = torch.randn(n_out, n_in), torch.randn(n_out), torch.randn(N_SEGMENTS * rows, n_in)
        y = torch.empty(len(x), n_out)
        pairs = list(zip(x.split(rows), y.split(rows), strict=True))
        few = make_compact(random_mask(layout, 1 - 8 / layout.n_weights, rng), x.device)
        patch = Patch(weight.flatten(), layout, applier_for(weight.flatten(), layout, 1))
        runs: dict[str, Callable[[], object]] = {
            "whole": lambda: multiply(y, x, weight, bias),  # noqa: B023 - run in this turn of the loop
            "apart": partial(_apart, pairs, patch, few, bias),
        }
        counts = {}
        for density in (0.9995, 0.995):
            mask = WearableMask("", make_compact(random_mask(layout, density, rng), x.device), {})
            corrector = Corrector(weight.flatten(), layout)
            counts[density] = len(mask.compact.off)
            lists = Lists([Span(i * rows, (i + 1) * rows, mask) for i in range(N_SEGMENTS)], 1)
            runs[f"{density}"] = partial(corrector.correct, y, x, lists, 0, bias)
        ns = _ns(runs, turns)
        terms["segment"].append([1, n_in * n_out])
        taken["segment"].append((ns["apart"] - ns["whole"]) / N_SEGMENTS)
        products.append(ns["whole"] / N_SEGMENTS)
        for density, n_off in counts.items():
            terms["correction"].append([1, rows * n_off, rows * n_out])
            taken["correction"].append(ns[f"{density}"] / N_SEGMENTS)
    segment = _least_squares(terms["segment"], taken["segment"], products)
    return segment, _least_squares(terms["correction"], taken["correction"], taken["correction"])


def _apart(pairs: list[tuple[Tensor, Tensor]], patch: Patch, mask: CompactMask, bias: Tensor) -> None:
    """As mixed.py runs segments of their own: each with its mask in the shared array."""
    for x, y in pairs:
        with patch.holding(mask, [0], np.ones(1, bool)):
            multiply(y, x, patch.views["w"], bias, float(mask.scales[0]))


def _least_squares(terms: list[list[float]], taken: list[float], sizes: list[float]) -> list[float]:
    """Non-negative constants of the terms; errors count in relation to `sizes`."""
    weights = 1 / np.array(sizes)
    a, b = np.array(terms, float) * weights[:, None], np.array(taken, float) * weights
    used = list(range(a.shape[1]))
    while True:
        found = np.linalg.lstsq(a[:, used], b, rcond=None)[0]
        if (found >= 0).all() or len(used) == 1:
            break
        used.pop(int(found.argmin()))
    constants = np.zeros(a.shape[1])
    constants[used] = np.maximum(found, 0)
    return [float(f"{c:.3g}") for c in constants]


def _ns(runs: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The least processor time of each, in turn: neighbours on a machine make some turns longer, and none shorter."""
    return {name: 1e9 * float(s.min()) for name, s in seconds_in_turn(runs, turns, CLOCKS["process"]).items()}
