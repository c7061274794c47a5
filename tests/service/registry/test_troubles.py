"""A registry that is full, read-only, away, slow, damaged, lost or moved: what it says and what it still does."""

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import redis
from registry_helpers import FINGERPRINT, eventually

from benchmarks.redis_server import RedisServer
from service.registry import follower
from service.registry.archive import InvalidArchive, read_archive, restore_archive, write_archive
from service.registry.base import Hold
from service.registry.open import backbones_in, open_registry, require_there
from service.registry.watch import Health
from service.registry.within import TooLate, within
from smn_core.errors import Conflict, InvalidArgument, NotFound, Unavailable
from smn_core.tensorfile import digest_of

PREFIX = f"smn:{{{FINGERPRINT[:16]}}}:"


class Front:
    """One address whose server can be changed; `slow` lets what comes back from it trickle, byte by byte."""

    def __init__(self, port):
        self.to, self.slow = port, None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._relay = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._relay.sockets[0].getsockname()[1]}/0"

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _connected(self, reader, writer):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.to)
        asked = bytearray()
        await asyncio.gather(self._pass(reader, to_writer, asked), self._pass(to_reader, writer, asked, back=True))

    async def _pass(self, reader, writer, asked, back=False):
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                if not back:
                    asked[:] = data
                elif self.slow and self.slow in asked:
                    for byte in data:
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0.05)
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self):
        async def stop():
            self._relay.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def front(redis_server, fresh_redis):
    fresh_redis(redis_server)
    found = Front(redis_server.port)
    yield found
    found.close()


@pytest.fixture
def open_at():
    """`open_at(place)`: an instance."""
    opened = []

    def open_one(place):
        opened.append(open_registry(place, FINGERPRINT))
        return opened[-1]

    yield open_one
    for registry in opened:
        registry.close()


@pytest.fixture
def watched(open_at):
    """`watched(place)`: an instance that is looked after, and the list of the healths that it told of."""

    def start(place):
        told = []
        registry = open_at(place)
        registry.watch(told.append)
        return registry, told

    return start


# Redis: full, read-only, away, moved.


def test_a_full_redis_is_up_and_not_writable_until_there_is_room(tmp_path, watched):
    with RedisServer(tmp_path / "redis", "--maxmemory", "8mb") as server:
        registry, told = watched(server.url)
        assert registry.health() == Health()
        with pytest.raises(Unavailable, match="memory is full"):
            for i in range(16):
                registry.publish("masks", f"big{i}", bytes([i]) * 2**20)
        eventually(lambda: registry.health().unwritable)
        assert registry.health().away is None and "memory is full" in registry.health().unwritable
        registry.delete("masks", "big0")
        registry.delete("masks", "big1")
        registry.collect(0)
        eventually(lambda: registry.health() == Health())
        assert [(health.away is None, health.unwritable is None) for health in told] == [(True, False), (True, True)]


def test_a_read_only_redis_is_told_of_once_and_a_changed_one_once_more(tmp_path, watched):
    with RedisServer(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as admin:
        registry, told = watched(server.url)
        registry.publish("masks", "a", b"one")
        admin.replicaof("127.0.0.1", 1)
        eventually(lambda: told)
        assert registry.health().away is None and "is a replica" in registry.health().unwritable
        began = time.monotonic()
        with pytest.raises(Unavailable, match="is a replica"):
            registry.publish("masks", "a", b"two")
        assert time.monotonic() - began < 4
        assert registry.resolve("masks", "a").version == 1
        admin.replicaof("NO", "ONE")
        eventually(lambda: registry.health() == Health())
        server.stop()
        eventually(lambda: registry.health().away)
        assert "127.0.0.1" not in registry.health().away
        server.start()
        eventually(lambda: registry.health() == Health(), within_s=10)
        assert [(health.away is None, health.unwritable is None) for health in told] == [
            (True, False), (True, True), (False, False), (True, True),
        ]  # fmt: skip


def test_a_redis_that_hangs_is_known_to_hang_at_once(tmp_path, watched):
    with RedisServer(tmp_path / "redis") as server:
        registry, _ = watched(server.url)
        server.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: registry.health().away, within_s=10)
            began = time.monotonic()
            for _ in range(100):
                assert registry.health().away
            assert time.monotonic() - began < 1
        finally:
            server.process.send_signal(signal.SIGCONT)
        eventually(lambda: registry.health() == Health(), within_s=10)


