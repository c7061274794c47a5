"""What the Redis registry promises besides: it outlives Redis, misses no change, keeps to its keys."""

import asyncio
import contextlib
import signal
import ssl
import subprocess
import sys
import threading
import time

import pytest
import redis
from registry_helpers import FINGERPRINT, ROOT, eventually

from benchmarks.redis_server import RedisServer, executable, free_port
from service.registry.open import open_registry
from service.registry.redis import RedisRegistry
from smn_core.errors import InvalidArgument, NotFound, Unavailable
from smn_core.tensorfile import digest_of

PREFIX = f"smn:{{{FINGERPRINT[:16]}}}:"


@pytest.fixture
def place(redis_server, fresh_redis):
    return fresh_redis(redis_server)


@pytest.fixture
def server(tmp_path):
    """A server of this test's own, to be stopped and started."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def client(place):
    with redis.Redis.from_url(place) as client:
        yield client


@contextlib.contextmanager
def tls_in_front_of(port, folder):
    """A TLS end on a port of its own that passes on to `port`, and its certificate for localhost; any redis will do."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", *made, *named, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    writers = []

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader, writer):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, to_writer))
        await asyncio.gather(pass_on(reader, to_writer), pass_on(to_reader, writer))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    starting = asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    relay = asyncio.run_coroutine_threadsafe(starting, loop).result(10)

    async def stop():
        relay.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    try:
        yield relay.sockets[0].getsockname()[1], certificate
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def digest_at(registry, name):
    try:
        return registry.resolve("masks", name).digest
    except NotFound:
        return None


def seconds(call, raises):
    start = time.monotonic()
    with pytest.raises(raises):
        call()
    return time.monotonic() - start


def test_every_key_has_the_hash_tag_of_the_backbone(registry, client):
    registry.publish("masks", "a", b"a")
    registry.publish("cascades", "c", b"c", needs=[digest_of(b"a")])
    keys = {key.decode() for key in client.scan_iter()}
    assert {key.removeprefix(PREFIX) for key in keys} == {
        "masks", "cascades", "last", "refs", "blobs", "changed", "changes", "epoch",
        f"blob:{digest_of(b'a')}", f"blob:{digest_of(b'c')}",
    }  # fmt: skip
    assert all(key.startswith(PREFIX) for key in keys)


def test_deleting_and_collecting_everything_leaves_only_numbers(registry, client):
    registry.publish("masks", "a", b"a")
    registry.publish("masks", "a", b"b")
    registry.publish("cascades", "c", b"c", needs=[digest_of(b"a"), digest_of(b"b")])
    registry.delete("cascades", "c")
    registry.delete("masks", "a")
    registry.collect(0)
    assert {key.decode().removeprefix(PREFIX) for key in client.scan_iter()} == {
        "last", "changed", "changes", "epoch",
    }  # fmt: skip


def test_without_redis_it_still_resolves_and_the_rest_fails_fast(server, open_again):
    registry = open_again(at=server.url)
    registry.publish("masks", "cats", b"one")
    server.stop()
    assert seconds(registry.check, Unavailable) < 1.5
    assert seconds(lambda: registry.publish("masks", "cats", b"two"), Unavailable) < 1.5
    assert seconds(lambda: registry.blob(digest_of(b"one")), Unavailable) < 1.5
    assert seconds(lambda: registry.delete("masks", "cats"), Unavailable) < 1.5
    assert registry.resolve("masks", "cats").digest == digest_of(b"one")
    assert [entry.name for entry in registry.names("masks")] == ["cats"]
    assert digest_at(registry, "dogs") is None


def test_a_redis_that_hangs_costs_its_timeout_once_and_not_every_caller(server, open_again):
    registry = open_again(at=server.url)
    digest = registry.publish("masks", "cats", b"one").version.digest
    server.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: registry._follower.hangs, within_s=10)
        assert registry.resolve("masks", "cats").digest == digest
        for call in (lambda: registry.blob(digest), lambda: registry.publish("masks", "dogs", b"two")):
            assert seconds(call, Unavailable) < 1
    finally:
        server.process.send_signal(signal.SIGCONT)
    eventually(lambda: not _raises(lambda: registry.publish("masks", "dogs", b"two")), within_s=10)
    assert registry.blob(digest) == b"one"


def test_after_a_restart_everything_is_there_and_changes_are_followed_again(server, open_again):
    registry, other = open_again(at=server.url), open_again(at=server.url)
    registry.publish("masks", "cats", b"one")
    registry.publish("masks", "cats", b"two")
    server.restart()
    registry.check()
    assert registry.blob(digest_of(b"one")) == b"one"
    assert [v.version for v in registry.entry("masks", "cats").versions] == [1, 2]
    registry.publish("masks", "cats", b"three")
    assert digest_at(registry, "cats") == digest_of(b"three")
    eventually(lambda: digest_at(other, "cats") == digest_of(b"three"))
    registry.publish("masks", "dogs", b"four")
    eventually(lambda: digest_at(other, "dogs") == digest_of(b"four"))


