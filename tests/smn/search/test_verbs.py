"""`smn index`, `smn search`, `smn dedupe` on small pictures of digits: here, through a server, killed and damaged."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from served import eventually
from sklearn.datasets import load_digits

from smn.search.opening import open_made

SUFFIXES = [".lance", ".parquet"]
LEAST = "0.999995"
"""A backbone of random weights finds all digits alike: two differ by 3e-5 at least, a digit and its JPEG by 4e-7."""


def digit(number, fmt="PNG", **options):
    image = Image.fromarray(np.uint8(load_digits().images[number] * 15.9)).resize((40, 40), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Twelve digits in two folders, one with a name that SQL, a shell and XML would stumble over."""
    for number in range(12):
        name = f'it\'s "{number}" \\ é.png' if number == 3 else f"{number:02}.png"
        path = tmp_path / "photos" / ("odd" if number % 2 else "even") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(digit(number))
    return tmp_path / "photos"


def read(path):
    """What a collection holds: a vector by path."""
    store, _ = open_made(path)
    with closing(store):
        return {name: vector for names, z in store.blocks() for name, vector in zip(names, z, strict=True)}


def same(first, second):
    """Whether two collections hold the same; floats of other batches differ in the last place."""
    assert sorted(first) == sorted(second)
    for name, vector in first.items():
        np.testing.assert_allclose(vector, second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_collection_follows_its_folder(world, run, photos, tmp_path, suffix):
    out = tmp_path / f"photos{suffix}"
    index = ["index", photos, "--mask", world.folder / "flowers.smn", "--out", out, *world.model]
    code, printed, err = run(*index)
    assert (code, printed) == (0, "") and "12 images" in err and "12 new, 0 changed, 0 as before; 0 removed" in err
    before = read(out)
    assert len(before) == 12 and 'odd/it\'s "3" \\ é.png' in before
    with world.embedder() as embedder:
        expected = embedder.embed([photos / name for name in before], mask="flowers").embeddings
        assert open_made(out)[1].space == embedder.space("flowers")
    np.testing.assert_allclose(np.stack(list(before.values())), expected, rtol=1e-4, atol=1e-5)

    (photos / "even" / "new.jpg").write_bytes(digit(20, "JPEG"))
    (photos / "even" / "02.png").write_bytes(digit(21))
    (photos / "odd" / 'it\'s "3" \\ é.png').unlink()
    (photos / "odd" / "05.png").unlink()
    code, printed, _ = run(*index, "--json")
    told = json.loads(printed)
    counts = {name: told[name] for name in ("images", "kept", "unchanged", "new", "changed", "removed")}
    assert code == 0
    assert counts == {"images": 11, "kept": 11, "unchanged": 9, "new": 1, "changed": 1, "removed": 2}
    after = read(out)
    assert sorted(after) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))
    assert not np.allclose(after["even/02.png"], before["even/02.png"], rtol=1e-6)
    assert np.array_equal(after["odd/07.png"], before["odd/07.png"])
    code, _, err = run(*index)
    assert code == 0 and "0 new, 0 changed, 11 as before; 0 removed" in err
    same(read(out), after)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["photos", out.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unreadable_photo_is_named_and_has_no_row(world, run, photos, tmp_path, suffix):
    out = tmp_path / f"photos{suffix}"
    index = ["index", photos, "--out", out, *world.model]
    (photos / "even" / "04.png").write_bytes(b"no image")
    for _ in range(2):
        code, _, err = run(*index)
        assert code == 1 and "1 image could not be read" in err and "even/04.png: the 8 bytes are not an image" in err
        assert len(read(out)) == 11
    (photos / "even" / "06.png").write_bytes(b"broken since")
    assert run(*index)[0] == 1 and sorted(read(out)) == sorted(set(read(out)) - {"even/04.png", "even/06.png"})
    (photos / "even" / "04.png").write_bytes(digit(4))
    (photos / "even" / "06.png").write_bytes(digit(6))
    assert run(*index)[0] == 0 and len(read(out)) == 12


def test_no_collection_is_made_of_photos_that_none_can_read(world, run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    code, _, err = run("index", tmp_path / "photos", "--out", tmp_path / "x.lance", *world.model)
    assert code == 2 and "none of the 1 images can be read" in err and not (tmp_path / "x.lance").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_photo_finds_itself_first_and_a_search_remembers_the_model(world, run, photos, tmp_path, suffix):
    out = tmp_path / f"photos{suffix}"
    assert run("index", photos, "--mask", world.folder / "flowers.smn", "--out", out, *world.model)[0] == 0
    query = photos / "odd" / "07.png"
    code, printed, _ = run("search", out, query, "--top", "3", "--json")
    found = json.loads(printed)["found"]
    assert code == 0 and found[0]["path"] == "odd/07.png" and len(found) == 3
    near = [row["similarity"] for row in found]
    assert near == sorted(near, reverse=True) and near[0] == pytest.approx(1, abs=1e-5)
    code, printed, err = run("search", out, query)
    assert code == 0 and len(printed.splitlines()) == 11 and "odd/07.png" in printed.splitlines()[1]
    assert str(photos) in err
    vectors = read(out)
    asked = vectors["odd/07.png"]
    z = np.stack(list(vectors.values()))
    exact = z @ asked / (np.linalg.norm(z, axis=1) * np.linalg.norm(asked))
    np.testing.assert_allclose(near, np.sort(exact)[::-1][:3], atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_spaces_are_never_mixed(world, run, photos, tmp_path, suffix):
    out = tmp_path / f"photos{suffix}"
    flowers, other = world.folder / "flowers.smn", world.folder / "other.smn"
    assert run("index", photos, "--mask", flowers, "--out", out, *world.model)[0] == 0
    before = read(out)
    with world.embedder() as embedder:
        spaces = [embedder.space(name) for name in ("flowers", "other")]
    (photos / "new.png").write_bytes(digit(30))
    where = ["--server", world.url, "--mask", "other"]
    for command in (
        ["index", photos, "--out", out, "--mask", other, *world.model],
        ["search", out, photos / "new.png", "--mask", other],
        ["index", photos, "--out", out, *where],
        ["search", out, photos / "new.png", *where],
    ):
        code, printed, err = run(*command)
        assert (code, printed, len(err.splitlines())) == (2, "", 1), err
        assert all(space in err for space in spaces)
    same(read(out), before)
    code, _, err = run("search", out, photos / "new.png", "--mask", "root")
    assert code == 2 and spaces[0] in err


def test_a_server_makes_the_same_collection_and_is_never_asked_unnamed(world, run, photos, tmp_path):
    here, there = tmp_path / "here.lance", tmp_path / "there.lance"
    assert run("index", photos, "--mask", world.folder / "flowers.smn", "--out", here, *world.model)[0] == 0
    (photos / "odd" / "bad.png").write_bytes(b"no image")
    code, _, err = run("index", photos, "--server", world.url, "--mask", "flowers", "--out", there)
    assert code == 1 and "odd/bad.png" in err
    same(read(here), read(there))
    assert open_made(here)[1].space == open_made(there)[1].space
    code, _, err = run("search", there, photos / "even" / "08.png")
    assert code == 2 and f"made through the server {world.url}: say --server" in err
    found = []
    for collection, where in (
        (there, ["--server", world.url]),
        (here, ["--server", world.url, "--mask", "flowers"]),
        (there, ["--mask", world.folder / "flowers.smn", *world.model]),
    ):
        code, printed, err = run("search", collection, photos / "even" / "08.png", "--json", *where)
        assert code == 0, err
        found.append([row["path"] for row in json.loads(printed)["found"]])
    assert found[0][0] == "even/08.png" and found[0] == found[1] == found[2]
    code, _, err = run("search", here, photos / "even" / "08.png", "--server", world.url)
    assert code == 2 and "say which --mask" in err


@pytest.mark.parametrize("form", ["faiss", "qdrant", "postgresql"])
def test_the_verbs_take_every_place(world, run, photos, place, form):
    where = place(form)
    index = ["index", photos, "--mask", world.folder / "flowers.smn", "--out", where, *world.model, "--json"]
    assert json.loads(run(*index)[1])["new"] == 12
    with world.embedder() as embedder:
        before = read(where)
        expected = embedder.embed([photos / name for name in before], mask="flowers").embeddings
        spaces = [embedder.space(name) for name in ("flowers", "other")]
    np.testing.assert_allclose(np.stack(list(before.values())), expected, rtol=1e-4, atol=1e-5)
    shutil.copy(photos / "odd" / "01.png", photos / "odd" / "copy.png")
    (photos / "even" / "02.png").unlink()
    told = json.loads(run(*index)[1])
    assert [told[key] for key in ("new", "changed", "unchanged", "removed")] == [1, 0, 11, 1]
    told = json.loads(run("search", where, photos / "odd" / "07.png", "--top", "3", "--json")[1])
    assert told["found"][0]["path"] == "odd/07.png" and told["collection"] == where.replace("smn@", "")
    (group,) = json.loads(run("dedupe", where, "--least", LEAST, "--json")[1])["groups"]
    assert (group["photo"], [row["path"] for row in group["copies"]]) == ("odd/01.png", ["odd/copy.png"])
    for command in (
        ["index", photos, "--out", where, "--mask", world.folder / "other.smn", *world.model],
        ["search", where, photos / "odd" / "07.png", "--mask", world.folder / "other.smn"],
    ):
        code, printed, err = run(*command)
        assert (code, printed, len(err.splitlines())) == (2, "", 1) and all(space in err for space in spaces)


def test_a_search_opens_a_page_and_says_where_it_is(world, run, photos, tmp_path, monkeypatch):
    out, opened = tmp_path / "photos.parquet", []
    assert run("index", photos, "--out", out, *world.model)[0] == 0
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for said in ("opened", "no browser could be opened; the page is"):
        code, printed, err = run("search", out, photos / "odd" / "07.png", "--top", "3", "--open")
        assert code == 0 and len(printed.splitlines()) == 4 and f"{said} {tmp_path}/smn-search-" in err
    page = Path(opened[0].removeprefix("file://")).read_text()
    assert page.count("<img") == 4 and "odd/07.png" in page and 'content="default-src &#x27;none&#x27;' in page


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_near_copies_are_listed_once(world, run, photos, tmp_path, suffix):
    shutil.copy(photos / "odd" / "01.png", photos / "odd" / "copy.png")
    (photos / "odd" / "small.jpg").write_bytes(digit(1, "JPEG", quality=95))
    out = tmp_path / f"photos{suffix}"
    assert run("index", photos, "--out", out, *world.model)[0] == 0
    code, printed, _ = run("dedupe", out, "--least", LEAST, "--json")
    (group,) = json.loads(printed)["groups"]
    assert code == 0 and group["photo"] == "odd/01.png"
    assert sorted(row["path"] for row in group["copies"]) == ["odd/copy.png", "odd/small.jpg"]
    code, printed, err = run("dedupe", out, "--least", LEAST)
    assert code == 0 and "odd/copy.png" in printed and "2 near-copies in 1 groups of 14 photos" in err


def spawn(world, photos, out):
    command = [sys.executable, "-m", "smn", "index", photos, "--out", out, "--workers", "1", *world.model]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_run_goes_on_to_the_same_collection(world, run, photos, tmp_path, suffix):
    for number in range(800):
        os.link(photos / "even" / f"{number % 6 * 2:02}.png", photos / f"{number:04}.png")
    out, whole = tmp_path / f"killed{suffix}", tmp_path / f"whole{suffix}"
    part = out if suffix == ".lance" else tmp_path / "killed.parquet.part"
    rows = part / "data" if suffix == ".lance" else part

    def n_written():
        return len(list(rows.glob("[0-9]*"))) if rows.is_dir() else 0

    for moment in (part.exists, lambda: n_written() >= 2):
        process = spawn(world, photos, out)
        try:
            eventually(lambda process=process, moment=moment: process.poll() is not None or moment(), 200)
        finally:
            process.kill()
        assert process.wait() == -9
    index = ["index", photos, *world.model, "--json", "--out"]
    told = json.loads(run(*index, out)[1])
    assert 0 < told["unchanged"] < 812 and told["unchanged"] + told["new"] == told["images"] == 812
    assert json.loads(run(*index, whole)[1])["new"] == 812
    same(read(out), read(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["photos", out.name, whole.name])


def test_a_collection_shows_one_folder(world, run, photos, tmp_path):
    out = tmp_path / "photos.lance"
    assert run("index", photos, "--out", out, *world.model)[0] == 0
    code, _, err = run("index", photos / "even", "--out", out, *world.model)
    assert code == 2 and f"shows {photos}, not {photos / 'even'}" in err and len(read(out)) == 12


def test_a_file_name_that_is_no_text_is_kept(world, run, photos, tmp_path):
    (photos / "even" / "00.png").rename(photos / "even" / os.fsdecode(b"\xff.png"))
    out = tmp_path / "photos.lance"
    for expected in ("12 new", "12 as before"):
        code, _, err = run("index", photos, "--out", out, *world.model)
        assert code == 0 and expected in err
    assert "even/\\xff.png" in read(out)


def of_another(path):
    """A sound table that smn did not make."""
    table = pa.table({"path": ["a"], "vector": [[1.0]]})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        lancedb.connect(str(path.parent)).create_table(path.stem, table)


def truncated(path):
    """A collection that lost half of each of its largest files."""
    files = [path] if path.is_file() else [*(path / "data").iterdir()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def a_file(path):
    path.write_bytes(b"not a collection, whatever it is called")


def a_folder(path):
    path.mkdir()
    (path / "mine.txt").write_text("mine")


@pytest.mark.parametrize("damage", [of_another, truncated, a_file, a_folder])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_or_foreign_collection_is_refused(world, run, photos, tmp_path, suffix, damage):
    out = tmp_path / f"photos{suffix}"
    if damage is truncated:
        assert run("index", photos, "--out", out, *world.model)[0] == 0
    damage(out)
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    for command in (
        ["index", photos, "--out", out, *world.model],
        ["search", out, photos / "even" / "00.png", *world.model],
        ["dedupe", out],
    ):
        code, printed, err = run(*command)
        assert (code, printed) == (2, ""), (command[0], err)
        assert str(out) in err and len(err.splitlines()) == 1, (command[0], err)
    assert [path.read_bytes() for path in files] == before


WRONG = {
    "another form": (["index", "{photos}", "--out", "x.csv"], "a collection is X.lance, X.parquet, X.faiss"),
    "another database": (["index", "{photos}", "--out", "mysql://me:secret@host/x"], "mysql://: a collection is"),
    "a key that is not set": (
        ["dedupe", "qdrant://127.0.0.1:1/x", "--store-key", "env:NO_SUCH_KEY"],
        "--store-key env:NO_SUCH_KEY: that environment variable is not set",
    ),
    "a pipe": (["index", "{photos}", "--out", "{tmp}/pipe.parquet"], "no regular file"),
    "a pipe to search": (["search", "{tmp}/pipe.faiss", "{photos}/even/00.png"], "no regular file"),
    "no such folder": (["index", "{photos}", "--out", "{tmp}/none/x.lance"], "No such folder"),
    "a name LanceDB does not take": (
        ["index", "{photos}", "--out", "{tmp}/my photos.lance", "{model}"],
        "cannot write",
    ),
    "an array": (["index", "{tmp}/set.npz", "--out", "{tmp}/x.lance"], "is no folder: index takes a folder of"),
    "nothing there": (["index", "{tmp}/none", "--out", "{tmp}/x.lance"], "is no folder: index takes a folder of"),
    "no collection": (["search", "{tmp}/none.lance", "{photos}/even/00.png"], "make it with smn index"),
    "no query": (["search", "{tmp}/none.lance", "{tmp}/none.png"], "is no file"),
    "mask and cascade": (["index", "{photos}", "--out", "{tmp}/x.lance", "--mask", "a", "--cascade", "b"], "one of"),
    "a flag of the model": (
        ["index", "{photos}", "--out", "{tmp}/x.lance", "--server", "http://x", "--image-size", "64"],
        "--image-size is not for",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_line(world, run, photos, tmp_path, name):
    arguments, said = WRONG[name]
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_test=pixels, x_train=pixels)
    for pipe in ("pipe.parquet", "pipe.faiss"):
        os.mkfifo(tmp_path / pipe)
    filled = [text.format(photos=photos, tmp=tmp_path, model="{model}") for text in arguments]
    command = [part for text in filled for part in (world.model if text == "{model}" else [text])]
    code, printed, err = run(*command)
    assert (code, printed, len(err.splitlines())) == (2, "", 1), err
    assert said in err


def test_one_process_writes_at_a_time(world, run, photos, tmp_path):
    from smn.search.store import locked

    out = tmp_path / "photos.lance"
    with locked(out):
        code, _, err = run("index", photos, "--out", out, *world.model)
        assert code == 2 and "another smn index writes" in err
    assert run("index", photos, "--out", out, *world.model)[0] == 0
