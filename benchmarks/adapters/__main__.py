"""What is a mask worth beside other adapters? Accuracy against bytes and seconds, by the same objective and images.

    python -m benchmarks.adapters --data SET [--recipe NAME --set NAME=VALUE] [--steps 100] [--out ROWS] [--work DIR]
    python -m benchmarks.adapters --picture FILE.png [--out ROWS]

Kinds: mask, LoRA (PEFT), one-bit LoRA, bias (benchmarks/adapters/kinds.py), each alone and under the map within
images; beside them the map without training, in full and in its diagonal form. Every setting of a kind is learned to
the end and scored on folds of a part of the training split; the best mean of kNN and probe is scored on the test split,
paired image by image with the untouched backbone. Rows are kept as they come, and what is there is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.adapters.compare import MAPS, Right, open_engine, score_folds, score_test, some
from benchmarks.adapters.learn import MASK, Learned, Setting, learn, weights_file
from benchmarks.rows import command, commit, machine
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, for_learning, model_options
from training.config import AUTO, PLAIN, Config, override
from training.data import open_split
from training.labels import renumber_classes
from training.recipes import find_recipe

ROWS = Path(__file__).parent.parent / "results" / "real-images" / "adapters.jsonl"
SETTINGS = (
    Setting(MASK, 1e-3),
    Setting("lora", 1e-3, 4),
    Setting("bias", 2e-3),
    Setting("one-bit lora", 1e-4, 4),
    Setting(MASK, 3e-3),
    Setting("lora", 2e-4, 4),
    Setting("bias", 4e-4),
    Setting("one-bit lora", 2e-5, 4),
    Setting("lora", 1e-3, 1),
)
"""Rates about which each kind is known to learn, and a second one; a whole turn of the kinds comes before it."""
KINDS = tuple(dict.fromkeys(setting.kind for setting in SETTINGS))
FROZEN = "frozen"
Row = dict[str, Any]


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="labelled images with a train and a test split")] = "",
    recipe: Annotated[str, typer.Option(help="whose crops and head all kinds have")] = "small-vit-64px",
    setting: Annotated[list[str] | None, typer.Option("--set", help="change one setting of the recipe")] = None,
    steps: Annotated[int, typer.Option(help="of every run")] = 100,
    head_steps: Annotated[int, typer.Option(help="of them, for the head alone")] = 30,
    seed: Annotated[int, typer.Option(help="of head, images and crops")] = 0,
    choose_on: Annotated[int, typer.Option(help="training images that settings are chosen on")] = 400,
    most: Annotated[int, typer.Option(help="images of the bank, and of the test split")] = 1000,
    work: Annotated[Path, typer.Option(help="where adapters and runs are left")] = Path("adapters.run"),
    out: Annotated[Path, typer.Option(help="the rows: read, and added to")] = ROWS,
    first: Annotated[int, typer.Option(help="learn the first settings alone")] = len(SETTINGS),
    mapped: Annotated[str, typer.Option(help="kinds that are scored under the map too, with commas")] = ",".join(KINDS),
    picture: Annotated[Path | None, typer.Option(help="draw the rows into this file")] = None,
) -> None:
    """Learn what is missing, score it, print a row for each; draw the picture where one is asked for."""
    torch.set_num_threads(1)
    if data:
        changes = [*(setting or []), f"steps={steps}", f"head_steps={head_steps}"]
        config = override(find_recipe(recipe), changes)
        config = replace(config, precision=PLAIN) if config.precision == AUTO else config  # one form for all kinds
        spec = as_trained(for_learning(spec), None)
        kinds = tuple(mapped.split(","))
        for row in Comparison(spec, data, config, seed, work, out, choose_on, most, SETTINGS[:first], kinds).rows():
            print(json.dumps(row), flush=True)
    if picture is not None:
        from benchmarks.adapters.picture import caption, draw, table

        draw(read(out), picture)
        print("\n".join([*table(read(out)), "", *caption(read(out))]))


def read(file: Path) -> list[Row]:
    """The rows of a file; none where it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@dataclass(frozen=True)
