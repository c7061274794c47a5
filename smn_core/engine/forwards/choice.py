"""Which forms a start takes: those that are measured faster than plain timm here and give its embeddings.

Each kind of layer is decided in turn. Its forms run with those that were taken before, in turn with them, on one image
and on eight, as long as the time lasts. A form is taken if it is faster on both together and slower on neither, and its
embeddings are plain timm's up to rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from smn_core.backbone import Backbone
from smn_core.engine.forwards.forms import CHOICES, Forms, Layers, layers_of
from smn_core.engine.forwards.kept import Kept

LOG = logging.getLogger("smn.engine")
# Relative distance of embeddings to plain timm's. bfloat16 has 8 bits: another order of its roundings moves a ViT by
# half of that.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}
BATCHES = (1, 8)
MAX_TURNS = 11
BUDGET_S = 8.0
"""Seconds that all timing may take; comparing comes on top."""
NEVER_BELOW, GAIN = 0.98, 1.02
"""A form is at least so fast on every batch, and on all together, as what it replaces."""


@torch.inference_mode()
def choose_forms(backbone: Backbone, kept: Kept | None = None, budget_s: float = BUDGET_S) -> Forms:
    """Make the model run in the fastest forms that give plain timm's embeddings, and return them.

    Args:
        kept: what earlier starts found; by default the entry in the user's cache directory.
        budget_s: seconds that all this may take; what cannot be tried within them stays plain.
    """
    if backbone.device.type != "cpu" or backbone.dtype not in TOLERANCE:
        return Forms()
    kept = kept if kept is not None else Kept(backbone)
    if (known := kept.read()) == Forms():
        return Forms()
    began = time.perf_counter()
    x = _draw(backbone)
    layers = layers_of(backbone)
    trial = Trial(backbone, layers, x, began + budget_s)
    if known is not None and layers.offers(known) and trial.agrees(known):
        layers.run_as(known)
        return known
    found = trial.run()
    layers.run_as(found)
    kept.write(found)
    LOG.info("the model runs in the forms %s", found.as_json())
    return found


class Trial:
    """Compares and times forms of one model. The model may run in any of them afterwards.

    Args:
        x: images, as many as the largest batch has.
        ends: nothing that would end later is begun, in seconds of `time.perf_counter`.
    """

    def __init__(self, backbone: Backbone, layers: Layers, x: Float[Tensor, "n 3 h w"], ends: float) -> None:
        self._model, self._layers, self._x, self._ends = backbone.model, layers, x, ends
        self._tolerance = TOLERANCE[backbone.dtype]
        layers.run_as(Forms())
        began = time.perf_counter()
        self._expected = self._model(x[:1])
        self._image_s = time.perf_counter() - began

    def agrees(self, forms: Forms) -> bool:
        """Whether the embedding of an image in these forms is plain timm's up to rounding. The model keeps the forms.

        Where it is not, or the forms fail, the model is plain again and the reason logged.
        """
        try:
            self._layers.run_as(forms, folded=True)
            found, reason = self._model(self._x[:1]), ""
            distance = torch.linalg.vector_norm((found - self._expected).float())
            size = torch.linalg.vector_norm(self._expected.float())
            if not bool(distance <= self._tolerance * size):
                reason = f"embeddings differ by {float(distance / size):.2g}"
        except Exception as error:  # an operation may lack a type or a shape, and says so in many ways
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if reason:
            LOG.warning("a form is not taken: %s: %s", forms.as_json(), reason)
            self._layers.run_as(Forms())
        return not reason

    def run(self) -> Forms:
        """The fastest forms, found kind by kind."""
        taken = Forms()
        for left, name in zip(range(len(CHOICES), 0, -1), CHOICES, strict=True):
            others = [o for o in self._layers.alternatives(taken, name) if self._fits(1) and self.agrees(o)]
            if others:
                now = time.perf_counter()
                taken = self._fastest([taken, *others], now + (self._ends - now) / left)
        return taken

    def _fits(self, n_images: int) -> bool:
        return time.perf_counter() + self._image_s * n_images <= self._ends

    def _fastest(self, rivals: Sequence[Forms], until: float) -> Forms:
        """The best of several forms; the first one where none is clearly better, or the time is too short to see."""
        # Neighbours on the machine disturb processor time less; it says nothing about several threads.
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        timed: dict[int, list[list[float]]] = {size: [] for size in BATCHES}
        for _ in range(MAX_TURNS):
            for size, turns in timed.items():
                if time.perf_counter() + self._image_s * size * len(rivals) > until:
                    continue
                turns.append([])
                for forms in rivals:
                    self._layers.run_as(forms, folded=True)
                    began = clock()
                    self._model(self._x[:size])
                    turns[-1].append(max(clock() - began, 1e-9))
        return judge(rivals, [np.array(turns) for turns in timed.values() if turns])


def judge(rivals: Sequence[Forms], timed: Sequence[Float64[ndarray, "_ rivals"]]) -> Forms:
    """The best rival by its seconds in turn with the first one, one array for each batch size; see `GAIN`."""
    if not timed:
        return rivals[0]
    ratios = np.array([np.median(turns[:, :1] / turns, axis=0) for turns in timed])
    score = np.exp(np.log(ratios).mean(0)) * (ratios.min(0) >= NEVER_BELOW)
    best = int(score.argmax())
    return rivals[best] if score[best] >= GAIN else rivals[0]


def _draw(backbone: Backbone) -> Float[Tensor, "n 3 h w"]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(max(BATCHES), *backbone.preprocess["input_size"], generator=random)
    return x.to(backbone.device, backbone.dtype)
