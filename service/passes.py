"""Runs a cascade: all masks at once, or the root, then the router, then the picked experts; then it fuses.

Its jobs are ordinary jobs of the batcher, so cascades and plain masks share batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from service.batcher import Batcher, Timing, together
from service.library import Library
from service.record import Record
from smn_core.cascade.cascade import Cascade, concatenate_all, concatenate_picked, fuse
from smn_core.cascade.fusion import UNCONDITIONAL
from smn_core.cascade.router import route

T = TypeVar("T")


@dataclass(frozen=True)
class Passed:
    """Fused embeddings, the picked experts from 0 (None: all ran), and the masks' warnings."""

    z: Float32[ndarray, "n q"]
    chosen: Int64[ndarray, "n"] | None
    warnings: list[str]


class Passes:
    """Runs cascades; routing and fusing have a thread of their own.

    Args:
        heard: called with the seconds that each pass waited in the queue.
    """

    def __init__(self, library: Library, batcher: Batcher, heard: Callable[[float], None]) -> None:
        self._library, self._batcher, self._heard = library, batcher, heard
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="smn-fuse")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, record: Record, cascade: Cascade, mode: str, decoded: Awaitable[Tensor]) -> Passed:
        """Embeddings of the images that `decoded` gives. Decoding goes on while masks are loaded.

        Raises:
            NotFound, Unavailable, InvalidMask: a mask cannot be loaded.
            EngineFailed: a forward raised.
        """
        if mode == UNCONDITIONAL:
            return await self._all(record, cascade, decoded)
        return await self._picked(record, cascade, mode, decoded)

    async def _all(self, record: Record, cascade: Cascade, decoded: Awaitable[Tensor]) -> Passed:
        async with self._hold(record, "load", *cascade.masks) as warnings:
            x = await decoded
            timings = await self._batcher.embed_all([(digest, x, ()) for digest in cascade.masks], record.who)
        self._tell(record, "", together(timings))
        joined = concatenate_all([timing.embeddings for timing in timings])
        z = await self._timed(record, "fuse", lambda: fuse(cascade, UNCONDITIONAL, joined))
        return Passed(z, None, warnings)

    async def _picked(self, record: Record, cascade: Cascade, mode: str, decoded: Awaitable[Tensor]) -> Passed:
        router = cascade.router
        assert router is not None  # a cascade without a router has no conditional mode
        async with self._hold(record, "load", cascade.root) as warnings:
            x = await decoded
            first = await self._batcher.embed(cascade.root, x, record.who)
        self._tell(record, "", first)
        root = first.embeddings
        chosen = await self._timed(record, "route", lambda: route(router, root))
        rows = {int(j): np.flatnonzero(chosen == j) for j in np.unique(chosen)}
        async with self._hold(record, "expert_load", *(cascade.experts[j] for j in rows)) as more:
            second = await self._batcher.embed_all(
                [
                    (cascade.experts[j], x[torch.from_numpy(of)], [first.places[i] for i in of.tolist()])
                    for j, of in rows.items()
                ],
                record.who,
            )
        self._tell(record, "expert_", together(second))
        expert = np.empty_like(root)
        for of, timing in zip(rows.values(), second, strict=True):
            expert[of] = timing.embeddings
        z = await self._timed(
            record, "fuse", lambda: fuse(cascade, mode, concatenate_picked(root, expert, chosen, len(cascade.experts)))
        )
        return Passed(z, chosen, list(dict.fromkeys([*warnings, *more])))

    @asynccontextmanager
    async def _hold(self, record: Record, stage: str, *digests: str) -> AsyncIterator[list[str]]:
        began = time.perf_counter()
        async with self._library.hold(*digests) as warnings:
            record.stages[stage] = time.perf_counter() - began
            yield warnings

    async def _timed(self, record: Record, stage: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        record.stages[stage] = time.perf_counter() - began
        return done

    def _tell(self, record: Record, prefix: str, timing: Timing) -> None:
        self._heard(timing.queue_s)
        stages = {"queue": timing.queue_s, "swap": timing.swap_s, "forward": timing.forward_s}
        record.stages |= {f"{prefix}{name}": seconds for name, seconds in stages.items()}