def test_what_changed_while_an_instance_was_cut_off_is_seen_when_it_is_back(place, client, registry, open_again):
    other = open_again()
    registry.publish("masks", "cats", b"one")
    eventually(lambda: digest_at(other, "cats"))
    with client.pipeline(transaction=True) as cut:  # the blocked followers' connections die
        cut.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        cut.execute()
    registry.publish("masks", "cats", b"two")
    registry.delete("masks", "cats", 1)
    eventually(lambda: other.entry("masks", "cats") == registry.entry("masks", "cats"))


def test_after_a_crash_that_lost_changes_it_forgets_them(tmp_path, open_again):
    with RedisServer(tmp_path / "redis", "--appendfsync", "no") as server:
        registry = open_again(at=server.url)
        registry.publish("masks", "cats", b"one")
        kept = eventually(lambda: server.append_only_file().read_bytes())
        registry.publish("masks", "cats", b"two")
        registry.publish("masks", "dogs", b"two")
        server.stop(signal.SIGKILL)
        server.append_only_file().write_bytes(kept)
        server.start()
        eventually(lambda: digest_at(registry, "cats") == digest_of(b"one") and digest_at(registry, "dogs") is None)
        assert (
            registry.publish("masks", "cats", b"three").version.version == 3
        )  # a second version 2 would be another file


def test_a_follower_that_missed_trimmed_changes_reads_everything_again(place, client, registry, start_peers):
    (peer,) = start_peers()
    registry.publish("masks", "a", b"0")
    assert peer.ask("await", "a", digest_of(b"0"))["ok"]
    for kept in (1, 0):  # with a later change in the stream, and with none
        peer.process.send_signal(signal.SIGSTOP)
        for name in "abcd":
            registry.publish("masks", name, f"{name}{kept}".encode())
        client.xtrim(f"{PREFIX}changes", maxlen=kept, approximate=False)
        peer.process.send_signal(signal.SIGCONT)
        for name in "abcd":
            digest = digest_of(f"{name}{kept}".encode())
            assert peer.ask("await", name, digest)["ok"] == digest


def test_the_stream_of_changes_stays_short(registry, client):
    registry.publish("masks", "a", b"0")
    registry.publish("masks", "a", b"1")
    key = f"{PREFIX}changes"
    with client.pipeline(transaction=False) as pipe:
        last = int(client.get(f"{PREFIX}changed"))
        for i in range(1, 10_400):
            pipe.xadd(key, {"after": last, "kind": "masks", "name": "a"}, id=f"{last}-{i}")
        pipe.execute()
    registry.set_current("masks", "a", 1)
    assert client.xlen(key) < 10_300


def test_flushall_makes_the_names_vanish_and_new_ones_are_seen(place, client, registry, open_again):
    other = open_again()
    registry.publish("masks", "cats", b"one")
    eventually(lambda: digest_at(other, "cats"))
    client.flushall()
    eventually(lambda: not registry.names("masks") and not other.names("masks"))
    registry.publish("masks", "dogs", b"two")
    eventually(lambda: digest_at(other, "dogs") == digest_of(b"two"))
    client.flushall()
    registry.publish("masks", "birds", b"three")
    eventually(lambda: [entry.name for entry in other.names("masks")] == ["birds"], within_s=0.5)
    eventually(lambda: [entry.name for entry in registry.names("masks")] == ["birds"], within_s=0.5)


def test_a_redis_that_comes_later_is_waited_for(tmp_path, open_again):
    server = RedisServer(tmp_path / "redis")
    registry = open_again(at=server.url)
    for call in (registry.check, lambda: registry.resolve("masks", "cats"), lambda: registry.names("masks")):
        assert seconds(call, Unavailable) < 1.5
    with server:
        eventually(lambda: not _raises(registry.check))
        assert registry.names("masks") == []


def _raises(call):
    try:
        call()
    except Unavailable:
        return True
    return False


def test_a_full_redis_refuses_uploads_with_the_reason_and_still_deletes(tmp_path, open_again):
    with RedisServer(tmp_path / "redis", "--maxmemory", "8mb") as server:
        registry = open_again(at=server.url)
        registry.publish("masks", "cats", b"one")
        with pytest.raises(Unavailable, match="memory is full"):
            for i in range(16):
                registry.publish("masks", f"big{i}", bytes([i]) * 2**20)
        registry.check()
        names = [entry.name for entry in registry.names("masks")]
        assert names[-1] == "cats"
        registry.delete("masks", names[0])
        registry.delete("masks", names[1])
        assert len(registry.collect(0)) >= 2
        assert registry.publish("masks", "cats", b"two").version.version == 2


def test_two_instances_start_from_one_crash_between_blob_and_name(registry, client):
    blob = b"half an upload"
    client.set(f"{PREFIX}blob:{digest_of(blob)}", blob)
    client.zadd(f"{PREFIX}blobs", {digest_of(blob): 0})
    assert registry.names("masks") == []
    assert registry.collect() == [digest_of(blob)]