def test_after_a_failover_behind_one_address_the_next_upload_goes_to_the_new_master(tmp_path, front, watched, open_at):
    with RedisServer(tmp_path / "new", "--shutdown-timeout", "0") as new, redis.Redis.from_url(new.url) as admin:
        registry, _ = watched(front.url)
        registry.publish("masks", "a", b"one")
        with redis.Redis(port=front.to) as before:
            before.config_set("repl-diskless-sync-delay", 0)
        admin.replicaof("127.0.0.1", front.to)
        eventually(lambda: admin.hexists(f"{PREFIX}masks", "a"), within_s=20)
        old, front.to = front.to, new.port
        admin.replicaof("NO", "ONE")
        with redis.Redis(port=old) as before:
            before.replicaof("127.0.0.1", new.port)  # old connections stay, on a replica now
            try:
                assert registry.publish("masks", "a", b"two").version.version == 2
                assert admin.hget(f"{PREFIX}last", "masks:a") == b"2"
                eventually(lambda: registry.health() == Health())
                open_at(new.url).publish("masks", "b", b"one")
                eventually(lambda: [entry.name for entry in registry.names("masks")] == ["a", "b"])
            finally:
                before.replicaof("NO", "ONE")
                new.stop(signal.SIGKILL)  # it would first finish the file that it began as a replica


def test_a_value_that_trickles_ends_with_the_deadline_and_holds_up_no_other(front, open_at):
    registry = open_at(front.url)
    slow, fast = (registry.publish("masks", name, os.urandom(2000)).version.digest for name in ("slow", "fast"))
    front.slow = slow.encode()
    ended = []

    def fetch():
        began = time.monotonic()
        with pytest.raises(TooLate), within(1.0):
            registry.blob(slow)
        ended.append(time.monotonic() - began)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert len(registry.blob(fast)) == 2000
    assert not ended
    for thread in threads:
        thread.join()
    assert len(ended) == 3 and max(ended) < 3
    front.slow = None
    assert len(registry.blob(slow)) == 2000


def test_many_names_come_in_pages_that_each_answer_soon(redis_server, fresh_redis, open_at, monkeypatch):
    url, n = fresh_redis(redis_server), 5000
    monkeypatch.setattr(follower, "NAMES_A_PAGE", 100)
    first = open_at(url)
    first.publish("masks", "m", b"one")
    with redis.Redis.from_url(url) as client:
        text = client.hget(f"{PREFIX}masks", "m")
        client.hset(f"{PREFIX}masks", mapping={f"m{i}": text for i in range(n)})

        def calls(command):
            return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]

        pages, wholes = calls("hscan"), calls("hgetall")
        registry = open_at(url)
        eventually(lambda: registry._table.loaded, within_s=60)
        assert len(registry.names("masks", 2 * n)) == n + 1
        assert calls("hscan") - pages >= n / 100 and calls("hgetall") == wholes


def test_after_a_flushall_no_number_is_given_out_again(redis_server, fresh_redis, open_at):
    url = fresh_redis(redis_server)
    registry, other = open_at(url), open_at(url)
    for data in (b"one", b"two", b"three"):
        registry.publish("masks", "a", data)
    epoch = registry.epoch()
    eventually(lambda: other.names("masks"))
    with redis.Redis.from_url(url) as client:
        client.flushall()
        eventually(lambda: registry.epoch() != epoch and client.hget(f"{PREFIX}last", "masks:a") == b"3", within_s=10)
    registry.close()
    other.close()
    late = open_at(url)  # knows nothing of before
    assert late.publish("masks", "a", b"four").version.version == 4


# A folder: held lock, leftovers, no room.


