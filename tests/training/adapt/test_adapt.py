"""`smn adapt`: from a folder of photos to a mask that was judged, and what is left where it does not get there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from smn_core.errors import InvalidArgument, InvalidData
from smn_core.maskfile import read_mask
from smn_core.verdict import ANSWERS, CANNOT_TELL
from tests.training.adapt.photos import Ticking, save_photos
from tests.training.builders import World, digits
from training.adapt.adapt import Ended, Request, adapt, name_output, naming_full_disk
from training.evaluation.command import open_seen_and_unseen

RECIPES = (("bold", "small"),)
N_PHOTOS = 60


def request(world: World, data: Path, out: Path, **more: object) -> Request:
    """A minute on a clock of a fifth of a second a look."""
    base = Request(world.spec(), str(data), out, 1.0, workers=0, threads=1, command=["smn", "adapt"], recipes=RECIPES)
    return replace(base, **more)  # type: ignore[arg-type]


def run(asked: Request) -> tuple[Ended, list[str]]:
    told: list[str] = []
    return adapt(asked, told.append, Ticking(0.2)), told


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in folders, among other files, one of them broken."""
    folder = save_photos(tmp_path_factory.mktemp("photos") / "deep", N_PHOTOS).parent
    (folder / "notes.txt").write_text("text")
    (folder / "broken\udcff.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def finished(world: World, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Ended, list[str]]:
    asked = request(world, photos, tmp_path_factory.mktemp("out") / "mine.smn")
    return asked, *run(asked)


def test_a_mask_comes_out_with_its_verdict_inside(finished, world: World):
    asked, ended, told = finished
    mask = read_mask(asked.out, world.backbone().layout)
    verdict = json.loads(mask.metadata["metrics"])["verdict"]
    assert verdict["answer"] == ended.answer
    assert ended.answer in ANSWERS
    assert told[-1] == f"verdict: {ended.answer}"
    assert told[-2].startswith("next: smn ")
    assert mask.preprocess is not None
    if ended.answer == "leave it":
        assert mask.n_off == 0
        assert mask.affine is None


def test_the_table_compares_with_every_control(finished):
    _, _, told = finished
    rows = [line.split("  ")[0] for line in told]
    assert {"frozen", "frozen + map", "mask", "mask + map", "random flips"} <= set(rows)


def test_the_folder_has_a_page_with_pictures(finished):
    asked, ended, _ = finished
    page = (asked.folder / "README.md").read_text("utf-8")
    assert f"**verdict: {ended.answer}**" in page
    assert "60 of 61 images" in page
    assert "1 .txt" in page
    assert "broken\\xff.png" in page
    for name in ("neighbours.png", "density.png"):
        assert f"({name})" in page
        with Image.open(asked.folder / name) as picture:
            assert min(picture.size) > 100
    assert all((asked.folder / link.split(")")[0]).exists() for link in page.split("](")[1:])


def test_a_later_verdict_judges_by_the_images_that_were_kept_back(finished):
    """`smn verdict` finds them by the run's note, for the file and for what lies in its folder."""
    asked, _, told = finished
    said = next(line for line in told if "kept unseen" in line)
    for file in (asked.out, asked.folder / "mask.smn"):
        seen, unseen = open_seen_and_unseen(asked.data, [read_mask(file)], [file])
        assert unseen is not None
        assert f"{len(unseen.names)} kept unseen" in said
        assert not set(seen.names) & set(unseen.names)


def test_what_is_finished_is_not_replaced_unasked(finished):
    asked, _, _ = finished
    with pytest.raises(InvalidArgument, match="exists: give --out another name, or say --overwrite"):
        run(asked)


def test_ctrl_c_keeps_the_best_and_the_same_command_goes_on(world: World, photos: Path, tmp_path: Path):
    asked = request(world, photos, tmp_path / "mine.smn")
    told: list[str] = []

    def interrupt(line: str) -> None:
        told.append(line)
        if line.startswith("fitting the map"):
            os.kill(os.getpid(), signal.SIGINT)

    ended = adapt(asked, interrupt, Ticking(0.2))
    assert ended.interrupted
    mask = read_mask(asked.out, world.backbone().layout)
    assert (mask.n_off, mask.affine) == (0, None)
    assert json.loads(mask.metadata["metrics"])["verdict"]["answer"] == CANNOT_TELL
    best = next(line for line in told if "the best so far is" in line)
    assert Path(best.split("the best so far is ")[1].split(",")[0]).exists()
    assert told[-2:] == ["the same command goes on from what is finished", "verdict: cannot tell"]
    ended, told = run(asked)
    assert not ended.interrupted
    assert any("finished already" in line for line in told)
    assert not any(line.startswith("bold:") and "going on" not in line for line in told)


def test_sigterm_leaves_a_file_that_changes_nothing_and_says_how_to_go_on(
    world: World, photos: Path, tmp_path: Path, smn_run, monkeypatch
):
    def terminate(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("training.adapt.adapt._adapt", terminate)
    before = signal.getsignal(signal.SIGTERM)
    ran = smn_run("adapt", photos, "--out", tmp_path / "mine.smn", *world.flags())
    assert ran.code == 143
    assert ran.out.splitlines()[-2:] == ["the same command goes on from what is finished", "verdict: cannot tell"]
    assert read_mask(tmp_path / "mine.smn").n_off == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_backbone_is_there_is_said_as_a_later_one(
    number, world: World, photos: Path, tmp_path: Path, smn_run, monkeypatch
):
    """No mask can be written yet: the last lines say so, how to go on, and the verdict."""
    monkeypatch.setattr("training.adapt.adapt.look", lambda *_: os.kill(os.getpid(), number))
    ran = smn_run("adapt", photos, "--out", tmp_path / "mine.smn", *world.flags())
    assert ran.code == 128 + number
    assert ran.out.splitlines()[1:] == [
        "stopped: nothing was learned yet, and no mask was written",
        "the same command goes on from what is finished",
        "verdict: cannot tell",
    ]
    assert list(tmp_path.iterdir()) == []


def test_labels_are_handed_to_the_verdict(world: World, photos: Path, tmp_path: Path):
    found = digits()
    for label in (0, 1):
        folder = tmp_path / "labelled" / str(label)
        folder.mkdir(parents=True)
        for i in [i for i, y in enumerate(found["y_test"]) if y == label][:6]:
            Image.fromarray(found["x_test"][i]).save(folder / f"{i}.png")
    asked = request(world, photos, tmp_path / "mine.smn", labelled=tmp_path / "labelled", minutes=0.3)
    run(asked)
    verdict = json.loads(read_mask(asked.out, world.backbone().layout).metadata["metrics"])["verdict"]
    assert verdict["images"]["labelled"] == 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"out": Path("mine.txt")}, "a mask is written to a .smn file"),
        ({"out": Path("/nowhere/mine.smn")}, "the folder /nowhere does not exist"),
        ({"labelled": Path("/nowhere")}, "it has a folder for each class"),
        ({"data": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(change, says, world: World, photos: Path, tmp_path: Path):
    told: list[str] = []
    with pytest.raises((InvalidArgument, InvalidData), match=says):
        adapt(replace(request(world, photos, tmp_path / "mine.smn"), **change), told.append, Ticking(0.2))
    assert not told
    assert not (tmp_path / "mine.run").exists()


def test_labels_that_are_too_few_are_refused_before_the_work(world: World, photos: Path, tmp_path: Path):
    save_photos(tmp_path / "labelled" / "only", 10)
    with pytest.raises(InvalidData, match="there is one class alone"):
        run(request(world, photos, tmp_path / "mine.smn", labelled=tmp_path / "labelled"))
    assert not (tmp_path / "mine.run").exists()


def test_a_full_disk_is_one_line_that_names_the_fix(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"mine\.smn: the disk is full: free some space"):  # noqa: SIM117
        with naming_full_disk(tmp_path / "mine.smn"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError):  # noqa: SIM117
        with naming_full_disk(tmp_path / "mine.smn"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_disk_that_is_too_full_is_refused_before_the_work(
    world: World, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(InvalidArgument, match="give --out on another disk"):
        run(request(world, photos, tmp_path / "mine.smn"))


def test_the_file_is_named_after_the_data():
    assert name_output("some/photos/") == Path("photos.smn")
    assert name_output("digits.npz") == Path("digits.smn")
    assert name_output("torchvision:cifar10@/data") == Path("cifar10.smn")


def test_the_command_says_something_at_once_and_refuses_in_one_line(
    world: World, tmp_path: Path, smn_run: Callable[..., object]
):
    save_photos(tmp_path / "few", 3)
    ran = smn_run("adapt", tmp_path / "few", "--out", tmp_path / "few.smn", *world.flags())
    assert ran.code == 2  # type: ignore[attr-defined]
    assert ran.out.startswith("smn adapt: 15 minutes at most")  # type: ignore[attr-defined]
    assert ran.err.count("\n") == 1  # type: ignore[attr-defined]
    assert "a mask needs 30 at least" in ran.err  # type: ignore[attr-defined]


def test_no_name_of_a_file_commands_the_terminal(world: World, tmp_path: Path, smn_run):
    """Folder and images may be named anything: what is shown of a name has no control character."""
    folder = save_photos(tmp_path / "fe\x1b[2Jw", 3)
    (folder / "bro\x1b[31mken.png").write_bytes(b"no image")
    ran = smn_run("adapt", folder, "--out", tmp_path / "few.smn", *world.flags())
    assert "\x1b" not in ran.out + ran.err
    assert r"bro\x1b[31mken.png" in ran.out and r"fe\x1b[2Jw" in ran.out.splitlines()[0]