class Comparison:
    """All kinds on one set. What the file `out` has of the same set, recipe and seed counts as done."""

    spec: BackboneSpec
    data: str
    config: Config
    seed: int
    work: Path
    out: Path
    choose_on: int
    most: int
    settings: Sequence[Setting]
    mapped: Sequence[str]

    def rows(self) -> Iterator[Row]:
        """Learn and score what is missing; every row is in the file by the time that it comes."""
        train = open_split(self.data, "train")
        test = some(renumber_classes(train, open_split(self.data, "test")), self.most)
        part, bank = some(train, self.choose_on, seed=8), some(train, self.most)
        if self._find(setting=FROZEN) is None:
            yield self._keep({"setting": FROZEN, "folds": score_folds(open_engine(self.spec, None), part)})
        for setting in self.settings:
            if self._find(setting=setting.name) is None:
                made = learn(self.spec, self.data, self.config, setting, self._folder, self.seed)
                folds = score_folds(open_engine(self.spec, made.weights), part)
                yield self._keep(
                    {"setting": setting.name, "kind": setting.kind, "folds": folds, **_facts(setting, made)}
                )
        yield from self._score("frozen", None, list(MAPS), train, bank, test)
        for kind in dict.fromkeys(setting.kind for setting in self.settings):
            ends = ["", " + map"] if kind in self.mapped else [""]
            yield from self._score(kind, self._best(kind), ends, train, bank, test)

    def _score(
        self, name: str, best: Row | None, ends: Sequence[str], train: Any, bank: Any, test: Any
    ) -> Iterator[Row]:
        taken = best["setting"] if best is not None else FROZEN
        ends = [end for end in ends if self._find(adapter=name + end, taken=taken) is None]
        if not ends:
            return
        frozen = self._answer_frozen(bank, test)
        engine = open_engine(self.spec, self._weights_of(taken) if best is not None else None)
        found = score_test(engine, train, bank, test, ends)
        for end, (right, map_bytes) in found.items():
            changes = {probe: change.as_json() for probe, change in right.beside(frozen).items()}
            n_bytes = (best["bytes"] if best is not None else 0) + map_bytes
            seconds = best["seconds"] if best is not None else 0.0
            facts = {"bytes": n_bytes, "map_bytes": map_bytes, "seconds": seconds}
            yield self._keep({"adapter": name + end, "taken": taken, **facts, "test": changes})

    def _answer_frozen(self, bank: Any, test: Any) -> Right:
        """What the untouched backbone gets right; kept, as everything is paired with it."""
        file = self._folder / "frozen.npz"
        if not file.exists():
            right, _ = score_test(open_engine(self.spec, None), bank, bank, test, [""])[""]
            self._folder.mkdir(parents=True, exist_ok=True)
            np.savez(file, **right.of)  # type: ignore[arg-type]
        with np.load(file) as kept:
            return Right(dict(kept))

    def _weights_of(self, taken: str) -> Path:
        """The weights that a setting means; it is learned again where another folder has them."""
        if not weights_file(self._folder, taken).exists():
            setting = next(setting for setting in self.settings if setting.name == taken)
            learn(self.spec, self.data, self.config, setting, self._folder, self.seed)
        return weights_file(self._folder, taken)

    @property
    def _folder(self) -> Path:
        return self.work / f"{Path(self.data).name}-{self.seed}"

    @property
    def _run(self) -> Row:
        """What tells the rows of this comparison from those of another one."""
        return {
            "data": Path(self.data).name,
            "recipe": self.config.name,
            "steps": self.config.total_steps(10**6),
            "head_steps": self.config.head_steps,
            "seed": self.seed,
        }

    def _find(self, **what: Any) -> Row | None:
        wanted = self._run | what
        return next((row for row in read(self.out) if all(row.get(k) == v for k, v in wanted.items())), None)

    def _best(self, kind: str) -> Row:
        """The setting of a kind with the best mean of both scores on the folds."""
        tried = [row for s in self.settings if s.kind == kind and (row := self._find(setting=s.name)) is not None]
        return max(tried, key=lambda row: sum(row["folds"].values()))

    def _keep(self, row: Row) -> Row:
        row = self._run | row | {"commit": commit(), "machine": machine(), "command": command()}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


def _facts(setting: Setting, made: Learned) -> Row:
    facts = {key: value for key, value in asdict(made).items() if key != "weights"}
    return {"lr": setting.lr, "rank": setting.rank, "bytes": facts.pop("n_bytes"), **facts}


if __name__ == "__main__":
    typer.run(model_options(main))
