"""What an objective is: what it needs of the data, its head, its loss, and what it says of a run.

A run learns by one objective, on a mask or on all weights (`training/config.py` has the table of names). The learner
owns the model and the optimiser and knows this contract alone. A new objective is one module that keeps the contract,
and one line of that table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from smn_core.mask import Head
from training.data import Batch

Embed = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]
"""Embeddings of crops of one size, through the model that learns."""

Watch = Callable[[float], str | None]
"""Called with the loss of every step; returns a warning once there is one, None before."""

H = TypeVar("H", bound=nn.Module)


@runtime_checkable
class Objective(Protocol[H]):
    """What a run learns by. It holds settings alone; all that is learned is in the model and in the head `H`."""

    @property
    def head_name(self) -> str:
        """The learner's attribute that holds the head. Checkpoints have it in their keys: it never changes."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether every image must have a label, of at least two classes."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` is to be called before the first step of a run that starts from a backbone."""
        ...

    @property
    def crop_sides_px(self) -> tuple[int, ...]:
        """Sides of square crops that the model must take, besides images of its own size."""
        ...

    @property
    def crop_setting(self) -> str:
        """The setting of a recipe that changes the crops, for messages."""
        ...

    @property
    def left_behind(self) -> tuple[str, ...]:
        """Names in the head's state that a run which goes on from another does not take over from it."""
        ...

    def require_images(self, n_images: int) -> None:
        """Refuse too few images for a run that starts from a backbone.

        Raises:
            InvalidData: there are too few.
        """
        ...

    def make_transform(self, preprocess: dict[str, Any]) -> Callable[[Image.Image], Any]:
        """PIL RGB -> the view or the list of views of one image, normalised for the backbone."""
        ...

    def make_head(self, n_features: int, n_classes: int, world_size: int) -> H:
        """A fresh head. Its parameters learn with the recipe's `head_lr`; torch's global generator draws them."""
        ...

    def calibrate(self, head: H, z: Float[Tensor, "n d"]) -> None:
        """Give the head what it wants to know of the embeddings of views as it will see them, before the first step."""
        ...

    def compute_loss(self, head: H, embed: Embed, batch: Batch, progress: float) -> Tensor:
        """The scalar loss of a batch; `progress` in [0, 1) is the part of the run that is done."""
        ...

    def before_step(self, head: H, step: int) -> None:
        """Change the head's gradients before the optimiser takes step `step`, counted from 0."""
        ...

    def make_watch(self) -> Watch:
        """What watches the losses of one run."""
        ...

    def export_head(self, head: H, classes: tuple[str, ...]) -> Head | None:
        """The classifier that goes into the mask file; None if the head is thrown away after the run."""
        ...
