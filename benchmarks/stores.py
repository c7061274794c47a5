"""What does each kind of collection cost, and does it find what an exact search finds?

    .venv/bin/python -m benchmarks.stores [--quick] [--rows 100000] [--only .lance,.faiss] [--at URL]
        [--vectors FILE.npy] [--out FILE.jsonl]

Random vectors are put 256 at a time, as `smn index` does, then the collection is finished and searched. `--at` adds
collections on a server, such as postgresql://HOST/DATABASE/NAME; they must not be there yet. `--vectors` is an array of
`smn embed`, of real images: a share of it asks, the rest is the collection, and only recall is measured. Exact is numpy
in double precision. Seconds are wall time and, beside it, this process's processor time, which others do not disturb;
of a server that leaves out the server's own.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from benchmarks.rows import row
from smn.search.about import About
from smn.search.opening import open_store
from smn.search.places import FILES
from smn.search.store import Rows, Store
from smn.search.sync import TOGETHER

WIDTH, TOP, ASKED = 192, 10, 0.2
FOUND = f"recall@{TOP} against exact search, mean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 rows")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", default=",".join(FILES), help="suffixes, with commas")
    parser.add_argument("--at", action="append", default=[], help="a collection on a server too; may be repeated")
    parser.add_argument("--vectors", type=Path, action="append", default=[], help="recall alone, on these")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    n_rows = 2_000 if args.quick else args.rows
    with tempfile.TemporaryDirectory(prefix="smn-bench-") as folder:
        for suffix in filter(None, args.only.split(",")):
            measure(str(Path(folder) / f"x{suffix}"), suffix, n_rows, args.vectors, args.out)
    for url in args.at:
        measure(url, url.partition("://")[0], n_rows, args.vectors, args.out)


def measure(where: str, variant: str, n_rows: int, files: list[Path], out: Path | None) -> None:
    """Rows of one kind of collection."""
    for number, file in enumerate(files):
        vectors = np.random.default_rng(0).permutation(np.load(file))
        n_asked = int(len(vectors) * ASKED)
        asked, base = vectors[:n_asked], vectors[n_asked:]
        place = _beside(where, number)
        with closing(open_store(place)) as store:
            _fill(store, base)
            params = {"vectors": file.stem, "rows": len(base), "queries": n_asked, "width": base.shape[1]}
            row("stores", variant, params, FOUND, "", [recall(store, base, asked)], out=out)
    if files:
        return
    base = np.random.default_rng(0).standard_normal((n_rows, WIDTH)).astype(np.float32)
    params = {"vectors": "random", "rows": n_rows, "width": WIDTH}
    with closing(open_store(where)) as store:
        put, finish = _fill(store, base)
        for name, (wall_s, cpu_s) in {"put": put, "finish": finish}.items():
            row("stores", variant, params, f"{name}, wall", "s", [wall_s], out=out)
            row("stores", variant, params, f"{name}, processor", "s", [cpu_s], out=out)
        row("stores", variant, params, "put, rows/s of processor", "rows/s", [n_rows / put[1]], out=out)
    with closing(open_store(where)) as store:
        asked, wall_ms = base[:20] + np.float32(0.1), []
        for vector in asked:
            began = time.perf_counter()
            store.nearest(vector, TOP)
            wall_ms.append(1e3 * (time.perf_counter() - began))
        row("stores", variant, params, "one search, wall", "ms", wall_ms, out=out)
        row("stores", variant, params, FOUND, "", [recall(store, base, asked)], out=out)
    if Path(where).exists():
        files = [Path(where), *Path(where).rglob("*"), Path(f"{where}.rows.parquet")]
        n_bytes = sum(file.stat().st_size for file in files if file.is_file())
        row("stores", variant, params, "bytes on disk", "MB", [n_bytes / 1e6], out=out)


def recall(store: Store, base: Float32[ndarray, "n d"], asked: Float32[ndarray, "m d"]) -> float:
    """The share of the exact nearest that a collection finds, in the mean of all queries."""
    z, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (base.astype(np.float64), asked.astype(np.float64)))
    exact = np.argsort(-(q @ z.T), axis=1)[:, :TOP]
    found = [{int(path) for path, _ in store.nearest(vector, TOP)} for vector in asked]
    return float(np.mean([len(set(map(int, want)) & got) / TOP for want, got in zip(exact, found, strict=True)]))


def _fill(store: Store, base: Float32[ndarray, "n d"]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Wall and processor seconds of all writes, and of what comes after them."""
    store.begin(About("smn1:bench:root:0", base.shape[1], "bench", "0" * 64, "root", "/bench"))
    times = [(time.perf_counter(), time.process_time())]
    for first in range(0, len(base), TOGETHER):
        some = base[first : first + TOGETHER]
        names = [str(first + i) for i in range(len(some))]
        store.put(Rows(names, [(0, 0)] * len(some), some), {})
    times.append((time.perf_counter(), time.process_time()))
    store.finish()
    times.append((time.perf_counter(), time.process_time()))
    put, finish = ((after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(times))
    return put, finish


def _beside(where: str, number: int) -> str:
    """Another place of the same kind."""
    if "://" in where:
        return f"{where}{number}"
    path = Path(where)
    return str(path.with_name(f"{path.stem}{number}{path.suffix}"))


if __name__ == "__main__":
    main()
