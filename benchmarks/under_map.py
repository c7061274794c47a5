"""Does a mask that is learned under the map help more? The loss of SwAV on embeddings whitened within images.

    python -m benchmarks.under_map --data SET --weights W --power .35 --recipe small-vit-64px --out M.smn

As `smn train` with objective swav, but the head sees `Sw^(-power/2) (z - mean)` in place of `(z - mean) / deviation`:
the scatter of the crops of an image in what the head is calibrated on, before the first step, shrunk as the map is
(training/within.py). Power 0 is `smn train` itself. The mask is written to FILE, and is evaluated as any other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float
from torch import Tensor

from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, for_learning, model_options
from training.config import OBJECTIVES, Config, Learning, override
from training.recipes import find_recipe
from training.request import Request
from training.run import train
from training.swav import Swav, SwavHead, SwavObjective
from training.within import fit_within

OBJECTIVE = "swav-under-map"


class WhitenedHead(SwavHead):
    """Projects embeddings that a fixed matrix has whitened."""

    whitening: Tensor

    def project(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Whiten, project, and give the projections unit length."""
        whitened = (z.float() - self.centre) @ self.whitening.T  # type: ignore[operator]
        return F.normalize(self.projection(whitened).float(), dim=1)


class UnderMap(SwavObjective):
    """SwAV whose head is whitened by the scatter within images, to a power."""

    def __init__(self, recipe: Config, power: float) -> None:
        super().__init__(recipe)
        self._power, self._batch = power, recipe.batch_size
        self._n_views = recipe.swav.crops.n_big + recipe.swav.crops.n_small

    @property
    def needs_calibration(self) -> bool:
        return True

    def make_head(self, n_features: int, n_classes: int, world_size: int) -> Swav:
        swav = super().make_head(n_features, n_classes, world_size)
        head = WhitenedHead(n_features, self._config)
        head.load_state_dict(swav.head.state_dict())  # the same first projection and prototypes as without
        head.register_buffer("whitening", torch.eye(n_features))
        swav.head = head
        return swav

    def calibrate(self, head: Swav, z: Float[Tensor, "n d"]) -> None:
        """Crops come batch by batch, and in a batch view by view."""
        super().calibrate(head, z)
        parts = z.split(self._batch * self._n_views)
        views = torch.cat([part.unflatten(0, (self._n_views, -1)) for part in parts], dim=1)
        affine = fit_within(views.numpy(), z.mean(0).numpy(), power=self._power)
        whitening = torch.from_numpy(affine.full)
        # The same mean length as standardised embeddings have, so that the head's rate means as much.
        centred = z - z.mean(0)
        length = (centred / z.std(0).clamp_min(1e-6)).norm(dim=1).mean() / (centred @ whitening.T).norm(dim=1).mean()
        head.head.whitening.copy_(whitening * length)  # type: ignore[operator]


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="images to learn from, the split train")],
    out: Annotated[Path, typer.Option(help="the mask")],
    power: Annotated[float, typer.Option(min=0, max=1, help="of the whitening; 0: `smn train`")],
    recipe: Annotated[str, typer.Option(help="a recipe of SwAV")] = "small-vit-64px",
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; may be repeated")] = None,
    seed: Annotated[int, typer.Option(help="of the run")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
) -> None:
    """Learn, and say what came out."""
    torch.set_num_threads(1)
    config = override(find_recipe(recipe), setting or [])
    if power:
        OBJECTIVES[OBJECTIVE] = Learning(lambda given: UnderMap(given, power), learns_mask=True)
        config = replace(config, objective=OBJECTIVE)
    spec = as_trained(for_learning(spec), None)
    result = train(Request(spec, data, config, out, seed=seed, workers=0, resume=resume))
    assert result.mask is not None
    print(f"{out}: {result.mask.n_off:,} OFF, last loss {result.final_loss:.3f}, {result.seconds:.0f} s")


if __name__ == "__main__":
    typer.run(model_options(main))
