"""`smn translate --server`: the map between two masks of a server is that between their files."""

import json

import numpy as np
import pytest
from served import photo

import smn


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """48 photos, one that cannot be read, and a film."""
    folder = tmp_path_factory.mktemp("sample")
    for i in range(48):
        (folder / f"{i:02}.png").write_bytes(photo(i))
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "film.mov").write_bytes(b"no image")
    return folder


def test_two_names_are_translated_as_their_files_are(world, run, sample, tmp_path):
    names, files = ("root", "flowers"), ("root", world.folder / "flowers.smn")
    told, maps = [], []
    for (before, after), more in ((names, ["--server", world.url]), (files, world.model)):
        words = [
            "translate",
            "--from",
            before,
            "--to",
            after,
            "--data",
            sample,
            "--out",
            tmp_path / "map.npz",
            "--json",
        ]
        code, out, err = run(*words, *more)
        assert code == 1 and "1 file of another kind is not read: 1 .mov" in err and "bad.png" in err
        told.append(json.loads(out))
        maps.append(dict(np.load(tmp_path / "map.npz")))
    for key in ("from", "to", "images", "strength", "other_files"):
        assert told[0][key] == told[1][key], key
    for key in ("matrix", "mean_from", "mean_to"):
        np.testing.assert_allclose(maps[0][key], maps[1][key], rtol=2e-2, atol=2e-2)
    with smn.Client(world.url) as client:
        assert [str(maps[0][key]) for key in ("from", "to")] == [client.space(), client.space("flowers")]


BAD = {
    "one space": (["--from", "flowers", "--to", "flowers@1"], "are one space"),
    "no such name": (["--from", "flowers", "--to", "nowhere"], "nowhere"),
    "no such alias": (["--from", "flowers@champion", "--to", "other"], "champion"),
    "a backbone too": (["--from", "flowers", "--to", "other", "--backbone", "resnet18"], "has its own backbone"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_a_server_cannot_translate_is_one_line(world, run, sample, tmp_path, which):
    words, said = BAD[which]
    out = tmp_path / "map.npz"
    code, _, err = run("translate", *words, "--server", world.url, "--data", sample, "--out", out)
    assert code == 2 and said in err.splitlines()[-1] and not out.exists()
