"""One queue per mask, and the one thread that owns the engine.

A batch leaves as soon as the engine is free: the images whose turn it is by `order.py`, across all who ask and all
masks, up to the batch size and the engine's capacity of distinct masks, grouped into segments.

A cascade's jobs are enqueued together, so an unconditional one is one mixed batch where it fits. The second pass of a
conditional one takes the places that its first pass had: it is as old as that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor

from service.order import Order, Place, Row
from smn_core.engine import MaskEngine, Segment
from smn_core.errors import NotReady, SMNError, Unavailable


class EngineFailed(SMNError):
    """A forward raised. Its batch is lost; the engine goes on with the next one."""

    code = "engine_failed"


@dataclass
class Job:
    """One request's images through one mask. Its future gets the embeddings once the last row is done."""

    mask: str | None
    x: Float32[Tensor, "n 3 h w"]
    done: asyncio.Future[Timing]
    loop: asyncio.AbstractEventLoop
    out: Float32[ndarray, "n d"]
    entered: float = field(default_factory=time.perf_counter)
    left: int = 0
    places: Sequence[Place] = ()
    first_taken: float = 0.0
    batches: dict[int, tuple[float, float]] = field(default_factory=dict)
    cancelled: bool = False


@dataclass(frozen=True)
class Timing:
    """Embeddings of a job, the seconds it waited, and by batch the seconds that swapping and running took.

    `places` are where its rows stood in the queue.
    """

    embeddings: Float32[ndarray, "n d"]
    queue_s: float
    batches: Mapping[int, tuple[float, float]]
    places: Sequence[Place]

    @property
    def swap_s(self) -> float:
        return sum(swap_s for swap_s, _ in self.batches.values())

    @property
    def forward_s(self) -> float:
        return sum(forward_s for _, forward_s in self.batches.values())


def together(timings: Sequence[Timing]) -> Timing:
    """One timing of several jobs: all embeddings stacked, the longest wait, every batch counted once."""
    return Timing(
        np.concatenate([timing.embeddings for timing in timings]),
        max(timing.queue_s for timing in timings),
        {number: taken for timing in timings for number, taken in timing.batches.items()},
        [place for timing in timings for place in timing.places],
    )


@dataclass(frozen=True)
class BatchDone:
    """What is reported of every batch."""

    images: int
    masks: int
    swaps: int
    swap_s: float
    forward_s: float


Work = tuple[str | None, Float32[Tensor, "n 3 h w"], Sequence[Place]]
"""A mask, its images, and the places in the queue that an earlier pass of them had; () joins at the end."""


class Batcher:
    """Runs jobs on the engine from one thread of its own.

    Args:
        engine: no one else calls its `embed`.
        batch_size: images a forward.
        heard: called on the engine's thread after every batch.
    """

    def __init__(
        self, engine: MaskEngine, batch_size: int, heard: Callable[[BatchDone], None] = lambda _: None
    ) -> None:
        self._engine, self._batch_size, self._heard = engine, batch_size, heard
        self._order: Order[Job] = Order()
        self._batches = 0
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="smn-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queues."""
        return len(self._order)

    async def embed(self, mask: str | None, x: Float32[Tensor, "n 3 h w"], who: str = "") -> Timing:
        """Embeddings of `x` through a mask that is ready. Cancelling drops what has not run yet.

        Args:
            who: those who ask have equal shares.

        Raises:
            EngineFailed: the forward raised.
        """
        return (await self.embed_all([(mask, x, ())], who))[0]

    async def embed_all(self, works: Sequence[Work], who: str = "") -> list[Timing]:
        """Embed several of these at once, all of one request: what fits goes into one batch.

        Raises:
            EngineFailed: a forward raised; the others are dropped.
        """
        loop = asyncio.get_running_loop()
        width = self._engine.backbone.n_features
        jobs = [
            Job(mask, x, loop.create_future(), loop, np.empty((len(x), width), np.float32), left=len(x), places=places)
            for mask, x, places in works
        ]
        with self._wake:
            for job in jobs:
                job.places = self._order.put(who, job, len(job.x), job.places)
            self._wake.notify()
        try:
            return await asyncio.gather(*(job.done for job in jobs))
        except BaseException:
            for job in jobs:
                job.cancelled = True
            raise

    def stop(self) -> None:
        """Finish the batch in hand, fail what waits, and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and not (rows := self._order.take(self._batch_size, self._engine.capacity)):
                    self._wake.wait()
                if self._stopping:
                    _fail(list(self._order.rows()), Unavailable("the server stopped"))
                    return
            self._run_batch(rows)

    def _run_batch(self, rows: list[Row[Job]]) -> None:
        by_mask: dict[str | None, list[Row[Job]]] = {}
        for row in rows:
            by_mask.setdefault(row[2].mask, []).append(row)
        segments, start = [], 0
        for mask, group in by_mask.items():
            segments.append(Segment(mask, start, start + len(group)))
            start += len(group)
        ordered = [row for group in by_mask.values() for row in group]
        began = time.perf_counter()
        try:
            done = self._engine.embed(_gather(ordered), segments)
        except NotReady as error:
            # A request whose client hung up after its rows were taken has released its mask: run the other rows alone.
            alive = [row for row in rows if not row[2].cancelled]
            if 0 < len(alive) < len(rows):
                self._run_batch(alive)
            else:
                _fail(rows, error)
            return
        except Exception as error:  # whatever a forward raises goes to its requests, and the thread goes on
            _fail(rows, EngineFailed(f"the forward failed: {error}"))
            return
        self._heard(BatchDone(len(ordered), len(by_mask), done.swaps, done.swap_s, done.forward_s))
        embeddings = done.embeddings.numpy()
        for position, (_, _, job, of_job) in enumerate(ordered):
            job.out[of_job] = embeddings[position]
        self._batches += 1
        for job in {id(row[2]): row[2] for row in ordered}.values():
            job.first_taken = job.first_taken or began
            job.batches[self._batches] = done.swap_s, done.forward_s
            job.left -= sum(row[2] is job for row in ordered)
            if job.left == 0:
                _settle(job, Timing(job.out, job.first_taken - job.entered, job.batches, job.places))


def _gather(rows: list[Row[Job]]) -> Float32[Tensor, "n 3 h w"]:
    """The batch's input; a batch that is one whole job is passed through without a copy."""
    job = rows[0][2]
    if len(rows) == len(job.x) and all(row[2] is job and row[3] == i for i, row in enumerate(rows)):
        return job.x
    return torch.stack([job.x[row] for _, _, job, row in rows])


def _fail(rows: list[Row[Job]], error: Exception) -> None:
    """End the jobs of a batch with this error; their rows that still wait are dropped too."""
    for job in {id(row[2]): row[2] for row in rows}.values():
        job.cancelled = True
        _settle(job, error)


def _settle(job: Job, result: Timing | Exception) -> None:
    """Hand a result to the event loop that waits for it. By now the request may have gone: then nothing happens."""

    def deliver() -> None:
        if job.done.done():
            return
        if isinstance(result, Exception):
            job.done.set_exception(result)
        else:
            job.done.set_result(result)

    try:
        job.loop.call_soon_threadsafe(deliver)
    except RuntimeError:  # the loop is closed: the server has ended meanwhile
        job.cancelled = True
