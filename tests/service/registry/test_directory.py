"""What the directory registry promises besides: no torn file, no stale answer, nothing outside its folder."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from registry_helpers import FINGERPRINT, ROOT, eventually

from service.registry.directory import DirectoryRegistry
from service.registry.open import open_registry
from smn_core.errors import InvalidArgument, NotFound, Unavailable
from smn_core.tensorfile import digest_of


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "registry")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "registry" / FINGERPRINT[:16]


def test_a_file_url_and_a_path_open_the_same_registry(tmp_path):
    folder = tmp_path / "with space"
    open_registry(f"file://{tmp_path}/with%20space", FINGERPRINT).publish("masks", "cats", b"one")
    for place in (folder, str(folder), f"file:{tmp_path}/with%20space"):
        assert open_registry(place, FINGERPRINT).resolve("masks", "cats").version == 1
    with pytest.raises(InvalidArgument, match="another machine"):
        open_registry("file://elsewhere/folder", FINGERPRINT)


def test_changes_within_one_tick_of_the_clock_are_all_seen(registry, open_again):
    other = open_again()
    for i in range(25):  # each record has the same size, and inodes come back
        digest = registry.publish("masks", "cats", f"{i % 2}".encode()).version.digest
        assert other.resolve("masks", "cats").digest == digest
        for version in (1, i + 1):
            registry.set_current("masks", "cats", version)
            assert other.resolve("masks", "cats").version == version


def test_a_clock_that_was_set_back_makes_nobody_stale(registry, open_again, folder):
    other, record = open_again(), folder / "masks" / "cats.json"
    registry.publish("masks", "cats", b"one")
    os.utime(record, ns=(2**62, 2**62))
    assert other.resolve("masks", "cats").version == 1
    registry.publish("masks", "cats", b"two")
    assert record.stat().st_mtime_ns > 2**62
    assert other.resolve("masks", "cats").version == 2


def test_reading_waits_for_no_lock(registry, folder):
    registry.publish("masks", "cats", b"one")
    hold = "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    code = f"import fcntl; file = open({str(folder / 'lock')!r}); {hold}"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout.readline() == b"held\n"
        assert registry.resolve("masks", "cats").version == 1
        assert registry.blob(digest_of(b"one")) == b"one"
        upload = pool.submit(registry.publish, "masks", "cats", b"two")
        assert registry.names("masks")[0].current.version == 1
        assert not upload.done()
        holder.kill()  # the lock goes with its process
        assert upload.result(10).version.version == 2


def test_a_process_killed_in_the_middle_of_uploads_leaves_a_sound_registry(registry, folder, place):
    code = (
        "import os; from service.registry.open import open_registry\n"
        f"registry, i = open_registry({place!r}, {FINGERPRINT!r}), 0\n"
        "while True: registry.publish('masks', 'cats', b'%d' % i + bytes(200_000)); i += 1"
    )
    for at_least in (1, 5):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        eventually(lambda n=at_least: registry.names("masks") and registry.names("masks")[0].current.version > n, 20)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        entry = registry.entry("masks", "cats")
        assert [version.version for version in entry.versions] == list(range(1, entry.current.version + 1))
        for version in entry.versions:
            assert len(registry.blob(version.digest)) == version.bytes
        registry.collect(0)
        assert not [*folder.rglob(".*")]
        assert {f"sha256:{path.name}" for path in (folder / "blobs" / "sha256").iterdir()} == {
            version.digest for version in entry.versions
        }


def test_collect_removes_files_left_half_written(registry, folder):
    registry.publish("masks", "cats", b"one")
    for left in (folder / "masks" / ".0a.tmp", folder / "blobs" / "sha256" / ".0b.tmp"):
        left.write_bytes(b"half")
    assert [entry.name for entry in registry.names("masks")] == ["cats"]
    assert registry.collect() == []
    assert not [*folder.rglob("*.tmp")]


def test_a_blob_without_a_name_is_only_an_unreferenced_blob(registry, folder):
    blob = folder / "blobs" / "sha256" / digest_of(b"half").removeprefix("sha256:")
    blob.write_bytes(b"half")
    assert registry.names("masks") == []
    assert registry.collect() == []
    os.utime(blob, (0, 0))
    assert registry.collect() == [digest_of(b"half")]


def test_a_registry_whose_folder_went_away_is_unavailable_not_empty(registry, folder):
    registry.publish("masks", "cats", b"one")
    folder.rename(folder.with_name("elsewhere"))
    for call in (
        registry.check,
        lambda: registry.resolve("masks", "cats"),
        lambda: registry.resolve("masks", "dogs"),
        lambda: registry.names("masks"),
        lambda: registry.blob(digest_of(b"one")),
        lambda: registry.publish("masks", "cats", b"two"),
        registry.collect,
    ):
        with pytest.raises(Unavailable):
            call()
    folder.with_name("elsewhere").rename(folder)
    assert registry.resolve("masks", "cats").version == 1


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidArgument, match="is not a folder"):
            DirectoryRegistry(place, FINGERPRINT)


def test_files_are_as_readable_as_the_umask_says_and_json_for_people(registry, folder):
    mask = os.umask(0o027)
    try:
        registry.publish("masks", "cats", b"one")
    finally:
        os.umask(mask)
    record = folder / "masks" / "cats.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o640
    assert json.loads(record.read_text())["versions"][0]["digest"] == digest_of(b"one")


def test_resolving_a_name_among_many_takes_well_under_a_millisecond(registry, folder):
    registry.publish("masks", "cats", b"one")
    text = (folder / "masks" / "cats.json").read_text()
    for i in range(500):
        (folder / "masks" / f"m{i}.json").write_text(text)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        registry.resolve("masks", "cats")
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 1e-3
    with pytest.raises(NotFound):
        registry.resolve("masks", "unknown")
