"""`smn demo`: train on digits, say what came of it, serve it, and open the console on it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.demo import Demo

HOST = "127.0.0.1"
PAGE = "#/explore"
"""The page of the console that opens: the digits, what is near what, and a map."""
EXPLAINED = """
A row is about {images} digits that neither backbone nor mask has learned from. kNN: the share whose nearest neighbours
are the same digit. probe: the share that a linear classifier of the vectors tells right. The masks learned without
labels, each from one kind of digits. A few digits more or less can be chance."""
ADVICE = "A mask is for pictures like those that it learned from."

app = typer.Typer()


@app.command()
def demo(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on.")] = 8000,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the demonstration is kept for the next start.")
    ] = Path("~/.cache/smn/demo"),
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Train and show, do not serve.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser: print the address alone.")] = False,
    screen: Annotated[str, typer.Option(envvar=["WAYLAND_DISPLAY", "DISPLAY"], hidden=True)] = "",
) -> None:
    """Train a small backbone and two masks on digits, show their gain, serve them: two minutes, no download."""
    from smn_core.verbs.stderr import note
    from training.demo import prepare

    if not prepare_only:
        from service.listen import bind

        bind(HOST, port, 1).close()  # before two minutes of training, not after
    made = prepare(folder.expanduser(), note)
    show(made.scores)
    if prepare_only:
        return
    opens = not no_open and someone_looks(sys.stderr.isatty(), screen, sys.platform)
    _serve(made, folder.expanduser(), port, opens)


def show(scores: Sequence[dict[str, Any]]) -> None:
    """Print the table, and in words what its columns are and where a mask does harm."""
    from smn_core.verbs.show import table
    from smn_core.verbs.stderr import note

    rows, worse = [], []
    for row in scores:
        through = f"mask {row['through']}" if row["through"] else "untouched backbone"
        verdict, harms = compare(row, untouched(scores, row["domain"])) if row["through"] else ("", [])
        rows.append((row["domain"], through, f"{row['knn']:.3f}", f"{row['linear']:.3f}", verdict))
        if harms:
            worse.append(f"{row['domain']} digits through {through}, by {' and by '.join(harms)}")
    table(("digits", "seen through", "kNN", "probe", "beside the untouched backbone"), rows)
    for line in EXPLAINED.format(images=scores[0]["images"]).splitlines():
        note(line)
    if worse:
        note(f"Worse than the untouched backbone: {'; '.join(worse)}.")
        note(ADVICE)


def someone_looks(terminal: bool, screen: str, platform: str) -> bool:
    """Whether a browser is for somebody: without a screen one of text alone would come, and take the terminal."""
    return terminal and (bool(screen) or platform in ("darwin", "win32"))


def untouched(scores: Sequence[dict[str, Any]], domain: str) -> dict[str, Any]:
    """The row of the backbone without a mask."""
    return next(row for row in scores if row["domain"] == domain and row["through"] is None)


def compare(row: dict[str, Any], without: dict[str, Any]) -> tuple[str, list[str]]:
    """How a row differs from the one without a mask, in pictures; and the measures by which it is worse."""
    differences = {
        said: round((row[key] - without[key]) * row["images"]) for said, key in (("kNN", "knn"), ("probe", "linear"))
    }
    worse = [said for said, pictures in differences.items() if pictures < 0]
    if not any(differences.values()):
        return "the same", worse
    word = "better" if not worse else "worse" if max(differences.values()) <= 0 else "better and worse"
    return f"{word}: {', '.join(f'{said} {pictures:+} digits' for said, pictures in differences.items())}", worse


def notes_of(scores: Sequence[dict[str, Any]], mask: str) -> dict[str, Any]:
    """What the console shows beside a mask: what it is good at, and what it does to the other digits."""
    found: dict[str, Any] = {"learned from": f"{mask} digits, without labels"}
    for row in scores:
        if row["through"] == mask:
            verdict, _ = compare(row, untouched(scores, row["domain"]))
            found[f"{row['domain']} digits"] = f"{verdict} of {row['images']}"
    return found


def _serve(made: Demo, folder: Path, port: int, opens: bool) -> None:
    from service.app import create_app, registry_of
    from service.listen import run
    from service.settings import Settings
    from service.telemetry import configure_logs
    from smn_core.backbone import load_backbone
    from smn_core.verbs.stderr import note

    settings = Settings(
        registry=str(folder / "registry"),
        gallery=str(made.pictures),
        host=HOST,
        port=port,
        log_format="console",
        api_keys=[],
        admin_keys=[],
    )
    configure_logs(settings.log_format)
    backbone = load_backbone(made.spec)
    registry = registry_of(settings, backbone)
    for name, path in made.masks.items():
        version = registry.publish("masks", name, path.read_bytes()).version.version
        registry.set_notes("masks", name, version, json.dumps(notes_of(made.scores, name)))

    def say_serving(bound: int) -> None:
        page = f"http://{HOST}:{bound}/{PAGE}"
        note("")
        note(f"serving, stop with ctrl-C; {'opening' if opens else 'open in a browser:'} {page}")
        n_pictures = sum(1 for _ in made.pictures.rglob("*.png"))
        note(f"Explore has {n_pictures} digits; the page of a mask says in its notes what it is good at;")
        note(f"under Try drop {made.sample} and pictures of your own. In another shell:")
        note("")
        note(f"  curl -F image=@{made.sample} 'http://{HOST}:{bound}/embed?mask=inverted'")
        note("")
        if opens:
            _open(page)

    run(create_app(settings, backbone, registry), say_serving)


def _open(page: str) -> None:
    """Ask for a browser, in a thread: some wait for theirs, and the server is to answer meanwhile."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
