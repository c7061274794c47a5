"""The command itself: what it prints of names that a terminal or UTF-8 cannot take."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import smn


@pytest.fixture
def said(monkeypatch):
    """`smn.main()` with stdout and stderr as a terminal's, in strict UTF-8: exit code, and the bytes of both."""

    def ran(*arguments):
        streams = io.BytesIO(), io.BytesIO()
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, "utf-8", errors="strict"))
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
        sys.stdout.flush()
        sys.stderr.flush()
        return stopped.value.code, *(stream.getvalue() for stream in streams)

    return ran


def test_a_name_that_is_not_utf_8_ends_no_verb_with_a_traceback(said, tmp_path):
    code, out, err = said("adapt", f"{tmp_path}/no\udcff", "--out", tmp_path / "m.smn", "--backbone", "test_vit")
    assert code == 2 and b"no\\xff" in out and err.startswith(b"smn: error: ") and err.count(b"\n") == 1


def test_an_error_that_names_any_file_is_one_line_with_visible_escapes(said, tmp_path):
    code, out, err = said("embed", f"{tmp_path}/esc\x1b[31m\nline", "--out", tmp_path / "x.npy")
    assert (code, out) == (2, b"")
    assert err.endswith(b"\n") and err.count(b"\n") == 1 and b"/esc\\x1b[31m\\nline does not exist" in err


WORDS = [[], ["--help"], ["recipes"], ["recipes", "--json"]]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_whoever_stops_reading_ends_a_verb_without_a_word(words):
    """As behind `| head -1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "smn", *words], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_result_that_cannot_be_written_is_one_line(words):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-m", "smn", *words], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"smn: error: No space left on device\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["embed", "", "--out", "x.npy"], "an argument"),
        (["embed", ".", "--out="], "--out"),
        (["evaluate", "--data", ".", "--mask", ""], "--mask"),
    ],
)
def test_an_empty_argument_is_refused_and_never_means_the_folder_where_one_is(said, words, named):
    """A variable of the shell that is not set would have all that lies there embedded, or taken from an index."""
    code, out, err = said(*words)
    assert (code, out) == (2, b"")
    assert err.decode() == f"smn: error: {named} is empty: is a variable of the shell not set?\n"
