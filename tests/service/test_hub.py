"""Masks on the Hub: the real client against a stand-in for its HTTP API, whole, refused and broken."""

from __future__ import annotations

import huggingface_hub
import pytest
from cascades import build
from hubserver import TOKEN, StandInHub

from service.hub import (
    CASCADE,
    FILE,
    explain,
    is_hub,
    look,
    parse_address,
    pull_cascade,
    pull_mask,
    push_files,
)
from smn_core.cascade.file import mask_names
from smn_core.errors import InvalidArgument, InvalidCascade, InvalidMask, NotFound, Unavailable
from smn_core.maskfile import serialise_mask

# The client's own way to send an LFS file, which httpx2 no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PLACE = parse_address("hf:someone/Photos")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The client of this process talks to a stand-in, without what this machine has of a login."""
    constants = huggingface_hub.constants
    with StandInHub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        # It tries again for 23 s in all, which no test needs to see.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield found


@pytest.fixture
def data(tiny_vit, make_mask):
    return serialise_mask(make_mask(tiny_vit))


@pytest.fixture
def cascade(theta):
    """The files of a cascade with three experts, as they stand in a repository."""
    built = build(theta)
    names = mask_names(len(built.masks))
    return {CASCADE: built.data, **{name: mask.data for name, mask in zip(names, built.masks, strict=True)}}


def push_mask(place, data, card, **more):
    return push_files(place, {FILE: data}, card, **more)


def test_what_was_pushed_is_pulled_with_its_card(hub, data):
    url = push_mask(PLACE, data, "---\nlibrary_name: smn\n---\n\n# Photos\n", token=TOKEN)
    assert url == f"{hub.url}/someone/Photos/commit/{hub.repos['someone/Photos']['main']}"
    assert hub.file("someone/Photos", "README.md").startswith(b"---\nlibrary_name: smn\n")
    pulled, mask = pull_mask(PLACE)
    assert pulled == data and mask.digest is not None
    assert len(hub.commits) == 2, "one commit makes the repository, one has both files"


def test_a_second_push_is_a_new_commit_and_the_first_stays_a_revision(hub, data, tiny_vit, make_mask):
    push_mask(PLACE, data, None, token=TOKEN)
    first = hub.repos["someone/Photos"]["main"]
    second = serialise_mask(make_mask(tiny_vit, rng=1))
    push_mask(PLACE, second, None, token=TOKEN)
    assert pull_mask(PLACE)[0] == second
    assert pull_mask(parse_address(f"hf:someone/Photos@{first}"))[0] == data


def test_a_private_repository_needs_the_token(hub, data):
    push_mask(PLACE, data, None, token=TOKEN, private=True)
    assert hub.private == {"someone/Photos"}
    assert pull_mask(PLACE, token=TOKEN)[0] == data
    with pytest.raises(NotFound, match=r"no such repository, or none that you may see \(401\): give --token"):
        pull_mask(PLACE)


