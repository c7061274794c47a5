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

from benchmarks.redis_server import free_port
from smn.search.near import nearest_of
from smn.search.opening import alone, open_made, open_store
from smn.search.places import place_of
from smn_core.errors import Conflict, InvalidArgument, InvalidData, Unavailable

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


@pytest.fixture
def kept(place):
    """`kept(form)`: where a collection of 40 rows is."""

    def made(form):
        where = place(form)
        with closing(open_store(where)) as store:
            fill(store, 40)
        return where

    return made


def refused(where, said, kind=InvalidData, key=None):
    """Opened to be read and to be written, it is refused in one line."""
    for call in (open_made, open_store):
        with pytest.raises(kind, match=said) as caught:
            call(where, key)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_faiss_index_is_another_libraries_too_and_a_foreign_or_damaged_one_is_refused(kept, place):
    faiss = pytest.importorskip("faiss")
    where = kept("faiss")
    index = faiss.read_index(where)
    assert (index.ntotal, index.d) == (40, WIDTH)
    path, rows = Path(where), Path(f"{where}.rows.parquet")
    whole, other = path.read_bytes(), Path(f"{kept('faiss')}.rows.parquet")
    path.write_bytes(whole[: len(whole) // 2])
    refused(where, "is damaged, or another's")
    path.write_bytes(whole)
    rows.rename(rows.with_suffix(".away"))
    refused(where, "was not made by smn index")
    rows.write_bytes(b"no table")
    refused(where, "is damaged, or no collection")
    rows.write_bytes(other.read_bytes())
    with closing(open_store(where)) as store:  # of the same rows, so it is the same index
        assert len(store.stamps()) == 40
    with closing(open_store(str(other).removesuffix(".rows.parquet"))) as store:
        store.remove(["0001.png"])
        store.finish()
    rows.write_bytes(other.read_bytes())
    refused(where, "does not belong to it")
    path.unlink()
    with pytest.raises(InvalidData, match="is there without"):
        open_store(where)


def test_a_faiss_collection_survives_a_stop_between_its_two_files(kept, monkeypatch):
    where = kept("faiss")
    replace_file, done = Path.replace, []

    def once(self, target):
        if self.name == "whole.rows":
            raise KeyboardInterrupt
        done.append(target)
        return replace_file(self, target)

    store = open_store(where)
    store.put(rows_of([50]), {})
    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        store.finish()
    monkeypatch.undo()
    assert Path(where) in done
    expected = rows_of([*range(40), 50])
    holds(where, expected)
    with closing(open_store(where)) as store:
        assert len(store.stamps()) == 41
        store.finish()
    holds(where, expected)
    assert not Path(f"{where}.part").exists()


def test_what_a_qdrant_server_refuses_or_breaks_is_one_line(kept, place, qdrant, monkeypatch):
    models = pytest.importorskip("qdrant_client").models
    where = kept("qdrant")
    for status, said, kind in ((500, "answered 500: <html>", Unavailable), (404, "answered 404", InvalidData)):
        monkeypatch.setattr(qdrant, "failing", status)
        refused(where, said, kind)
    monkeypatch.setattr(qdrant, "failing", 200)
    refused(where, "is damaged, or no collection")
    monkeypatch.setattr(qdrant, "failing", None)
    monkeypatch.setattr(qdrant, "key", "secret")
    refused(where, r"refuses \(403\): give --store-key", InvalidArgument)
    refused(where, r"refuses \(403\): give --store-key", InvalidArgument, "secret-that-is-wrong")
    store, about = open_made(where, "secret")
    store.close()
    assert about == ABOUT
    monkeypatch.setattr(qdrant, "key", None)
    refused(where.replace("127.0.0.1", "192.0.2.1"), "a key goes to qdrant", InvalidArgument, "secret")
    refused(f"qdrant://127.0.0.1:{free_port()}/x", "cannot be reached", Unavailable)

    name = place("qdrant").rpartition("/")[2]
    qdrant.local.create_collection(name, models.VectorParams(size=3, distance="Dot"))
    refused(f"{qdrant.url}/{name}", "was not made by smn index")
    foreign = models.PointStruct(id=7, vector=[1.0] * WIDTH, payload={"text": "mine"})
    qdrant.local.upsert(where.rpartition("/")[2], [foreign])
    store = open_store(where)
    for call in (store.stamps, lambda: list(store.blocks()), lambda: store.nearest(np.ones(WIDTH, np.float32), 3)):
        with pytest.raises(InvalidData, match="a point has no path"):
            call()
    monkeypatch.setattr(qdrant, "keeps_metadata", False)
    old = place("qdrant")
    with pytest.raises(InvalidArgument, match=r"needs Qdrant 1\.16"):
        open_store(old).begin(ABOUT)
    assert not qdrant.local.collection_exists(old.rpartition("/")[2])


def test_what_postgresql_refuses_or_somebody_else_made_is_one_line(kept, place, postgres):
    import psycopg

    where = kept("postgresql")
    name, user = where.rpartition("/")[2], postgres.replace("smn@", "smn:secret@")
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("CREATE TABLE mine (path text)")
        refused(f"{user}/mine", "was not made by smn index")
        db.execute("COMMENT ON TABLE mine IS 'my own'")
        refused(f"{user}/mine", "was not made by smn index")
        told = db.execute("SELECT obj_description(%s::regclass)", (name,)).fetchone()[0]
        db.execute(psycopg.sql.SQL("COMMENT ON TABLE mine IS {}").format(told))
        refused(f"{user}/mine", "is damaged: its columns")
        db.execute("COMMENT ON TABLE mine IS '{half'")
        refused(f"{user}/mine", "is damaged: what it says")
        # An approximate index that somebody makes beside it does not change an answer.
        db.execute(f"CREATE INDEX ON {name} USING ivfflat (vector vector_cosine_ops) WITH (lists = 40)")
    vector, rows = np.ones(WIDTH, np.float32), rows_of(range(40))
    with closing(open_store(where)) as store:
        found = store.nearest(vector, 10)
    assert [path for path, _ in found] == [p for p, _ in nearest_of([(list(rows.paths), rows.vectors)], vector, 10)]
    refused(user.replace("/postgres", "/none") + "/x", "PostgreSQL cannot be reached: .*none", Unavailable)
    refused(f"postgresql://smn:secret@127.0.0.1:{free_port()}/postgres/x", "PostgreSQL cannot be reached", Unavailable)


WRONG = [
    "x.csv", "x", "mysql://h/x", "qdrant://h", "qdrant://h/a/b", "qdrant://u:secret@h/x", "qdrant:///x", "qdrant://h:x/y",
    "qdrant://h/X", "qdrant://h/x?key=secret", "postgresql://h/x", "postgresql://u:secret@h/d/e/x",
    "postgresql://u:secret@h/d/x-Y", "postgresql://u:secret@h:port/d/x",
]  # fmt: skip


@pytest.mark.parametrize("where", WRONG)
def test_what_no_collection_can_be_called_is_refused_without_its_password(where):
    with pytest.raises(InvalidArgument, match=r"a collection is|--store-key") as caught:
        place_of(where)
    assert "secret" not in str(caught.value)


def test_a_place_is_shown_without_user_password_and_options():
    place = place_of("postgresql://me:secret@host:5433/my%20db/photos?sslmode=require")
    assert (str(place), place.name) == ("postgresql://host:5433/my%20db/photos", "photos")
    assert str(place_of("qdrant+https://host/photos")) == "qdrant+https://host/photos"
    assert place_of(Path("a/x.lance")).path == Path("a/x.lance")
