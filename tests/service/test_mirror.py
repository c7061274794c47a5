"""`smn mirror`: folders, Redis, servers and stores of files in step; stopped, damaged, away, changed at both."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager

import pytest
import structlog
import uvicorn
from cascades import build

import smn
from benchmarks.redis_server import RedisServer, free_port
from service.app import create_app
from service.client import Client
from service.mirror.ofobjects import ObjectSide
from service.mirror.step import open_side, take_turn
from service.objects import Objects
from service.registry.base import Hold, StillNeeded
from service.registry.open import open_registry
from service.settings import Settings
from smn_core.errors import InvalidArgument, NotFound, Unavailable

FINGERPRINT = "0123456789abcdef" * 4
B = FINGERPRINT[:16]
every_dest = pytest.mark.parametrize("kind", ["folder", "redis", "local", "memory", "s3"])


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on an S3 server of this process, where the environment points s3fs at."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("no S3 server: install moto[s3], flask-cors and s3fs")
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    said = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    said["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("masks")
        yield "s3://masks"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def place(request, tmp_path):
    """`place("s3")`: an empty second place of that kind."""

    def made(kind):
        if kind == "folder":
            return str(tmp_path / "second")
        if kind == "redis":
            import redis

            url = request.getfixturevalue("redis_url")
            with redis.Redis.from_url(url) as client:
                client.flushall()
            return url
        if kind == "local":
            return f"local://{tmp_path}/second"
        return f"{request.getfixturevalue('s3') if kind == 's3' else 'memory://masks'}/{uuid.uuid4().hex}"

    return made


@pytest.fixture
def first(tmp_path):
    """A folder registry: a mask of three versions, of which the second went, an alias, notes; a cascade of it."""
    registry = open_registry(tmp_path / "first", FINGERPRINT)
    for number in range(3):
        registry.publish("masks", "photos", b"mask %d" % number, vectors=f"{number}" * 64)
    registry.delete("masks", "photos", 2)
    registry.set_alias("masks", "photos", "champion", 1)
    registry.set_notes("masks", "photos", 1, '{"liked": true}')
    digest = registry.resolve("masks", "photos").digest
    registry.publish("cascades", "both", b"cascade", holds=[Hold(digest, "photos", 3)])
    yield registry
    registry.close()


@contextmanager
def turning(source, dest):
    first, second = open_side(str(source)), open_side(dest)
    try:
        yield lambda **more: take_turn(first, second, **more)
    finally:
        first.close()
        second.close()


def held(side, kind="masks", backbone=B):
    """What a place has, as far as both must agree."""
    return {
        name: (
            record.current,
            [(v.version, v.digest, v.bytes, v.uploaded, v.vectors, v.holds, v.notes) for v in record.versions],
            dict(record.aliases),
        )
        for name, record in side.records(backbone, kind).items()
        if record.versions
    }


def in_step(source, dest):
    first, second = open_side(str(source)), open_side(dest)
    try:
        for kind in ("masks", "cascades"):
            assert held(first, kind) == held(second, kind)
            for name, record in second.records(B, kind).items():
                for version in record.versions:
                    assert second.file(B, kind, name, version, version.digest)
    finally:
        first.close()
        second.close()


@every_dest
def test_a_second_place_follows_the_first_with_its_version_numbers(first, place, tmp_path, kind):
    source, dest = tmp_path / "first", place(kind)
    with turning(source, dest) as turn:
        done = turn()
        assert (done.brought, done.files, done.refused) == (["mask photos", "cascade both"], 3, [])
        in_step(source, dest)
        again = turn()
        assert (again.brought, again.in_step, again.files) == ([], 2, 0)

        first.publish("masks", "photos", b"mask 4")
        first.set_current("masks", "photos", 1)
        first.set_alias("masks", "photos", "champion", 4)
        first.publish("masks", "maps", b"maps")
        done = turn()
        assert (done.brought, done.files) == (["mask maps", "mask photos"], 2)
        in_step(source, dest)
    with turning(dest, str(tmp_path / "third")) as turn:  # and back out of it
        assert len(turn().brought) == 3
    in_step(source, str(tmp_path / "third"))


@every_dest
def test_nothing_is_deleted_unless_told(first, place, tmp_path, kind):
    source, dest = tmp_path / "first", place(kind)
    first.publish("masks", "old", b"old")
    with turning(source, dest) as turn:
        turn()
        before = held(open_side(dest))
        first.delete("cascades", "both")
        first.delete_alias("masks", "photos", "champion")
        first.delete("masks", "photos", 1)
        first.delete("masks", "old")
        assert turn().deleted == [] and held(open_side(dest)) == before
        gone = ["cascade both", "mask old", "mask photos@1", "mask photos@champion"]
        assert sorted(turn(delete=True).deleted) == gone
        in_step(source, dest)
        assert turn(delete=True).deleted == []
        first.delete("masks", "photos")
        with pytest.raises(NotFound, match="nothing is mirrored, and nothing deleted"):
            turn(delete=True)
        assert list(held(open_side(dest))) == ["photos"]


@every_dest
def test_what_both_places_changed_is_refused_and_the_rest_goes_on(first, place, tmp_path, kind):
    source, dest = tmp_path / "first", place(kind)
    other = open_registry(tmp_path / "other", FINGERPRINT)
    other.publish("masks", "photos", b"another first mask")
    other.close()
    first.publish("masks", "zebra", b"zebra")
    with turning(tmp_path / "other", dest) as turn:
        turn()
    with turning(source, dest) as turn:
        done = turn()
    assert done.brought == ["mask zebra"]
    assert "mask photos@1 is another file at the second place" in done.refused[0]
    assert "cascade both needs masks that the second place does not have" in done.refused[1]
    assert sorted(held(open_side(dest))) == ["photos", "zebra"]


def test_a_damaged_file_is_never_brought(first, tmp_path):
    digest = first.resolve("masks", "photos").digest
    blob = tmp_path / "first" / B / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(b"mask X")
    with turning(tmp_path / "first", str(tmp_path / "second")) as turn, pytest.raises(Unavailable, match="is damaged"):
        turn()
    store = ObjectSide("memory://damaged")
    with turning(tmp_path / "first", "memory://damaged") as turn:
        with pytest.raises(Unavailable, match="is damaged"):
            turn()
        assert store.records(B, "masks") == {}
        blob.write_bytes(b"mask 2")
        turn()
    name = f"{B}/blobs/sha256/{digest.removeprefix('sha256:')}"
    store.objects.write(name, b"mask X")
    with turning("memory://damaged", str(tmp_path / "second")) as turn:
        with pytest.raises(Unavailable, match=f"mask photos@3 is damaged: it is not {digest}"):
            turn()
        store.objects.write(name, b"mask 2")
        store.objects.write(f"{B}/masks/photos.json", b"{half")
        with pytest.raises(Unavailable, match="delete it, and mirror again"):
            turn()


def test_a_turn_that_was_stopped_goes_on_where_it_was(first, tmp_path):
    for number in range(30):
        first.publish("masks", f"m{number:02}", b"file %d" % number)
    whole = ObjectSide("memory://stopped")
    source, dest = open_side(str(tmp_path / "first")), open_side("memory://stopped")
    write, written = dest.objects.write, []

    def stop_at(name, data):
        if len(written) == 21:
            raise KeyboardInterrupt
        written.append(name)
        write(name, data)

    dest.objects.write = stop_at
    with pytest.raises(KeyboardInterrupt):
        take_turn(source, dest)
    assert len(held(whole)) == 10  # a blob, then its name; the blob of the eleventh is there
    dest.objects.write = write
    done = take_turn(source, dest)
    assert (len(done.brought), done.in_step, done.files) == (22, 10, 22)
    source.close()
    in_step(tmp_path / "first", "memory://stopped")


def test_a_killed_mirror_leaves_whole_names_and_the_next_one_brings_the_rest(first, tmp_path):
    for number in range(200):
        first.publish("masks", f"m{number:03}", b"file %d" % number)
    source, dest = str(tmp_path / "first"), f"local://{tmp_path}/second"
    process = subprocess.Popen([sys.executable, "-m", "smn", "mirror", source, dest], stderr=subprocess.PIPE, text=True)
    for _ in range(20):
        assert process.stderr.readline()
    process.kill()
    process.wait()
    process.stderr.close()
    with turning(source, dest) as turn:
        done = turn()
    assert done.in_step >= 20 and done.in_step + len(done.brought) == 202
    in_step(source, dest)


def test_a_reader_of_a_folder_sees_a_record_whole_while_a_mirror_writes_it(tmp_path):
    store, files = Objects(f"local://{tmp_path}"), [bytes([number]) * 4_000_000 for number in range(2)]
    store.write("masks/m.json", files[0])
    done = threading.Event()

    def write():
        for number in range(60):
            store.write("masks/m.json", files[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.read("masks/m.json") in files
    writer.join()
    assert store.list("masks") == ["m.json"]


def test_what_a_killed_mirror_was_writing_in_a_folder_goes_with_the_next_turn_that_deletes(first, tmp_path):
    left = [tmp_path / "second" / B / "masks" / ".photos.12ab.json", tmp_path / "second" / B / "blobs/sha256" / ".12ab"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b'{"vers')
    source, dest = str(tmp_path / "first"), f"local://{tmp_path}/second"
    with turning(source, dest) as turn:
        turn(delete=True)
    in_step(source, dest)
    assert not any(path.exists() for path in left)


@pytest.fixture
def server(theta, tmp_path):
    """`server(**settings)`: the URL of a server in this process, on a registry of its own."""
    running = []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # stdout is the verb's

    def start(name, **settings):
        backbone = theta.backbone()
        registry = open_registry(tmp_path / name, backbone.fingerprint)
        port = free_port()
        app = create_app(Settings(slots=4, no_console=True, port=port, **settings), backbone, registry)
        found = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=found.run)
        thread.start()
        running.append((found, thread))
        while not found.started:
            thread.join(0.01)
        return f"http://127.0.0.1:{port}"

    yield start
    for found, thread in running:
        found.should_exit = True
        thread.join()


def test_a_server_is_either_side_and_says_who_may(theta, server, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["smn", "mirror", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
        return stopped.value.code or 0, *capsys.readouterr()

    one, two = server("one", admin_keys=["right"]), server("two", admin_keys=["left"])
    built = build(theta)
    with Client(one, "right") as client:
        for number, mask in enumerate(built.masks):
            client.push(f"both.{number}", mask.data)
        client.push("both", built.data, kind="cascades")
        client.push("photos", theta.mask(61).data)
        client.push("photos", theta.mask(62).data)
        client.set_alias("photos", "champion", 1)
        client.rollback("photos", 1)
    monkeypatch.setenv("RIGHT", "right")
    keys = ["--source-key", "env:RIGHT", "--dest-key", "left"]
    code, out, err = run(one, two, *keys, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert len(told["brought"]) == len(built.masks) + 2 and told["refused"] == []
    with Client(one, "right") as client, Client(two, "left") as other:
        assert client.pull("both", kind="cascades") == other.pull("both", kind="cascades")
        ours, theirs = client.mask("photos"), other.mask("photos")
    assert (theirs["current"], theirs["aliases"]) == (ours["current"], ours["aliases"])
    assert "0 names brought" in run(one, two, *keys)[2]

    folder = tmp_path / "folder"
    assert run(one, folder, *keys[:2])[0] == 0
    backbone = theta.backbone().fingerprint
    registry = open_registry(folder, backbone)
    entry = registry.entry("cascades", "both")
    assert set(entry.current.needs) == {mask.digest for mask in built.masks}
    assert registry.entry("masks", "photos").aliases == {"champion": 1}
    registry.close()
    with Client(two, "left") as client:
        client.push("more", theta.mask(63).data)
        client.set_alias("photos", "mine", 2)
    assert run(one, two, *keys, "--delete")[0] == 2
    code, _, err = run(one, two, *keys, "--delete", "--yes")
    assert code == 0 and "mask more: deleted" in err and "mask photos@mine: deleted" in err
    for arguments, said in (
        ([one, tmp_path / "x"], "refuses (401): send a key: Authorization: Bearer <key>; give --source-key"),
        ([one, tmp_path / "x", "--source-key", "wrong"], "the key is not known here; give --source-key"),
        ([tmp_path / "folder", two, "--dest-key", "wrong"], "the key is not known here; give --dest-key"),
        ([tmp_path / "folder", tmp_path / "x", "--source-key", "k"], "a key is for a server"),
        ([one, one, *keys], "one place"),
        ([tmp_path / "none", tmp_path / "x"], "has no mask and no cascade"),
        ([one, "nosuch://x", *keys[:2]], "nosuch"),
        ([one, "zip::memory://x", *keys[:2]], "zip"),
        ([f"http://127.0.0.1:{free_port()}", tmp_path / "x"], "127.0.0.1"),
        ([one, tmp_path / "x", "--once", "--every", "5"], "give one of them"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "") and said in err and err.count("\n") == 1, (arguments, err)


@pytest.mark.parametrize("kind", ["folder", "redis"])
def test_a_parent_from_a_server_cannot_be_deleted_before_its_children(theta, server, place, tmp_path, kind):
    url, dest, parent = server("one"), place(kind), theta.mask(1)
    children = [theta.mask(seed, parent=parent).data for seed in (2, 3)]
    with Client(url) as client:
        client.push("p", parent.data)
        client.push("child", children[0])
        client.push("p", children[1])  # of its own name
    with turning(url, dest) as turn:
        done = turn()
        assert (done.brought, done.refused) == (["mask p", "mask child"], [])
        assert turn().in_step == 2
    fingerprint = theta.backbone().fingerprint
    first, registry = open_registry(tmp_path / "one", fingerprint), open_registry(dest, fingerprint)
    try:
        here, there = ({name: r.versions for name, r in one.records("masks")} for one in (first, registry))
        assert here == there
        for version in (1, None):
            with pytest.raises(StillNeeded, match="is needed by: child"):
                registry.delete("masks", "p", version)
        registry.collect(0)
        assert registry.blob(parent.digest) == parent.data
        with Client(url) as client:
            client.delete("child")
            client.push("last", theta.mask(4).data)
            client.delete("p")
        with turning(url, dest) as turn:
            assert turn(delete=True).deleted == ["mask child", "mask p"]
    finally:
        first.close()
        registry.close()


@pytest.mark.parametrize("kind", ["folder", "redis", "memory"])
def test_a_mask_whose_parent_does_not_come_is_named_and_the_rest_goes_on(theta, server, place, kind):
    url, dest, parent = server("one", admin_keys=["all", "some=team."]), place(kind), theta.mask(1)
    with Client(url, "all") as client:
        client.push("root", parent.data)
        client.push("team.child", theta.mask(2, parent=parent).data)
        client.push("team.other", theta.mask(3).data)
    source, second = open_side(url, "some"), open_side(dest)
    done = take_turn(source, second)
    assert done.brought == ["mask team.other"]
    (refused,) = done.refused
    assert f"team.child@1 is coded against {parent.digest}, which the key may not see" in refused
    source.close()
    source = open_side(url, "all")
    assert take_turn(source, second).brought == ["mask root", "mask team.child"]
    source.close()
    second.close()


@every_dest
def test_a_mask_goes_after_its_parent_and_not_without_it(first, place, tmp_path, kind):
    source, dest = tmp_path / "first", place(kind)
    for name in ("z", "y"):
        first.publish("masks", name, name.encode())
    for name, parent in (("a", "z"), ("b", "y")):
        digest = first.resolve("masks", parent).digest
        first.publish("masks", name, name.encode(), holds=[Hold(digest, parent, 1)], parent=digest)
    other = open_registry(tmp_path / "other", FINGERPRINT)
    other.publish("masks", "y", b"another")
    other.close()
    with turning(tmp_path / "other", dest) as turn:
        turn()
    with turning(source, dest) as turn:
        done = turn()
    assert done.brought == ["mask z", "mask a", "mask photos", "cascade both"]
    assert "mask y@1 is another file" in done.refused[0]
    assert f"mask b@1 is coded against y@1 ({first.resolve('masks', 'y').digest})" in done.refused[1]


def test_names_that_hold_each_other_go_together(tmp_path):
    registry = open_registry(tmp_path / "first", FINGERPRINT)
    held = []
    for name in ("a", "b", "a", "b"):
        data = b"%s %d" % (name.encode(), len(held))
        parent = held[-1].digest if held else None
        done = registry.publish("masks", name, data, holds=held[-1:], parent=parent).version
        held.append(Hold(done.digest, name, done.version))
    registry.close()
    with turning(tmp_path / "first", str(tmp_path / "second")) as turn:
        done = turn()
    assert (sorted(done.brought), done.refused) == (["mask a", "mask b"], [])
    in_step(tmp_path / "first", str(tmp_path / "second"))


def test_a_mirror_without_end_waits_for_a_place_that_is_away(first, tmp_path):
    source, dest = tmp_path / "first", tmp_path / "second"
    hidden = tmp_path / "hidden"
    digest = first.resolve("masks", "photos").digest.removeprefix("sha256:")
    blob = source / B / "blobs" / "sha256" / digest
    blob.rename(hidden)
    blob.write_bytes(b"half")
    command = [sys.executable, "-m", "smn", "mirror", str(source), str(dest), "--every", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert "is damaged" in process.stderr.readline()
        hidden.rename(blob)
        lines = iter(process.stderr.readline, "")
        assert any("mask photos: version 3 is current" in line for line in lines)
        first.publish("masks", "later", b"later")
        assert any("mask later: version 1 is current" in line for line in lines)
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    in_step(source, str(dest))


def test_a_store_is_read_below_its_url_alone_and_a_file_that_is_too_large_is_not_fetched(tmp_path):
    store = Objects("memory://bucket/dir")
    store.write("a/b.smn", b"12345")
    assert (store.list(), store.list("a"), store.list("none")) == (["a"], ["b.smn"], [])
    assert (store.bytes_of("a/b.smn"), store.bytes_of("a/c.smn"), store.read("a/b.smn")) == (5, None, b"12345")
    with pytest.raises(Exception, match="has 5 bytes, too many"):
        store.read("a/b.smn", most=4)
    with pytest.raises(NotFound, match=r"memory://bucket/dir has no a/c\.smn"):
        store.read("a/c.smn")
    store.delete("a/b.smn")
    store.delete("a/b.smn")
    assert store.list("a") == []
    with pytest.raises(InvalidArgument, match="one URL"):
        Objects("simplecache::memory://x")
