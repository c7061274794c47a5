"""`smn push FILE hf:...`, `smn pull hf:...`, `smn serve --masks-from` as a user meets them, with a stand-in hub."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

import huggingface_hub
import pytest
from cascades import build
from hubserver import TOKEN, StandInHub
from preloaded import SMN
from served import ServerProcess, Theta

import smn
from smn_core.maskfile import read_mask, write_mask

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub():
    with StandInHub() as found:
        yield found


@pytest.fixture
def command(hub, monkeypatch, tmp_path, capsys):
    """`command("push", ...)`: `smn` in this process and an empty folder, its code and what it printed and said."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def ran(*args):
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return ran


@pytest.fixture
def file(tiny_vit, make_mask, tmp_path):
    write_mask(make_mask(tiny_vit), tmp_path / "a.smn")
    return tmp_path / "a.smn"


def test_a_mask_goes_to_the_hub_and_comes_back(command, hub, file, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    code, out, err = command(
        "push", file, "hf:someone/Photos", "--token", "env:MY_TOKEN", "--private", "--license", "mit", "--base-model",
        "timm/test_vit.r160_in1k",
    )  # fmt: skip
    assert (code, out) == (0, f"hf:someone/Photos {read_mask(file).digest} ({file.stat().st_size:,} bytes)\n"), err
    assert f"commit: {hub.url}/someone/Photos/commit/" in err and hub.private == {"someone/Photos"}
    assert b"license: mit" in hub.file("someone/Photos", "README.md")
    code, _, err = command("pull", "hf:someone/Photos", "--token", TOKEN)
    assert code == 0 and (tmp_path / "here" / "photos.smn").read_bytes() == file.read_bytes(), err


def test_json_says_what_was_committed_and_no_card_leaves_the_card(command, hub, file):
    hub.commit("someone/photos", "main", {"README.md": b"by hand"})
    code, out, err = command("push", file, "hf:someone/photos", "--token", TOKEN, "--no-card", "--json")
    assert code == 0, err
    assert json.loads(out)["digest"] == read_mask(file).digest
    assert hub.file("someone/photos", "README.md") == b"by hand"


def test_a_cascade_goes_to_the_hub_with_its_masks_and_card_and_comes_back(command, hub, theta, tmp_path):
    built = build(theta)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "cascade.safetensors").write_bytes(built.data)
    names = ["root.smn", "expert-1.smn", "expert-2.smn", "expert-3.smn"]
    for name, mask in zip(names, built.masks, strict=True):
        (folder / name).write_bytes(mask.data)
    code, out, err = command("push", folder, "hf:someone/both", "--token", TOKEN, "--license", "mit")
    assert code == 0 and out.startswith(f"hf:someone/both {built.digest} ("), err
    card = hub.file("someone/both", "README.md").decode()
    assert "smn-cascade" in card and "license: mit" in card and "| expert 3 | " in card and "?cascade=both" in card
    code, _, err = command("pull", "hf:someone/both")
    here = tmp_path / "here" / "both"
    assert code == 0 and "a cascade and 4 masks" in err and f"in {here.name}" in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    code, _, err = command("pull", "hf:someone/both")
    assert code == 2 and "both exists: give --overwrite" in err
    assert command("pull", "hf:someone/both", "--overwrite")[0] == 0


def test_pull_writes_over_nothing_unless_told(command, hub, file, tmp_path):
    hub.commit("someone/photos", "main", {"mask.smn": file.read_bytes()})
    mine = tmp_path / "here" / "photos.smn"
    mine.write_text("mine")
    code, _, err = command("pull", "hf:someone/photos")
    assert code == 2 and "photos.smn exists: give --overwrite" in err and hub.seen == []
    assert mine.read_text() == "mine"
    assert command("pull", "hf:someone/photos", "--overwrite")[0] == 0
    assert mine.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("what", ["401", "404", "500", "half", "text"])
def test_a_pull_that_fails_leaves_nothing(command, hub, file, tmp_path, what):
    hub.commit("someone/photos", "main", {"mask.smn": b"text" if what == "text" else file.read_bytes()})
    hub.cut = what == "half"
    hub.failing = [("GET", "/resolve/", 500)] if what == "500" else []
    hub.private = {"someone/photos"} if what == "401" else set()
    code, out, err = command("pull", "hf:someone/other" if what == "404" else "hf:someone/photos")
    assert (code, out) == (2, "") and err.startswith("smn: error: hf:someone/") and err.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_a_push_that_cannot_be_meant_is_refused_before_anything_is_sent(command, hub, file, tmp_path):
    (tmp_path / "text.smn").write_text("no mask")
    for args, words in (
        ([file], "push takes FILE --name NAME, for a server, or FILE hf:USER/NAME"),
        ([file, "hf:a/b", "--name", "c"], "push takes FILE --name NAME"),
        ([file, "photos"], "a hub's place is written hf:user/name"),
        ([file, "hf:photos"], "write hf:user/name"),
        ([tmp_path, "hf:a/b"], "cannot read"),
        ([file, "hf:a/b", "--if-absent"], "are for a server"),
        ([file, "hf:a/b", "--license", "my own"], "identifier of the Hub"),
        ([file, "hf:a/b", "--base-model", "resnet50"], "the backbone's place on the Hub"),
        ([file, "hf:a/b", "--token", "env:NONE"], "--token env:NONE: that environment variable is not set"),
        ([tmp_path / "text.smn", "hf:a/b"], "text.smn"),
    ):
        code, _, err = command("push", *args)
        assert code == 2 and words in err and err.count("\n") == 1, err
    assert hub.seen == []