def test_closing_ends_the_thread_quickly_with_or_without_redis(server):
    for stopped in (False, True):
        before = set(threading.enumerate())  # other tests of this process may have left some
        registry = RedisRegistry(server.url, FINGERPRINT)
        followers = {t for t in threading.enumerate() if t.name == "smn-registry-follower"} - before
        assert len(followers) == 1
        if stopped:
            server.stop()
            eventually(lambda registry=registry: _raises(registry.check))
        start = time.monotonic()
        registry.close()
        assert time.monotonic() - start < 0.5
        assert not [t for t in followers if t.is_alive()]
        with pytest.raises(Unavailable, match="closed"):
            registry.blob(digest_of(b""))


def test_a_lost_redis_costs_no_busy_loop(server, open_again):
    open_again(at=server.url)
    server.stop()
    before, start = time.process_time(), time.monotonic()
    threading.Event().wait(1.0)
    assert time.process_time() - before < 0.2 * (time.monotonic() - start)


def test_passwords_stay_out_of_messages(server, open_again):
    registry = open_again(at=f"redis://user:geheim@127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable) as error:
        registry.check()
    assert "geheim" not in str(error.value)
    assert "127.0.0.1" not in str(error.value) and "connecting to Redis" in str(error.value)


def test_a_wrong_password_says_so(tmp_path, open_again):
    with RedisServer(tmp_path / "redis") as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("requirepass", "right")
        with pytest.raises(Unavailable, match=r"(?i)auth|password"):
            open_again(at=server.url).check()
        with_password = server.url.replace("//", "//:right@")
        open_again(at=with_password).check()


def test_a_unix_socket_does_as_well(tmp_path, open_again):
    with RedisServer(tmp_path / "redis", "--unixsocket", str(tmp_path / "s")):
        registry = open_again(at=f"unix://{tmp_path / 's'}?db=0")
        registry.publish("masks", "cats", b"one")
        assert registry.blob(digest_of(b"one")) == b"one"


def test_tls_does_as_well_and_wants_a_certificate_it_can_check(tmp_path, server, open_again):
    with tls_in_front_of(server.port, tmp_path) as (port, certificate):
        url = f"rediss://localhost:{port}/0"
        registry = open_again(at=f"{url}?ssl_ca_certs={certificate}")
        registry.publish("masks", "cats", b"one")
        assert registry.blob(digest_of(b"one")) == b"one"
        assert digest_at(open_again(at=server.url), "cats") == digest_of(b"one")
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            open_again(at=url).check()


def test_a_cluster_does_as_well(tmp_path, open_again):
    with RedisServer(tmp_path / "redis", "--cluster-enabled", "yes") as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"))
        url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
        registry, other = open_again(at=url), open_again(at=url)
        registry.publish("masks", "cats", b"one")
        eventually(lambda: digest_at(other, "cats") == digest_of(b"one"))
        assert other.blob(digest_of(b"one")) == b"one"
        server.restart()
        eventually(lambda: not _raises(lambda: other.publish("masks", "cats", b"two")))
        eventually(lambda: digest_at(registry, "cats") == digest_of(b"two"))
        registry.delete("masks", "cats")
        assert sorted(registry.collect(0)) == sorted([digest_of(b"one"), digest_of(b"two")])


def test_a_sentinel_names_the_server(tmp_path, server, open_again):
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor masks 127.0.0.1 {server.port} 1\n")
    with (tmp_path / "sentinel.log").open("wb") as log:
        sentinel = subprocess.Popen([executable(), str(config), "--sentinel"], stdout=log, stderr=log)
    try:
        registry = open_again(at=f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/masks")
        eventually(lambda: not _raises(registry.check))
        registry.publish("masks", "cats", b"one")
        assert registry.blob(digest_of(b"one")) == b"one"
    finally:
        sentinel.terminate()
        sentinel.wait(10)


@pytest.mark.parametrize("url", ["redis+sentinel://host:1", "redis+sentinel:///masks", "redis://host:port/0"])
def test_a_redis_url_that_cannot_be_read_is_refused(url):
    with pytest.raises(InvalidArgument, match="is not a Redis URL"):
        open_registry(url, FINGERPRINT)


@pytest.mark.parametrize("place", ["http://host/", "s3://bucket", "redis+tcp://host"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(place):
    with pytest.raises(InvalidArgument, match=r"redis://.*redis\+sentinel://"):
        open_registry(place, FINGERPRINT)


def test_a_directory_registry_does_not_import_redis(tmp_path):
    code = f"import sys; from service.registry.open import open_registry as o; o({str(tmp_path)!r}, '0' * 64).check()"
    checked = [sys.executable, "-c", f"{code}; assert 'redis' not in sys.modules"]
    subprocess.run(checked, check=True, cwd=ROOT)
