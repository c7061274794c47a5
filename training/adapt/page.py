"""What `smn adapt` says at the end: the table, the sentence, the next command, and the page in `FILE.run/`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smn_core.engine import Engine
from smn_core.files import write_bytes
from smn_core.mask import TaskMask
from smn_core.verbs.plots import density_plot
from smn_core.verbs.recorded import run_folder
from smn_core.verbs.texts import visible
from smn_core.verdict import ADOPT, CANNOT_TELL, LEAVE_IT
from training.adapt.look import Found
from training.adapt.pictures import draw_neighbours
from training.adapt.record import Record
from training.adapt.score import BATCH
from training.checkpoints import CHECKPOINT, README
from training.data import Subset
from training.evaluation.paired import EVIDENCE, MARGIN, NEIGHBOURS
from training.evaluation.rule import ALL, Changes
from training.evaluation.verdict import RANDOM_FLIPS, Verdict
from training.features import embed

NEIGHBOURS_PNG, DENSITY_PNG, CURVE_PNG = "neighbours.png", "density.png", "curve.png"
HEADINGS = ("", "neighbours", "margin", "evidence", "bytes", "verdict")
LEGEND = (
    "neighbours: the part of an image's neighbours that two strong crops share. margin: how much nearer an image's own "
    "gentle crop is than the next image's, in deviations. evidence: both changes together, against the frozen backbone "
    "or, under a map, against frozen + map; z: in standard errors; beyond 2 it decides."
)


@dataclass(frozen=True)
class Page:
    """All that is said at the end: `verdicts` of the choices, whether the chosen one is in the file, sizes by name."""

    data: str
    out: Path
    command: Sequence[str]
    found: Found
    n_seen: int
    n_unseen: int
    record: Record
    verdicts: Sequence[Verdict]
    chosen: Verdict
    comes_out: bool
    bytes: Mapping[str, int]

    @property
    def candidate(self) -> Path:
        """The file of the choice, in the folder; it stays there also where it does not come out."""
        return path_of(self.record.folder, self.chosen.name)

    @property
    def sentence(self) -> str:
        """What came out, in words."""
        out, name = self.out, self.chosen.name
        holds = f"{out} is {name}, as no sign speaks against it" if self.comes_out else f"{out} changes nothing so far"
        said = {
            ADOPT: f"Adopt it: {out} is {name}.",
            LEAVE_IT: f"Leave it: {out} changes nothing; the best that was tried stays in {self.candidate}.",
            CANNOT_TELL: f"Nobody can tell without labels: {holds}. Label ten images a class, in a folder for each.",
        }[self.chosen.answer]
        return f"{said} {self.chosen.reason}"

    @property
    def next_command(self) -> str:
        """What to type next."""
        out, candidate = shlex.quote(str(self.out)), shlex.quote(str(self.candidate))
        if self.chosen.answer == CANNOT_TELL:
            return f"smn verdict {candidate} --data {shlex.quote(self.data)} --labelled DIR --out {out}"
        return f"smn serve {out}"


def path_of(folder: Path, choice: str) -> Path:
    """The file of a choice, as `mask + map`, in the folder of a race."""
    return folder / f"{choice.replace(' ', '')}.smn"


def format_table(page: Page) -> list[str]:
    """Lines of the table, in columns."""
    rows = [HEADINGS, *_rows(page)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _rows(page: Page) -> Iterator[tuple[str, str, str, str, str, str]]:
    judged = next((v for v in page.verdicts if v.changes), None)
    if judged is not None:
        before = {sign: judged.changes[sign][ALL].before for sign in (NEIGHBOURS, MARGIN)}
        yield "frozen", f"{before[NEIGHBOURS]:.3f}", f"{before[MARGIN]:.2f}", "", "0", ""
    for verdict in page.verdicts:
        size = f"{page.bytes[verdict.name]:,}"
        if verdict.changes:
            yield verdict.name, *_cells(verdict.changes, verdict.over_map), size, verdict.answer
        else:
            yield verdict.name, "-", "-", "-", size, verdict.answer
    for verdict in page.verdicts:
        control = next((c for c in verdict.controls if c.name == RANDOM_FLIPS and c.changes), None)
        if control is not None:
            yield RANDOM_FLIPS, *_cells(control.changes, None), "", ""
            return


def _cells(changes: Changes, over_map: Changes | None) -> tuple[str, str, str]:
    neighbours, margin = changes[NEIGHBOURS][ALL], changes[MARGIN][ALL]
    evidence = (over_map or changes)[EVIDENCE][ALL]
    return f"{neighbours.after:.3f}", f"{margin.after:.2f}", f"z {evidence.z:+.1f}"


def write_page(page: Page, engine: Engine, mask: TaskMask, unseen: Subset) -> None:
    """Draw the pictures, tidy the folder up, and last write the page: it is what makes a run count as finished.

    Args:
        mask: the choice, also where it does not come out.
        unseen: images among which neighbours are drawn, all of them.
    """
    folder = page.record.folder
    lines = [f"# {page.out.name}", "", page.sentence, "", f"**verdict: {page.chosen.answer}**", ""]
    lines += ["```sh", shlex.join(page.command), page.next_command, "```", ""]
    lines += [*_as_markdown(list(_rows(page))), "", LEGEND, ""]
    lines += _draw_neighbours(page, engine, mask, unseen)
    best = page.record.best
    if best is not None:
        density_plot(mask, folder / DENSITY_PNG, page.out.stem)
        lines += [f"![density by stage]({DENSITY_PNG})", ""]
        run = run_folder(page.record.path(best))
        if (run / CURVE_PNG).exists():
            lines += [f"![loss and density by step]({run.name}/{CURVE_PNG})", ""]
    lines += ["## What was found", "", *_describe_images(page), "", "## What was tried", "", *_list_runs(page), ""]
    _drop_checkpoints(page)
    write_bytes(folder / README, "\n".join(lines).encode(errors="backslashreplace"))


def _draw_neighbours(page: Page, engine: Engine, mask: TaskMask, unseen: Subset) -> list[str]:
    engine.prepare(mask)
    before = embed(engine, None, unseen, BATCH)
    after = embed(engine, mask.digest, unseen, BATCH)
    pictured = Subset(unseen, before.kept)
    names = draw_neighbours(pictured, before.z, after.z, page.record.folder / NEIGHBOURS_PNG)
    return [
        f"![neighbours before and after]({NEIGHBOURS_PNG})", "",
        f"{len(names)} images at random of {len(before.z)} unseen ones, before and after with {page.chosen.name}: "
        f"{', '.join(map(visible, names))}.", "",
    ]  # fmt: skip


def _as_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)]


def _describe_images(page: Page) -> list[str]:
    found, (low, high) = page.found, page.found.sides_px
    lines = [
        f"- {len(found.images.names):,} of {found.n_all:,} images, sides {low:,} to {high:,} px, "
        f"{len(found.images.names) - found.n_distinct:,} near-copies; {page.n_seen:,} learned from, "
        f"{page.n_unseen:,} kept unseen"
    ]
    if found.not_read:
        lines.append("- not read: " + ", ".join(f"{n:,} {suffix}" for suffix, n in found.not_read.items()))
    return lines + [f"- cannot be read: {visible(why)}" for why in found.unreadable]


def _list_runs(page: Page) -> list[str]:
    rows = [
        (
            run.file, str(run.total_steps), f"{run.seconds:.0f} s", f"{run.n_off:,}", f"{run.neighbours:+.3f}",
            f"{run.evidence:+.2f}",
        )
        for run in page.record.runs
    ]  # fmt: skip
    headings = ("run", "steps", "time", "weights OFF", "neighbours kept", "evidence")
    return ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)]


def _drop_checkpoints(page: Page) -> None:
    """Only the best run can be gone on with: the others' checkpoints are the largest files here."""
    for run in page.record.runs:
        if run != page.record.best:
            (run_folder(page.record.path(run)) / CHECKPOINT).unlink(missing_ok=True)
