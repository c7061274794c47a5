"""Record format 2: what it keeps, how format 1 is read, and servers of both formats on one registry.

The older server is the registry's own code of commit ecf3d5c (tests/golden/before/registry_1.zip), really run.
"""

import json
import sys

import pytest
import redis
from registry_helpers import FINGERPRINT, ROOT, eventually

from service.registry.base import Hold, Version
from service.registry.record import Record, parse_record
from service.registry.watch import Health
from smn_core.errors import Conflict, NotFound
from smn_core.tensorfile import digest_of

VECTORS = "ab" * 32


@pytest.fixture
def open_old(place, monkeypatch):
    """Another server on the same registry, of the version that knows format 1 alone."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/golden/before/registry_1.zip"))
    from registry_1.open import open_registry

    opened = []

    def open_one():
        opened.append(open_registry(place, FINGERPRINT))
        return opened[-1]

    yield open_one
    for registry in opened:
        registry.close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "registry_1"]:
        del sys.modules[name]


@pytest.fixture
def announce_old(place):
    """Let a server that reads format 1 at most say that it runs."""

    def announce():
        if place.startswith("redis"):
            with redis.Redis.from_url(place) as client:
                client.zadd(f"smn:{{{FINGERPRINT[:16]}}}:servers", {"1:old": 2**40})
        else:
            (ROOT / place / FINGERPRINT[:16] / "servers" / "old").write_text('{"format": 1}')

    return announce


def as_said(registry, kind="masks"):
    """What any version of the code says of all names."""
    return [
        (e.name, e.current.version, [(v.version, v.digest, v.bytes, v.uploaded) for v in e.versions])
        for e in registry.names(kind)
    ]


def filled(registry):
    registry.publish("masks", "a", b"one", vectors=VECTORS)
    registry.publish("masks", "a", b"two", vectors="cd" * 32, parent=digest_of(b"one"))
    registry.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"one"), "a", 1)])
    registry.set_alias("masks", "a", "champion", 1)


def test_what_an_upload_brings_along_is_kept_with_its_version(registry, open_again):
    filled(registry)
    for one in (registry, open_again()):
        first, second = one.entry("masks", "a").versions
        assert (first.vectors, first.parent) == (VECTORS, None)
        assert (second.vectors, second.parent) == ("cd" * 32, digest_of(b"one"))
        assert one.entry("masks", "a").aliases == {"champion": 1}
        (held,) = one.entry("cascades", "c").versions
        assert held.holds == (Hold(digest_of(b"one"), "a", 1),) and held.needs == (digest_of(b"one"),)


def test_a_record_comes_back_from_its_text_in_both_forms():
    version = Version(3, digest_of(b"x"), 9, "2026-11-28T00:00:00Z", VECTORS, None, (Hold(digest_of(b"y"), "m", 2),),
                      (digest_of(b"y"),))  # fmt: skip
    record = Record(4, 3, (version,), {"champion": 3}, "0" * 16)
    assert parse_record(record.to_json()) == record
    assert parse_record(record.to_redis().encode(), last=4) == record
    assert json.loads(record.to_json())["format"] == 2


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"{}", b'{"last": 1, "current": 1, "versions": []}', 
     b'{"last":1,"current":1,"versions":[1]}',
     b'{"format": 3, "last": 0, "current": 0, "versions": []}', b'{"last": "1", "current": 0, "versions": []}',
     b'{"last":1,"current":1,"versions":[{"version":1,"digest":"x","bytes":1,"uploaded":"","needs":[]}]}'],
)  # fmt: skip
def test_a_record_that_is_none_is_damaged(text):
    with pytest.raises(ValueError):
        parse_record(text)


def test_a_server_of_format_1_reads_what_this_one_writes(registry, open_old):
    filled(registry)
    old = open_old()
    for kind in ("masks", "cascades"):
        assert as_said(old, kind) == as_said(registry, kind)
    assert old.blob(digest_of(b"one")) == b"one"
    with pytest.raises(Exception, match="is needed by: c"):
        old.delete("masks", "a", 1)


def test_this_server_reads_what_one_of_format_1_wrote_and_its_ties_hold(registry, open_old):
    old = open_old()
    for data in (b"one", b"two"):
        old.publish("masks", "a", data)
    old.publish("masks", "b", b"one")
    old.publish("cascades", "c", b"cascade", needs=[digest_of(b"one")])
    eventually(lambda: as_said(registry, "cascades") == as_said(old, "cascades"))
    assert as_said(registry) == as_said(old)
    registry.delete("masks", "a", 1)  # b has the digest too
    with pytest.raises(Conflict, match="is needed by: c"):
        registry.delete("masks", "b")
    registry.set_alias("masks", "a", "champion", 2)
    assert registry.resolve("masks", "a@champion").version == 2


def test_a_rolling_upgrade_loses_no_version_whoever_writes(registry, open_old):
    old = open_old()
    filled(registry)
    eventually(lambda: as_said(old) == as_said(registry))
    old.publish("masks", "a", b"three")
    eventually(lambda: registry.entry("masks", "a").current.version == 3)
    registry.publish("masks", "a", b"four", vectors=VECTORS)
    eventually(lambda: as_said(old) == as_said(registry))
    old.set_current("masks", "a", 2)
    old.delete("cascades", "c")  # it knows nothing of what c holds by name
    eventually(lambda: not registry.names("cascades") and registry.entry("masks", "a").current.version == 2)
    if "champion" in registry.entry("masks", "a").aliases:  # in a folder, an older server's write drops aliases
        registry.delete_alias("masks", "a", "champion")
    registry.delete("masks", "a", 1)
    assert [v.version for v in registry.entry("masks", "a").versions] == [2, 3, 4]
    assert as_said(open_old()) == as_said(registry)


def test_while_a_server_says_that_it_reads_format_1_nothing_newer_is_written(registry, announce_old, open_again, place):
    announce_old()
    registry.publish("masks", "a", b"one", vectors=VECTORS)
    registry.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"one"), "a", 1)])
    with pytest.raises(Conflict, match="too old to read aliases"):
        registry.set_alias("masks", "a", "champion", 1)
    other = open_again()
    assert other.entry("masks", "a").current.vectors is None
    assert other.entry("cascades", "c").current.holds == ()
    with pytest.raises(Conflict, match="is needed by: c"):
        registry.delete("masks", "a")
    if place.startswith("redis"):
        with redis.Redis.from_url(place) as client:
            assert b"format" not in client.hget(f"smn:{{{FINGERPRINT[:16]}}}:masks", "a")
    else:
        assert "format" not in (ROOT / place / FINGERPRINT[:16] / "masks" / "a.json").read_text()


def test_a_server_that_runs_is_reckoned_with_until_it_closes(registry, open_again, place):
    other = open_again()
    other.watch(lambda _: None)
    assert other.health() == Health()

    def servers():
        if place.startswith("redis"):
            with redis.Redis.from_url(place) as client:
                return client.zcard(f"smn:{{{FINGERPRINT[:16]}}}:servers")
        return len([*(ROOT / place / FINGERPRINT[:16] / "servers").glob("[0-9a-f]*")])

    assert servers() == 1
    other.close()
    assert servers() == 0


def test_an_alias_means_a_version_until_it_is_moved_or_deleted(registry, open_again):
    for data in (b"one", b"two", b"three"):
        registry.publish("masks", "a", data)
    other = open_again()
    assert registry.set_alias("masks", "a", "champion", 1)
    assert registry.resolve("masks", "a@champion").version == 1
    assert not registry.set_alias("masks", "a", "champion", 2)
    assert not registry.set_alias("masks", "a", "champion", 2)
    eventually(lambda: other.entry("masks", "a").aliases == {"champion": 2})
    registry.set_current("masks", "a", 1)
    assert other.resolve("masks", "a@champion").digest == digest_of(b"two")
    with pytest.raises(Conflict, match=r"a@2 is a@champion"):
        registry.delete("masks", "a", 2)
    for call in (
        lambda: registry.resolve("masks", "a@challenger"),
        lambda: registry.set_alias("masks", "a", "x", 9),
        lambda: registry.set_alias("masks", "b", "x", 1),
        lambda: registry.delete_alias("masks", "a", "x"),
    ):
        with pytest.raises(NotFound):
            call()
    registry.delete_alias("masks", "a", "champion")
    registry.delete("masks", "a", 2)
    registry.set_alias("masks", "a", "champion", 3)
    registry.delete("masks", "a")
    registry.publish("masks", "a", b"four")
    assert registry.entry("masks", "a").aliases == {}
    eventually(lambda: other.names("masks") == registry.names("masks"))


def test_a_cascade_holds_the_version_that_it_names_and_no_other(registry):
    for name in ("a", "b"):
        registry.publish("masks", name, b"root")
        registry.publish("masks", name, b"newer")
    registry.publish("cascades", "c", b"cascade", holds=[Hold(digest_of(b"root"), "a", 1)])
    registry.delete("masks", "b", 1)
    registry.delete("masks", "b")
    with pytest.raises(Conflict, match="is needed by: c"):
        registry.delete("masks", "a", 1)
    registry.publish("masks", "b", b"root")  # another copy of the file does not let it go
    with pytest.raises(Conflict, match="is needed by: c"):
        registry.delete("masks", "a")
    registry.delete("cascades", "c")
    registry.delete("masks", "a", 1)


@pytest.mark.parametrize("hold", [("one", "a", 2), ("two", "a", 1), ("one", "b", 1)])
def test_a_cascade_cannot_hold_what_is_not_there(registry, hold):
    data, name, version = hold
    registry.publish("masks", "a", b"one")
    digest = digest_of(data.encode())
    with pytest.raises(Conflict, match=digest):
        registry.publish("cascades", "c", b"cascade", holds=[Hold(digest, name, version)])
    assert registry.names("cascades") == []


def test_another_instance_has_the_same_epoch_and_another_registry_has_another(registry, open_again):
    assert len(registry.epoch()) == 16
    assert open_again().epoch() == registry.epoch() != open_again("e" * 64).epoch()
