"""What every collection promises, whatever keeps it: LanceDB, Parquet, FAISS, Qdrant, PostgreSQL."""

import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import filling
import numpy as np
import pytest
from filling import ABOUT, WIDTH, fill, rows_of

from smn.search.near import nearest_of
from smn.search.opening import alone, open_made, open_store
from smn.search.places import place_of
from smn_core.errors import Conflict

every_form = pytest.mark.parametrize("form", ["lance", "parquet", "faiss", "qdrant", "postgresql"])


def read(where):
    """What a collection holds: a vector by path."""
    store, _ = open_made(where)
    with closing(store):
        return {name: z for names, block in store.blocks() for name, z in zip(names, block, strict=True)}


def holds(where, rows):
    found = read(where)
    assert sorted(found) == sorted(rows.paths)
    for path, vector in zip(rows.paths, rows.vectors, strict=True):
        np.testing.assert_allclose(found[path], vector, rtol=1e-5, atol=1e-6)


@every_form
def test_a_collection_keeps_what_was_put_and_says_what_it_is(place, form):
    where = place(form)
    with closing(open_store(where)) as store:
        assert store.about is None
        fill(store, 40)
    store, about = open_made(where)
    with closing(store):
        assert about == ABOUT
        assert dict(store.stamps()) == {f"{n:04}.png": (n, 0) for n in range(40)}
    holds(where, rows_of(range(40)))


@every_form
def test_new_changed_and_removed_rows_take_effect_at_the_end_of_a_run(place, form):
    where = place(form)
    with closing(open_store(where)) as store:
        fill(store, 40)
    odd = 'it\'s "3" \\ é %s {x}.png'
    with closing(open_store(where)) as store:
        known = store.stamps()
        changed, new = rows_of(range(5), seed=1), replace(rows_of([50]), paths=[odd])
        store.put(changed, known.keys())
        store.put(new, known.keys())
        store.remove(["0007.png", "0008.png", "none.png"])
        store.finish()
        assert store.stamps()[odd] == (50, 0) and store.stamps()["0000.png"] == (0, 1) and len(store.stamps()) == 39
    kept = rows_of([5, 6, *range(9, 40)])
    parts = (changed, new, kept)
    paths = [path for part in parts for path in part.paths]
    holds(where, replace(kept, paths=paths, vectors=np.concatenate([part.vectors for part in parts])))
    with closing(open_store(where)) as store:
        store.remove([path for path in store.stamps() if path != odd])
        store.finish()
        store.put(rows_of([1]), store.stamps().keys())
        store.finish()
    assert sorted(read(where)) == ["0001.png", odd]


@every_form
def test_the_nearest_are_those_of_an_exact_search(place, form):
    where = place(form)
    rows = rows_of(range(600))
    with closing(open_store(where)) as store:
        store.begin(ABOUT)
        store.put(rows, {})
        store.finish()
        asked = np.random.default_rng(9).standard_normal((20, WIDTH)).astype(np.float32)
        for vector in asked:
            exact = nearest_of([(list(rows.paths), rows.vectors)], vector, 10)
            found = store.nearest(vector, 10)
            assert [path for path, _ in found] == [path for path, _ in exact]
            np.testing.assert_allclose([near for _, near in found], [near for _, near in exact], atol=1e-5)
        assert len(store.nearest(asked[0], 1000)) == 600


@every_form
def test_a_process_killed_while_it_writes_loses_nothing_that_it_had_put(place, form):
    where = place(form)
    script = [sys.executable, filling.__file__, where]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(4):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -9
    with closing(open_store(where)) as store:
        n_kept = fill(store, len(store.stamps()) + 20)
        assert n_kept > last
    holds(where, rows_of(range(n_kept + 20)))
    if form in ("lance", "parquet", "faiss"):
        made = {where, *([f"{where}.rows.parquet"] if form == "faiss" else [])}
        assert set(map(str, Path(where).parent.iterdir())) == made


@every_form
def test_one_writes_at_a_time(place, form):
    where = place_of(place(form))
    with alone(where):
        with pytest.raises(Conflict, match="another smn index writes"), alone(where):
            pass
        with alone(place_of(place(form))):
            pass
    with alone(where):
        pass
