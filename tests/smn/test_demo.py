"""`smn demo`: what its table says, and what is served and opened at its end; with fewer steps than a user's."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest

from smn.demo import EXPLAINED, compare, notes_of, show, someone_looks
from training import demo

BROWSER = """#!/bin/sh
echo "$1" > {opened}
"""


def row(domain, through, knn, linear):
    return {"domain": domain, "through": through, "knn": knn, "linear": linear, "images": 500}


SCORES = [
    row("inverted", None, 0.8, 0.9),
    row("inverted", "inverted", 0.9, 0.95),
    row("inverted", "noisy", 0.81, 0.89),
    row("noisy", None, 0.8, 0.9),
    row("noisy", "inverted", 0.7, 0.85),
    row("noisy", "noisy", 0.8, 0.9),
]


def test_a_row_says_in_digits_whether_a_mask_helps(capsys):
    assert compare(SCORES[1], SCORES[0]) == ("better: kNN +50 digits, probe +25 digits", [])
    assert compare(SCORES[2], SCORES[0]) == ("better and worse: kNN +5 digits, probe -5 digits", ["probe"])
    assert compare(SCORES[4], SCORES[3]) == ("worse: kNN -50 digits, probe -25 digits", ["kNN", "probe"])
    assert compare(SCORES[5], SCORES[3]) == ("the same", [])


def test_the_table_explains_itself_and_names_what_is_worse(capsys):
    show(SCORES)
    table, said = capsys.readouterr()
    lines = table.splitlines()
    assert len(lines) == 1 + len(SCORES) and re.split(r" {2,}", lines[0].strip()) == [
        "digits", "seen through", "kNN", "probe", "beside the untouched backbone",
    ]  # fmt: skip
    assert EXPLAINED.format(images=500) in said
    harmed = "noisy digits through mask inverted, by kNN and by probe"
    assert f"Worse than the untouched backbone: inverted digits through mask noisy, by probe; {harmed}." in said


def test_nothing_is_called_worse_where_nothing_is(capsys):
    show(SCORES[:2])
    assert "Worse" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("terminal", "screen", "platform", "looks"),
    [
        (True, ":0", "linux", True),
        (True, "", "darwin", True),
        (True, "", "linux", False),
        (False, ":0", "linux", False),
    ],
)
def test_a_browser_is_for_somebody_at_a_screen(terminal, screen, platform, looks):
    assert someone_looks(terminal, screen, platform) is looks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the demonstration keeps, after a few steps of each training."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "BACKBONE", replace(demo.BACKBONE, steps=4))
        patch.setattr(demo, "MASKS", replace(demo.MASKS, steps=3, head_steps=1, lr=0.05))
        said = []
        made = demo.prepare(folder, said.append)
        again = demo.prepare(folder, pytest.fail)
    assert again == made and len(said) == 4
    kept = json.loads((folder / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps({**kept, "recipe": demo.recipe()}))
    return folder


def test_every_kind_of_digits_is_measured_through_every_mask_and_without_one(folder):
    scores = json.loads((folder / "demo.json").read_text())["scores"]
    assert [(one["domain"], one["through"]) for one in scores] == [
        (domain, through) for domain in demo.DOMAINS for through in (None, *demo.DOMAINS)
    ]
    assert all(0 <= one[key] <= 1 and one["images"] == 497 for one in scores for key in ("knn", "linear"))


def test_it_ends_with_the_console_open_on_the_digits_and_ctrl_c_ends_it(folder, tmp_path):
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(BROWSER.format(opened=opened))
    browser.chmod(0o755)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    environment = {**plain, "OMP_NUM_THREADS": "1", "DISPLAY": ":99", "BROWSER": f"{browser} %s"}
    command = [sys.executable, "-m", "smn", "demo", "--port", "0", "--folder", str(folder)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    told = ""
    try:
        while "/embed?mask=inverted" not in told:
            told += os.read(ours, 4096).decode()
        page = re.search(r"serving, stop with ctrl-C; opening (http://127\.0\.0\.1:\d+/)#/explore", told)
        assert page is not None
        gallery, mask, html = (
            urllib.request.urlopen(page[1] + path, timeout=30).read() for path in ("gallery", "masks/noisy", "")
        )
        assert {one["label"] for one in json.loads(gallery)["data"]} == set(map(str, range(10)))
        assert json.loads(gallery)["total"] == 160 and b"<!doctype html>" in html.lower()
        scores = json.loads((folder / "demo.json").read_text())["scores"]
        assert json.loads(mask)["notes"] == {"1": notes_of(scores, "noisy")}
        process.send_signal(signal.SIGINT)
        while True:
            try:
                told += os.read(ours, 4096).decode()
            except OSError:  # the terminal's other side is closed
                break
        assert process.wait(60) == 0 and "Traceback" not in told
        assert opened.read_text().strip() == f"{page[1]}#/explore"
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_port_that_is_taken_is_said_before_anything_is_learned(run, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, said = run("demo", "--port", port, "--folder", tmp_path / "none")
    assert code == 2 and out == "" and f"port {port} of 127.0.0.1 is in use" in said
    assert not (tmp_path / "none").exists()