def test_the_token_of_the_environment_is_used(hub, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_mask(PLACE, data, None, private=True)
    assert pull_mask(PLACE)[0] == data


@pytest.mark.parametrize(("token", "words"), [(None, "401"), ("hf_wrong", "401")])
def test_a_push_without_the_right_says_what_to_give(hub, data, token, words):
    with pytest.raises((InvalidArgument, NotFound), match=rf"{words}.*|give --token, set HF_TOKEN"):
        push_mask(PLACE, data, None, token=token)
    assert hub.repos == {}


def test_what_is_not_there_is_named(hub, data):
    with pytest.raises(NotFound, match="no such repository"):
        pull_mask(PLACE, token=TOKEN)
    hub.commit("someone/Photos", "main", {"model.safetensors": b"x"})
    with pytest.raises(NotFound, match=rf"hf:someone/Photos has no {FILE} and no {CASCADE}: no smn push"):
        pull_mask(PLACE)
    for call in (pull_mask, lambda place: push_mask(place, data, None, token=TOKEN)):
        with pytest.raises(NotFound, match="the repository has no revision v9"):
            call(parse_address("hf:someone/Photos@v9"))


@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize("step", [("POST", "/repos/create"), ("POST", "/commit/")])
def test_a_push_that_breaks_commits_nothing(hub, data, step, status):
    hub.failing = [(*step, status)]
    with pytest.raises((InvalidArgument, Unavailable), match=f"{status}") as refused:
        push_mask(PLACE, data, "card", token=TOKEN)
    assert "\n" not in str(refused.value)
    assert all(files == {} for files in hub.commits.values())


@pytest.mark.parametrize(
    ("method", "status", "kind"), [("HEAD", 500, Unavailable), ("GET", 500, Unavailable), ("GET", 403, InvalidArgument)]
)
def test_a_pull_that_breaks_says_the_status_in_one_line(hub, data, method, status, kind):
    push_mask(PLACE, data, None, token=TOKEN)
    hub.failing = [(method, "/resolve/", status)]
    with pytest.raises(kind, match=str(status)) as refused:
        pull_mask(PLACE)
    assert "\n" not in str(refused.value)


def test_half_a_file_is_refused(hub, data):
    push_mask(PLACE, data, None, token=TOKEN)
    hub.cut = True
    with pytest.raises((Unavailable, InvalidMask), match=r"hf:someone/Photos: .*size") as refused:
        pull_mask(PLACE)
    assert "\n" not in str(refused.value)


def test_what_is_no_mask_is_refused(hub, data):
    for wrong in (b"text", data[:-1] + b"\0" if data[-1] else data[:-1] + b"\1"):
        hub.commit("someone/Photos", "main", {FILE: wrong})
        with pytest.raises(InvalidMask, match="hf:someone/Photos: "):
            pull_mask(PLACE)


def test_a_cascade_travels_with_its_masks_in_one_commit(hub, cascade):
    push_files(PLACE, cascade, "card", token=TOKEN)
    assert len(hub.commits) == 2 and hub.file("someone/Photos", "README.md") == b"card"
    held = look(PLACE)
    assert held.is_cascade and held.commit == hub.repos["someone/Photos"]["main"]
    assert pull_cascade(PLACE, held) == cascade
    assert list(pull_cascade(PLACE, held))[-1] == CASCADE, "whoever reads the folder finds its masks there"
    with pytest.raises(InvalidArgument, match="has a cascade: bring it with smn pull"):
        pull_mask(PLACE)


def test_a_repository_has_a_mask_or_a_cascade_and_never_both(hub, cascade, data):
    push_files(PLACE, cascade, None, token=TOKEN)
    other = parse_address("hf:someone/maps")
    push_mask(other, data, None, token=TOKEN)
    n_commits = len(hub.commits)
    with pytest.raises(InvalidArgument, match="hf:someone/Photos holds a cascade"):
        push_mask(PLACE, data, None, token=TOKEN)
    with pytest.raises(InvalidArgument, match="hf:someone/maps holds a mask"):
        push_files(other, cascade, None, token=TOKEN)
    assert len(hub.commits) == n_commits


def test_a_cascade_that_lacks_a_mask_or_has_another_is_refused(hub, cascade):
    push_files(PLACE, {name: file for name, file in cascade.items() if name != "expert-2.smn"}, None, token=TOKEN)
    with pytest.raises(NotFound, match=r"hf:someone/Photos has no expert-2\.smn"):
        pull_cascade(PLACE, look(PLACE))
    hub.commit("someone/Photos", "main", {"expert-2.smn": cascade["expert-1.smn"]})
    with pytest.raises(InvalidCascade, match=r"hf:someone/Photos: expert-2\.smn is not the mask sha256:"):
        pull_cascade(PLACE, look(PLACE))
    hub.commit("someone/Photos", "main", {CASCADE: b"no cascade"})
    with pytest.raises(InvalidCascade, match="hf:someone/Photos: "):
        pull_cascade(PLACE, look(PLACE))
    push_files(PLACE, cascade, None, token=TOKEN)
    held = look(PLACE)
    hub.commit("someone/Photos", "main", {"root.smn": b"a later commit"})
    assert pull_cascade(PLACE, held) == cascade, "all files are of the commit that was looked at"
    hub.cut = True
    with pytest.raises((Unavailable, InvalidCascade), match=r"hf:someone/Photos: .*size"):
        pull_cascade(PLACE, held)


def test_a_hub_that_is_not_there_is_said(hub, monkeypatch):
    hub.server.server_close()
    with pytest.raises(Unavailable, match=r"hf:someone/Photos: the hub cannot be reached"):
        pull_mask(PLACE)


def test_an_answer_that_is_no_hubs_is_said():
    assert str(explain(KeyError("commitUrl"), PLACE)) == (
        "hf:someone/Photos: the hub's answer cannot be used: 'commitUrl'"
    )


@pytest.mark.parametrize(
    "text",
    ["someone/photos", "hf:photos", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b@", "hf:a/b@../x", "hf:a/b?x", "hf:a/b\n",
     "hf:a/b@x y", "hf:-a/b", "hf:a/b--c", "hf:a/b.git", "hf:http://x/y"],
)  # fmt: skip
def test_only_a_repository_and_a_revision_are_an_address(text):
    with pytest.raises(InvalidArgument, match="write hf:user/name"):
        parse_address(text)


def test_an_address_reads_as_it_is_written():
    place = parse_address("hf:some-one/My.Photos_2@refs/pr/1")
    assert (place.repo, place.revision, place.name) == ("some-one/My.Photos_2", "refs/pr/1", "my.photos_2")
    assert str(place) == "hf:some-one/My.Photos_2@refs/pr/1" and is_hub(str(place)) and not is_hub("photos@3")
