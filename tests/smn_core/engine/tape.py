"""What stands for CUDA graphs where there is no GPU, and engines that use it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from smn_core.backbone import Backbone, wrap
from smn_core.engine import Engine, Segment
from smn_core.engine.device.ways import Ways
from smn_core.mask import TaskMask
from smn_core.spec import BackboneSpec
from tests.conftest import build_mask
from tests.smn_core.builders import by_hand, images, plain_model


class Tape:
    """Stands for CUDA graphs: a replay reads the tensors that the modules had when it was recorded, in their memory of
    now, and writes its result where it wrote the last.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self.recorded = model, 0

    def __call__(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        then, result = self._tables(), forward()
        self.recorded += 1

        def replay() -> Tensor:
            now = self._tables()
            self._set(then)
            try:
                return result.copy_(forward())
            finally:
                self._set(now)

        return replay

    def _tables(self) -> list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]]:
        return [(dict(m._parameters), dict(m._buffers)) for m in self._model.modules()]

    def _set(self, tables: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]]) -> None:
        for module, (parameters, buffers) in zip(self._model.modules(), tables, strict=True):
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def some_masks(backbone, densities: tuple[float, ...]) -> list[TaskMask | None]:
    return [None, *(build_mask(backbone, d, i, with_state=i % 2 == 0) for i, d in enumerate(densities))]


def right(engine: Engine, x: Tensor, masks, expected, batch: list[tuple[int, int]]) -> bool:
    """Whether consecutive rows, so many of each numbered mask, come out as the plain model's, to 1e-5."""
    stops = torch.tensor([n for _, n in batch]).cumsum(0).tolist()
    edges = list(pairwise([0, *stops]))
    segments = [Segment(masks[m] and masks[m].digest, a, b) for (m, _), (a, b) in zip(batch, edges, strict=True)]
    found = engine.embed(x[: stops[-1]], segments).embeddings
    wanted = torch.cat([expected[m][a:b] for (m, _), (a, b) in zip(batch, edges, strict=True)])
    error = torch.linalg.vector_norm(found - wanted, dim=-1) / torch.linalg.vector_norm(wanted, dim=-1)
    return float(error.max()) < 1e-5


def fitted(kind, dtype: torch.dtype = torch.float32) -> Backbone:
    """A backbone that knows the size of its images: forwards are recorded for that one."""
    name, side_px, args = kind
    return wrap(plain_model(name, args), name, BackboneSpec(name, args=args, image_size=side_px), dtype=dtype)


def prepared(kind, densities: tuple[float, ...], slots: int, kernels: bool):
    """An engine with recorded forwards and prepared masks (the first is the root), its tape, six images."""
    backbone = fitted(kind)
    masks, tape = some_masks(backbone, densities), Tape(backbone.model)
    engine = Engine(backbone, slots=slots, capacity=8, ways=Ways(kernels, tape))
    for mask in masks[1:]:
        engine.prepare(mask)
    x = images(kind, 6)
    return engine, tape, masks, x, by_hand(kind, masks, x)