def test_an_upload_that_waits_for_the_folders_lock_ends_with_its_deadline(tmp_path, open_at):
    registry = open_at(str(tmp_path / "r"))
    registry.publish("masks", "a", b"one")
    with (tmp_path / "r" / FINGERPRINT[:16] / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for change in (
            lambda: registry.publish("masks", "a", b"two"),
            lambda: registry.delete("masks", "a"),
            lambda: registry.set_alias("masks", "a", "x", 1),
        ):
            began = time.monotonic()
            with pytest.raises(TooLate), within(0.2):
                change()
            assert time.monotonic() - began < 2
    assert registry.publish("masks", "a", b"two").version.version == 2


def test_a_start_sweeps_what_a_crash_left_and_spares_what_is_being_written(tmp_path, watched):
    folder = tmp_path / "r" / FINGERPRINT[:16]
    open_registry(tmp_path / "r", FINGERPRINT).close()
    left = [folder / "masks" / ".0a.tmp", folder / "blobs" / "sha256" / ".0b.tmp", folder / "servers" / ".0c.tmp"]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # somebody writes a blob
        watched(str(tmp_path / "r"))
        assert [path.exists() for path in left] == [False, True, True]
    watched(str(tmp_path / "r"))
    assert not any(path.exists() for path in left)


def test_a_folder_that_takes_no_file_is_up_and_not_writable(tmp_path, watched):
    registry, told = watched(str(tmp_path / "r"))
    servers = tmp_path / "r" / FINGERPRINT[:16] / "servers"
    servers.rename(servers.with_name("elsewhere"))
    eventually(lambda: told)
    assert registry.health().away is None and "cannot be written" in registry.health().unwritable
    assert str(tmp_path) not in registry.health().unwritable
    servers.with_name("elsewhere").rename(servers)
    eventually(lambda: registry.health() == Health())
    (tmp_path / "r").rename(tmp_path / "gone")
    eventually(lambda: registry.health().away)
    assert len(told) == 3 and str(tmp_path) not in str(told)


# Damage, in both.


@pytest.fixture
def damage_record(place):
    def damage(kind, name, text=b'{"last": 7, "curr'):
        if place.startswith("redis"):
            with redis.Redis.from_url(place) as client:
                client.hset(f"{PREFIX}{kind}", name, text)
        else:
            (Path(place) / FINGERPRINT[:16] / kind / f"{name}.json").write_bytes(text)

    return damage


def test_a_damaged_record_costs_its_own_name_alone(registry, open_again, damage_record, place):
    for name in "abc":
        registry.publish("masks", name, b"one")
    damage_record("masks", "b")
    other = open_again()
    assert [entry.name for entry in other.names("masks")] == ["a", "c"]
    with pytest.raises(NotFound):
        other.resolve("masks", "bb")
    for call in (lambda: other.resolve("masks", "b"), lambda: other.publish("masks", "b", b"two")):
        with pytest.raises(Unavailable) as said:
            call()
        assert place not in str(said.value)
    assert other.publish("masks", "a", b"two").version.version == 2
    other.delete("masks", "c")


def test_gc_check_finds_and_mends_and_no_number_is_given_out_again(registry, open_again, damage_record, place):
    for data in (b"one", b"two"):
        registry.publish("masks", "a", data)
    registry.publish("masks", "b", b"one")
    registry.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"one"), "b", 1)])
    assert registry.examine(mend=True) == []
    registry.close()
    damage_record("masks", "a")
    other = open_again()
    (found,) = other.examine(mend=False)
    assert found.what == "mask a" and "damaged" in found.wrong and not found.mended
    (mended,) = other.examine(mend=True)
    assert mended.mended
    eventually(lambda: other.examine(mend=False) == [])
    if not place.startswith("redis"):  # it keeps a copy of every record
        assert other.resolve("masks", "a@2").digest == digest_of(b"two")
    assert other.publish("masks", "a", b"three").version.version >= 3
    with pytest.raises(Conflict, match="is needed by: c"):
        other.delete("masks", "b")


def test_gc_check_names_files_that_are_missing_or_damaged(registry, place):
    digest = registry.publish("masks", "a", b"one").version.digest
    if place.startswith("redis"):
        with redis.Redis.from_url(place) as client:
            client.set(f"{PREFIX}blob:{digest}", b"other")
    else:
        path = Path(place) / FINGERPRINT[:16] / "blobs" / "sha256" / digest.removeprefix("sha256:")
        path.write_bytes(b"other")
    (found,) = registry.examine(mend=True)
    assert (found.what, found.mended) == (digest, False) and "upload the file again" in found.wrong


# Backup and restore.


def everything(registry):
    return [(kind, name, record.last, record.current, record.versions, record.aliases)
            for kind in ("masks", "cascades") for name, record in registry.records(kind)]  # fmt: skip