def test_the_key_of_a_server_is_never_sent_to_the_hub(command, hub, file, monkeypatch):
    monkeypatch.setenv("SMN_KEY", "secret-of-the-server")
    hub.commit("someone/photos", "main", {"mask.smn": file.read_bytes()})
    assert command("pull", "hf:someone/photos")[0] == 0
    assert hub.seen and all("secret" not in str(authorization) for _, _, authorization in hub.seen)


def test_a_store_gives_its_masks_and_says_what_is_wrong_with_them(file):
    from service.objects import Objects
    from service.offer import read_offers
    from smn_core.errors import InvalidArgument, InvalidMask, NotFound

    store = Objects("memory://offers")
    store.write("photos/a.smn", file.read_bytes())
    store.write("photos/b.smn", file.read_bytes())
    store.write("photos/notes.txt", b"no mask")
    (one,) = read_offers([], ["memory://offers/photos/a.smn"])
    assert (one.name, one.where, one.path, one.mask.digest) == (
        "a", "memory://offers/photos/a.smn", None, read_mask(file).digest,
    )  # fmt: skip
    assert [offer.name for offer in read_offers([], ["memory://offers/photos"])] == ["a", "b"]
    both = "memory://offers/photos/b.smn,memory://offers/photos/a.smn"
    assert [offer.name for offer in read_offers([], [both])] == ["b", "a"]
    with pytest.raises(InvalidArgument, match=r"memory://offers/photos/a\.smn would have one name"):
        read_offers([file], ["memory://offers/photos"])
    with pytest.raises(NotFound, match="memory://offers has no file"):
        read_offers([], ["memory://offers"])
    with pytest.raises(NotFound, match=r"has no c\.smn"):
        read_offers([], ["memory://offers/photos/c.smn"])
    store.write("half/a.smn", file.read_bytes()[:100])
    with pytest.raises(InvalidMask, match=r"memory://offers/half/a\.smn: "):
        read_offers([], ["memory://offers/half"])
    store.write("named/My Photos.smn", file.read_bytes())
    with pytest.raises(InvalidArgument, match=r"My Photos\.smn: its mask would be called as"):
        read_offers([], ["memory://offers/named"])
    for address in ("photos.smn", "http://x/photos.smn", "redis://x", "file:///x"):
        with pytest.raises(InvalidArgument, match="write hf:user/name, or a store's URL"):
            read_offers([], [address])


def test_a_server_pulls_at_start_what_its_operator_names_and_nothing_else(hub, make_mask, tmp_path):
    theta = Theta()
    weights = theta.save(tmp_path)
    for seed, name in enumerate(("Photos", "maps")):
        write_mask(make_mask(theta.backbone(), 0.8, seed, with_preprocess=True), tmp_path / f"{name}.smn")
        hub.commit(f"someone/{name}", "main", {"mask.smn": (tmp_path / f"{name}.smn").read_bytes()})
    hub.private = {"someone/maps"}
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    named = ["--masks-from", "hf:someone/Photos", "--masks-from", "hf:someone/maps@main"]
    with ServerProcess([*named, *weights], tmp_path, environment, program=SMN) as server:
        fetched = len(hub.seen)
        with urllib.request.urlopen(f"{server.url}/masks") as answer:
            assert [mask["name"] for mask in json.load(answer)["data"]] == ["maps", "photos"]
        with urllib.request.urlopen(f"{server.url}/masks/photos") as answer:
            assert json.load(answer)["current"]["digest"] == read_mask(tmp_path / "Photos.smn").digest
        asked = urllib.request.Request(f"{server.url}/embed?mask=hf:someone/other", b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(asked)
        assert len(hub.seen) == fetched
    again = ServerProcess(["--masks-from", "hf:someone/none", *weights], tmp_path, environment, program=SMN)
    with pytest.raises(RuntimeError, match="smn: error: hf:someone/none: no such repository"):
        again.start()
    assert again.process.returncode == 2
