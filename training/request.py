"""What a user asks of a run (`Request`), and what the run returns (`Result`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from smn_core import tensorfile
from smn_core.errors import InvalidArgument
from smn_core.files import read_bytes
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, for_learning
from smn_core.verbs.recorded import run_folder
from smn_core.verbs.repack import require_codec
from training.config import MASKS, OBJECTIVES, Config, override
from training.labels import parse_amount
from training.recipes import find_recipe


@dataclass(frozen=True)
class Request:
    """What a user asks of a run.

    `labels` is a fraction, or a number for each class, or None for all. `start` is a mask file with its run beside it:
    the new run starts from the end of that run instead of from the untouched backbone. `only` are the numbers of the
    images of the split to learn from; None means all. `fixed` are the names of settings that the user chose himself:
    the others are lowered where the images are too few for them (`training/sizing.py`). None means all are fixed.
    """

    spec: BackboneSpec
    data: str
    config: Config
    out: Path
    split: str = "train"
    seed: int = 0
    labels: float | None = None
    resume: bool = False
    overwrite: bool = False
    workers: int = 1
    command: Sequence[str] = ()
    start: Path | None = None
    only: tuple[int, ...] | None = None
    fixed: tuple[str, ...] | None = None
    codec: str = "zstd"

    @property
    def folder(self) -> Path:
        return run_folder(self.out)

    @property
    def start_digest(self) -> str:
        """The digest of the mask that the run goes on from, or ""."""
        return tensorfile.digest_of(read_bytes(self.start)) if self.start is not None else ""


def make_request(
    spec: BackboneSpec,
    data: str,
    out: Path,
    *,
    objective: str,
    recipe: str,
    epochs: float | None,
    labels: str | None,
    seed: int,
    split: str,
    stages: str,
    share: float | None,
    density: float | None,
    setting: Sequence[str] | None,
    workers: int,
    resume: bool,
    overwrite: bool,
    start: Path | None = None,
    command: Sequence[str] = (),
    codec: str = "zstd",
) -> Request:
    """Make the request that the options of `smn train` mean.

    Raises:
        InvalidArgument: there is no such recipe, objective or setting, or a setting cannot take a value.
    """
    require_codec(codec)
    config = find_recipe(recipe)
    if objective:
        if objective not in OBJECTIVES:
            raise InvalidArgument(f"unknown objective {objective!r}: choose {', '.join(OBJECTIVES)}")
        config = replace(config, objective=objective)
    if start is not None:
        _require_start(start, config, out)
    if epochs is not None:
        config = replace(config, epochs=epochs, steps=None)
    rule = replace(
        config.mask,
        only=stages or config.mask.only,
        share=config.mask.share if share is None else share,
        density=config.mask.density if density is None else density,
    )
    config = override(replace(config, mask=rule), list(setting or []))
    amount = parse_amount(labels) if labels is not None else None
    made_by = read_mask(start) if start is not None else None
    return Request(
        as_trained(for_learning(spec), made_by, start), data, config, out, split=split, seed=seed, labels=amount,
        resume=resume, overwrite=overwrite, workers=workers, command=command, start=start,
        fixed=tuple(text.partition("=")[0] for text in setting or ()), codec=codec,
    )  # fmt: skip


def _require_start(start: Path, config: Config, out: Path) -> None:
    if not config.learns_mask:
        raise InvalidArgument(f"--start: objective {config.objective} learns no mask: choose {', '.join(MASKS)}")
    if run_folder(start).resolve() == run_folder(out).resolve():
        raise InvalidArgument(f"--start {start} is what --out would replace: give --out another name")


@dataclass(frozen=True)
class Result:
    """What a run returns. `mask` is None after fine-tuning and in processes other than 0.

    `skipped` are the names of images that could not be read. `warning` is the objective's, or that of a mask that
    switches nothing off.
    """

    out: Path
    mask: TaskMask | None
    seconds: float
    final_loss: float
    skipped: tuple[str, ...]
    warning: str | None