@pytest.fixture
def targets(tmp_path, redis_server):
    """Empty registries of both kinds."""
    with RedisServer(tmp_path / "target") as server:
        yield [str(tmp_path / "target-folder"), server.url]


def test_a_backup_brings_everything_back_in_either_backend(registry, place, tmp_path, targets):
    for data in (b"one", b"two", b"three"):
        registry.publish("masks", "a", data, vectors="ab" * 32)
    registry.publish("masks", "gone", b"gone")
    registry.delete("masks", "gone")
    registry.set_current("masks", "a", 2)
    registry.set_alias("masks", "a", "champion", 1)
    registry.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"one"), "a", 1)])
    archive = tmp_path / "r.tar"
    assert backbones_in(place) == [FINGERPRINT[:16]]
    write_archive(archive, backbones_in(place), lambda backbone: open_registry(place, backbone))
    for target in targets:
        for _ in range(2):  # again does nothing
            restore_archive(archive, lambda backbone, at=target: open_registry(at, backbone))
        restored = open_registry(target, FINGERPRINT)
        try:
            eventually(lambda one=restored: one.names("cascades"))
            assert everything(restored) == everything(registry)
            assert [restored.blob(digest_of(data)) for data in (b"one", b"three")] == [b"one", b"three"]
            assert restored.publish("masks", "gone", b"new").version.version == 2
            with pytest.raises(Conflict, match="is needed by: c"):
                restored.delete("masks", "a")
            restored.publish("masks", "a", b"four")
        finally:
            restored.close()
        with pytest.raises(InvalidArgument, match="mask a is in the registry"):
            restore_archive(archive, lambda backbone, at=target: open_registry(at, backbone))


def test_a_lost_redis_is_restored_whole_while_its_servers_run(redis_server, fresh_redis, open_at, tmp_path):
    url = fresh_redis(redis_server)
    server = open_at(url)
    for data in (b"one", b"two"):
        server.publish("masks", "a", data)
    server.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"one"), "a", 1)])
    archive = tmp_path / "r.tar"
    write_archive(archive, backbones_in(url), lambda backbone: open_registry(url, backbone))
    server.publish("masks", "a", b"three")  # after the backup: its number is the server's alone to know
    with redis.Redis.from_url(url) as client:
        client.flushall()
        eventually(lambda: client.hget(f"{PREFIX}last", "masks:a") == b"3", within_s=10)
    for _ in range(2):
        restore_archive(archive, lambda backbone: open_registry(url, backbone))
    eventually(lambda: server.names("masks") and server.names("cascades"))
    assert server.resolve("masks", "a").digest == digest_of(b"two") and server.blob(digest_of(b"one")) == b"one"
    with pytest.raises(Conflict, match="is needed by: c"):
        server.delete("masks", "a")
    assert server.publish("masks", "a", b"four").version.version == 4
    with pytest.raises(InvalidArgument, match="mask a is in the registry"):
        restore_archive(archive, lambda backbone: open_registry(url, backbone))


def test_an_archive_that_is_not_whole_is_refused_before_anything_is_put_in(registry, place, tmp_path, targets):
    registry.publish("masks", "a", b"one" * 1000)
    archive = tmp_path / "r.tar"
    write_archive(archive, backbones_in(place), lambda backbone: open_registry(place, backbone))
    whole = archive.read_bytes()
    at = whole.index(b"oneone")
    for broken in (b"", whole[: len(whole) // 2], whole[:at] + b"0" + whole[at + 1 :], b"x" * 2000):
        archive.write_bytes(broken)
        with pytest.raises(InvalidArchive):
            read_archive(archive)
        with pytest.raises(InvalidArchive):
            restore_archive(archive, lambda backbone: open_registry(targets[0], backbone))
        assert backbones_in(targets[0]) == []


def test_an_archive_that_is_not_there_is_named_as_such(tmp_path):
    with pytest.raises(InvalidArchive, match=r"there is no archive .*missing\.tar"):
        read_archive(tmp_path / "missing.tar")


def test_a_place_without_a_registry_of_the_backbone_is_refused_and_not_made(tmp_path, targets):
    for target in targets:
        with pytest.raises(NotFound, match="holds no registry of the backbone"):
            require_there(target, FINGERPRINT)
        assert backbones_in(target) == []
    assert not Path(targets[0]).exists()
