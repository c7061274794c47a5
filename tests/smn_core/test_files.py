"""A file is replaced whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from smn_core.errors import InvalidArgument
from smn_core.files import OTHER, read_bytes, replacing, require_writable, write_bytes


def test_a_file_is_replaced_in_one_step(tmp_path):
    """Readers see the old file until the new one is whole; nothing else stays in the folder."""
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, failure):
    """Whatever ends the writing, the old file stays and the temporary one goes."""
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")
    with pytest.raises(failure), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("named", [[], ["temporary"]])
def test_an_error_of_the_disk_names_the_file(tmp_path, named):
    """A write that finds no space names nothing by itself, or a name that is gone by then."""
    path = tmp_path / "x.bin"
    with pytest.raises(OSError, match="No space left") as raised, replacing(path) as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", *[str(temporary) for _ in named])
    assert raised.value.filename == str(path)


def test_a_new_file_has_the_rights_that_the_user_gives(tmp_path):
    """The umask counts, as for any file; a temporary file's own rights do not."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x.bin", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["no/x.bin", "file/x.bin", "folder"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, name):
    """A missing folder, a file as folder and a folder as file are InvalidArgument."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="cannot write"):
        write_bytes(tmp_path / name, b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_in_the_working_folder_needs_no_folder(tmp_path, monkeypatch):
    """A bare name is written where the user is."""
    monkeypatch.chdir(tmp_path)
    write_bytes(Path("x.bin"), b"x")
    write_bytes("y.bin", b"y")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "y.bin"]


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    require_writable(tmp_path / "new.smn")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.smn").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("folder.smn", "file/new.smn", "nowhere/new.smn"):
        with pytest.raises(InvalidArgument, match=f"--out {tmp_path / place}"):
            require_writable(tmp_path / place)
    with pytest.raises(InvalidArgument, match="cannot write into /proc"):
        require_writable("/proc/new.smn")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, kind):
    """To root a rename would put a file in the place of /dev/null itself."""
    place = tmp_path / "x.smn"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        os.mknod(place, stat.S_IFSOCK | 0o600)
    else:
        place.symlink_to("/dev/null")  # as /dev/stdout is one
    before = place.lstat()
    with pytest.raises(InvalidArgument, match=f"cannot write {place}: it is no regular file"):
        write_bytes(place, b"x")
    with pytest.raises(InvalidArgument, match=f"--out {place}: it is no regular file: give the name of a file"):
        require_writable(place)
    assert os.path.samestat(place.lstat(), before)


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "x.smn"
    link.symlink_to("disk/y.smn")
    require_writable(link)
    for data in (b"new", b"newer"):
        write_bytes(link, data)
        assert link.is_symlink() and (tmp_path / "disk/y.smn").read_bytes() == data
    assert [place.name for place in (tmp_path / "disk").iterdir()] == ["y.smn"]
    link.unlink()
    link.symlink_to("nowhere/y.smn")
    with pytest.raises(InvalidArgument, match="nowhere does not exist"):
        require_writable(link)


def test_only_a_regular_file_is_read(tmp_path):
    """A pipe is waited for without end, and a device never ends."""
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "file") == b"x"
    for place, reason in ((tmp_path / "pipe", OTHER), (Path("/dev/zero"), OTHER), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=reason) as raised:
            read_bytes(place)
        assert raised.value.filename == str(place)


def test_a_file_that_no_memory_takes_is_told_as_one(tmp_path, monkeypatch):
    class Large(io.FileIO):
        def read(self, _=-1):
            raise MemoryError

    (tmp_path / "x.smn").write_bytes(b"large")
    monkeypatch.setattr("smn_core.files.open_regular", Large)
    with pytest.raises(OSError, match="its 5 bytes are more than the memory takes") as raised:
        read_bytes(tmp_path / "x.smn")
    assert raised.value.filename == str(tmp_path / "x.smn")
