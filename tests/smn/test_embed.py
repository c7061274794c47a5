"""`smn embed`: one table in three forms, from this process as from a server; what was stopped goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from served import eventually, photo, relative_error

import smn


def read(path):
    """(paths, vectors, labels, space) of a file of embeddings and what lies beside it."""
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["file"] == path.name and told["rows"] > 0
    if path.suffix == ".npy":
        return path.with_suffix(".txt").read_text().splitlines(), np.load(path), None, told["space"]
    assert told["paths"] is None and not path.with_suffix(".txt").exists()
    if path.suffix == ".npz":
        found = np.load(path)
        assert str(found["space"]) == told["space"]
        return found["path"].tolist(), found["vector"], found["label"].tolist(), told["space"]
    columns = pq.read_table(path).to_pydict()
    assert set(columns["space"]) == {told["space"]}
    return columns["path"], np.array(columns["vector"], np.float32), columns["label"], told["space"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_a_file_has_the_same_from_here_as_from_a_server(world, run, tmp_path, suffix):
    here, there = tmp_path / f"here{suffix}", tmp_path / f"there{suffix}"
    (world.photos / "notes.md").write_text("no image")
    code, out, err = run("embed", world.photos, "--mask", world.folder / "flowers.smn", "--out", here, *world.model)
    assert (code, out) == (0, "") and "1 file of another kind is not read: 1 .md" in err
    code, _, err = run("embed", world.photos, "--server", world.url, "--mask", "flowers", "--out", there)
    assert code == 0 and "20 embeddings of 8 features" in err
    ours, theirs = read(here), read(there)
    assert relative_error(theirs[1], ours[1]) < 1e-4 and ours[1].dtype == np.float32
    assert (ours[0], ours[2], ours[3]) == (theirs[0], theirs[2], theirs[3])
    assert ours[0] == sorted(ours[0]) and ours[0][0] == "bright/01.png"
    assert ours[2] is None or ours[2] == ["bright"] * 10 + ["dark"] * 10
    told = [json.loads(path.with_suffix(".json").read_text()) for path in (here, there)]
    for key in ("space", "model", "digest", "fingerprint", "images", "rows", "dimensions", "unreadable", "other_files"):
        assert told[0][key] == told[1][key], key
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []


def test_an_older_list_of_paths_does_not_outlive_its_array(world, run, tmp_path):
    flags = ["embed", world.photos, *world.model]
    assert run(*flags, "--out", tmp_path / "X.npy")[0] == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "X.npy").unlink()
    code, _, err = run(*flags, "--out", tmp_path / "X.npz")
    assert code == 0 and "removed" in err and not (tmp_path / "X.txt").exists()
    assert json.loads((tmp_path / "X.json").read_text())["file"] == "X.npz"
    assert run(*flags, "--out", tmp_path / "notes.npz")[0] == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


STRANGERS = {
    "a list": {"X.txt": "mine"},
    "a JSON of another kind": {"X.json": '{"file": "mine"}'},
    "a JSON of another kind beside a form without a list": {"X.json": "[1]", "form": ".npz"},
    "a damaged JSON": {"X.json": "{"},
    "a list beside what smn wrote of arrays": {
        "X.txt": "mine",
        "X.json": '{"file": "X.npy", "space": "smn1:0:root:0", "rows": 2, "paths": null}',
    },
}


@pytest.mark.parametrize("which", STRANGERS)
def test_a_file_that_smn_did_not_write_is_never_written_over(world, run, tmp_path, which):
    files = dict(STRANGERS[which])
    out = tmp_path / f"X{files.pop('form', '.npy')}"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, _, err = run("embed", world.photos, "--out", out, *world.model)
    said = tmp_path / next(iter(files))
    assert (code, err) == (2, f"smn: error: {said} exists and was not written by smn: choose another --out\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_the_files_of_an_earlier_run_are_replaced(world, run, tmp_path):
    for photos, n in ((world.photos, 20), (world.photos / "dark", 10)):
        assert run("embed", photos, "--out", tmp_path / "X.npy", *world.model)[0] == 0
        paths, vectors, _, _ = read(tmp_path / "X.npy")
        assert len(paths) == len(vectors) == n


@pytest.mark.parametrize("other", [".npz", ".parquet"])
def test_another_form_never_takes_the_list_and_the_description_of_a_file_that_is_still_there(
    world, run, tmp_path, other
):
    flags, out = ["embed", world.photos, *world.model], tmp_path / "X.npy"
    assert run(*flags, "--out", out)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run(*flags, "--out", out.with_suffix(other))
    assert code == 2 and f"X.json describes {out}, which is still there: choose another --out" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def photos(world, tmp_path):
    """A folder of its own, of the same photos."""
    shutil.copytree(world.photos, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.mark.parametrize("server", [False, True])
def test_one_bad_image_is_named_and_left_out(world, run, photos, tmp_path, server):
    (photos / "dark" / "06.png").write_bytes(b"no image")
    where = ["--server", world.url] if server else world.model
    code, _, err = run("embed", photos, "--out", tmp_path / "X.npy", *where)
    assert code == 1 and "1 image could not be read" in err and "dark/06.png: the 8 bytes are not an image" in err
    paths, vectors, _, _ = read(tmp_path / "X.npy")
    assert len(vectors) == len(paths) == 19 and "dark/06.png" not in paths
    (left,) = json.loads((tmp_path / "X.json").read_text())["unreadable"]
    assert left["path"] == "dark/06.png"
    code, _, err = run("embed", photos, "--strict", "--out", tmp_path / "Y.npy", *where)
    assert code == 2 and "06.png" in err and not (tmp_path / "Y.npy").exists()


def spawn(world, photos, out):
    command = [sys.executable, "-m", "smn", "embed", photos, "--server", world.url, "--mask", "moving", "--out", out]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def test_a_stopped_run_goes_on_embeds_nothing_twice_and_never_mixes_spaces(world, run, photos, tmp_path):
    for i in range(1500):
        os.link(photos / "dark" / f"{i % 10 * 2:02}.png", photos / f"{i:04}.png")
    out, part = tmp_path / "X.npz", tmp_path / "X.npz.part"
    with smn.Client(world.url) as client:
        client.push("moving", world.folder / "other.smn")
        process = spawn(world, photos, out)
        try:
            lines = part / "images.jsonl"
            eventually(lambda: process.poll() is not None or (lines.exists() and lines.stat().st_size > 0), 100)
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        assert process.returncode == 130 and "Traceback" not in err and not out.exists()
        done = [json.loads(line)[0] for line in lines.read_text().splitlines()]
        assert 0 < len(done) < 1520
        with lines.open("a") as file:
            file.write('["torn')
        again = ["embed", photos, "--server", world.url, "--out", out]
        client.push("moving", world.folder / "flowers.smn")
        code, _, err = run(*again, "--mask", "moving")
        assert code == 2 and "space" in err and part.exists() and not out.exists()
        code, _, err = run(*again, "--mask", "moving@1")
        assert code == 0 and f"going on: {len(done):,} images are in" in err and not part.exists()
        paths, vectors, _, space = read_npz(out)
        assert space == client.space("moving@1") and len(paths) == 1520 and paths == sorted(paths)
        assert len(set(done)) == len(done)
        expected = client.embed([photos / paths[i] for i in (0, 777, 1519)], mask="moving@1").embeddings
        np.testing.assert_allclose(vectors[[0, 777, 1519]], expected, rtol=1e-4, atol=1e-5)


def read_npz(path):
    found = np.load(path)
    return found["path"].tolist(), found["vector"], None, str(found["space"])


def test_an_array_is_embedded_through_a_server(world, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_test=pixels, y_test=np.arange(9) % 3)
    for name, where in (("here", world.model), ("there", ["--server", world.url])):
        assert run("embed", tmp_path / "set.npz", "--out", tmp_path / f"{name}.npz", *where)[0] == 0
    here, there = (np.load(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert relative_error(there["vector"], here["vector"]) < 1e-4
    assert here["label"].tolist() == there["label"].tolist() == list("012012012") and "path" not in here.files


BAD = {
    "another form": (["--out", "X.csv"], ".npy, .npz, .parquet"),
    "a flag of the model": (["--out", "X.npy", "--server", "{url}", "--image-size", "64"], "--image-size is not for"),
    "mask and cascade": (["--out", "X.npy", "--mask", "a", "--cascade", "b"], "give one of them"),
    "a mask that is not there": (["--out", "X.npy", "--server", "{url}", "--mask", "nowhere"], "nowhere"),
    "a folder that is not there": (["--out", "no/X.npy", "--server", "{url}"], "cannot write no/X.npy"),
    "a server that is away": (["--out", "X.npy", "--server", "http://127.0.0.1:1"], "no answer"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_cannot_be_done_is_one_line(world, run, tmp_path, monkeypatch, which):
    monkeypatch.chdir(tmp_path)
    words, said = BAD[which]
    code, out, err = run("embed", world.photos / "dark", *(word.format(url=world.url) for word in words))
    assert code == 2 and out == "" and said in err.splitlines()[-1] and "Traceback" not in err
    assert not any(path.suffix in (".npy", ".csv", ".json") for path in tmp_path.iterdir())


def test_without_pyarrow_parquet_names_its_extra(world, run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, _, err = run("embed", world.photos, "--out", tmp_path / "X.parquet", *world.model)
    assert code == 2 and "of the extra parquet" in err


def test_a_changed_photo_is_embedded_again(world, run, photos, tmp_path):
    from service.remote import embed_set, table_of
    from smn_core.imageset import open_images
    from smn_core.verbs.journal import Journal

    images, through = open_images(photos), {"mask": "flowers", "cascade": None, "mode": None}
    with smn.Client(world.url) as client:
        for turn in range(2):
            with Journal(tmp_path / "part") as journal:
                counts = []
                embed_set(client, images, through, None, journal, file=photos, on_batch=counts.append)
                table, skipped = table_of(images, journal)
                (vectors,) = table.chunks()
            assert counts[0] == (0 if turn == 0 else 19) and sum(counts) == 20 and not skipped
            np.testing.assert_allclose(vectors, client.embed(photos, mask="flowers").embeddings, rtol=1e-4, atol=1e-5)
            (photos / "dark" / "08.png").write_bytes(photo(77, (50, 44)))
            if turn == 1:
                break
