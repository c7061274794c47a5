"""Which OFF weights of a mask do what it does? Its parts, its counterfeits, and statistics that are re-centred.

    python -m benchmarks.flips --mask M.smn --data DATA --backbone NAME --weights W [--images 700] [--out FILE]

Scores are kNN and linear probe on folds of the training split, so no test image is seen. Variants: the untouched
backbone; the mask; the mask without its alpha; its OFF weights stage by stage, and all but those of each stage; as many
random weights of every tensor; as many of the largest of every tensor; the mask with normalisation statistics under
which every channel keeps the mean and deviation that it had before (one pass over 96 images; for networks whose
BatchNorm is folded into the convolutions these are the statistics that nothing else corrects).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from benchmarks.rows import row
from smn_core.backbone import Backbone, load_backbone
from smn_core.images import ImageReader
from smn_core.layout import stage_of
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.data import open_split
from training.evaluation import probes
from training.recentre import Recentred, find_norms

FOLDS = 5
BATCH = 32
CALIBRATION_IMAGES = 96
On = dict[str, Tensor]
"""The ON bits of every maskable tensor, in its shape."""


def main(
    mask: Annotated[Path, typer.Option(help="the mask file")],
    data: Annotated[str, typer.Option(help="labelled images")],
    spec: BackboneSpec,
    images: Annotated[int, typer.Option(help="how many of the training split, drawn at random")] = 700,
    seed: Annotated[int, typer.Option(help="of the draw and of the random weights")] = 0,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file")] = None,
) -> None:
    """Print kNN and linear probe of every variant."""
    torch.set_num_threads(1)
    spec = as_trained(spec, read_mask(mask), mask)
    backbone = load_backbone(spec)
    task, rng = read_mask(mask, backbone.layout), np.random.default_rng(seed)
    x, labels = _images(backbone, data, images, rng)
    worn = Worn(backbone)
    on = worn.bits_of(task)
    params = {"mask": mask.name, "data": Path(data).name, "images": len(x), "backbone": backbone.model_json}

    def score(variant: str, n_off: int) -> None:
        z = np.concatenate([worn(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(z, labels)
        right: dict[str, list[np.ndarray]] = {name: [] for name in probes.PROBES}
        for rest, held in folds:
            for name, probe in probes.PROBES.items():
                right[name].append(probe(z[rest], labels[rest], z[held]) == labels[held])
        for name, found in right.items():
            accuracy = [float(np.concatenate(found).mean())]
            row("flips", variant, {**params, "off": n_off}, name, "accuracy", accuracy, out=out)

    score("untouched", 0)
    for name, values in task.state.items():
        backbone.model.get_buffer(name).copy_(torch.from_numpy(values))
    for variant, bits, alpha in _variants(worn, on, rng):
        worn.wear(bits, alpha)
        score(variant, sum(int((~b).sum()) for b in bits.values()))
    if find_norms(backbone.model) and not task.state:
        worn.wear({name: torch.ones_like(b) for name, b in on.items()})
        recentred = Recentred(backbone.model, x[:CALIBRATION_IMAGES], on)
        worn.wear(on)
        recentred.settle(x[:CALIBRATION_IMAGES])
        score("re-centred", task.n_off)


def _variants(worn: Worn, on: On, rng: np.random.Generator) -> Iterator[tuple[str, On, bool]]:
    """Name, bits, whether alpha is applied."""
    yield "mask", on, True
    yield "without alpha", on, False
    stages = sorted({stage_of(name) for name, b in on.items() if not b.all()})
    for stage in stages:
        yield f"only {stage}", _where(on, lambda name, s=stage: stage_of(name) == s), True  # type: ignore[misc]
    for stage in stages if len(stages) > 2 else ():
        yield f"all but {stage}", _where(on, lambda name, s=stage: stage_of(name) != s), True  # type: ignore[misc]
    yield "random", {name: _off_at(b, rng.permutation(b.numel())) for name, b in on.items()}, True
    by_size = {name: worn.theta[name].abs().flatten().argsort(descending=True).numpy() for name in on}
    yield "largest", {name: _off_at(b, by_size[name]) for name, b in on.items()}, True


def _where(on: On, keep: Callable[[str], bool]) -> On:
    return {name: b if keep(name) else torch.ones_like(b) for name, b in on.items()}


def _off_at(on: Tensor, order: np.ndarray) -> Tensor:
    """As many OFF weights as `on` has, the first of an order."""
    bits = torch.ones(on.numel(), dtype=torch.bool)
    bits[torch.from_numpy(order[: int((~on).sum())].copy())] = False
    return bits.view(on.shape)


class Worn:
    """A model whose bits can be changed at will."""

    def __init__(self, backbone: Backbone) -> None:
        self.model, self._layout = backbone.model, backbone.layout
        self.theta = {t.name: self.model.get_parameter(t.name).detach().clone() for t in backbone.layout}

    def bits_of(self, mask: TaskMask) -> On:
        return {t.name: torch.from_numpy(mask.bits_of(t.name)).view(t.shape) for t in self._layout}

    def wear(self, on: On, alpha: bool = True) -> None:
        for name, b in on.items():
            scale = 1 / float(b.float().mean().sqrt()) if alpha else 1.0
            self.model.get_parameter(name).data = self.theta[name] * b * scale

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> np.ndarray:
        found: np.ndarray = self.model(x).numpy()
        return found


def _images(backbone: Backbone, data: str, n: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    source = open_split(data, "train")
    if source.labels is None:
        raise typer.BadParameter(f"{data} has no labels", param_hint="--data")
    picked = rng.permutation(len(source.names))[:n]
    reader = ImageReader(backbone.preprocess)
    return torch.stack([reader.tensor(source.image(int(i))) for i in picked]), source.labels[picked]


if __name__ == "__main__":
    typer.run(model_options(main))
