"""A process that fills a collection, for a test that kills it: PLACE; it prints how many rows are kept."""

import sys

import numpy as np

from smn.search.about import About
from smn.search.opening import open_store
from smn.search.store import Rows

WIDTH, TOGETHER = 8, 16
ABOUT = About("smn1:a:root:b", WIDTH, "test_vit", "f" * 64, "root", "/photos", {"mask": None}, {"name": "test_vit"})


def rows_of(numbers, seed=0):
    """Rows 0, 1, ... as every run makes them; another seed makes other stamps and vectors."""
    vectors = [
        np.random.default_rng([seed, n]).standard_normal(WIDTH).astype(np.float32) * (1 + n % 7) for n in numbers
    ]
    return Rows([f"{n:04}.png" for n in numbers], [(n, seed) for n in numbers], np.stack(vectors))


def fill(store, n_rows, said=lambda _: None):
    """Put the rows that are not there yet, as `smn index` does, and finish."""
    if store.about is None:
        store.begin(ABOUT)
    known = store.stamps()
    due = [n for n in range(n_rows) if f"{n:04}.png" not in known]
    for first in range(0, len(due), TOGETHER):
        store.put(rows_of(due[first : first + TOGETHER]), known.keys())
        said(first)
    store.finish()
    return len(known)


if __name__ == "__main__":
    fill(open_store(sys.argv[1]), 100_000, lambda first: print(first, flush=True))
