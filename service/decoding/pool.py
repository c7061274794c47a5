"""Decodes the images of requests in worker processes, in turn, and kills the workers of what nobody waits for."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
from jaxtyping import UInt8
from numpy import ndarray

from service.decoding.lanes import Batch, Job, Lanes
from service.decoding.parent import FORKER
from service.decoding.worker import ANSWER, ASKED, DONE, MAX_TEXT_BYTES, SLOW, STARTED, TOO_LARGE
from smn_core.errors import ImageTooLarge, InvalidImage, Unavailable

QUICK_CPU_S = 0.5
"""Processor time of an image in the quick lane: twice what one is expected to take, since cores differ."""
LETTING_GO_S = 0.1
"""How long a worker may go on with an image that nobody waits for: a quick one ends by itself, which is cheaper."""
STARTED_WITHIN_S = 60.0
AGAIN_AFTER_S = 0.5
"""Pause after a worker that ended before it had started, so that a machine without memory is not kept busy."""

SEND_BYTES = 2**20
"""What a socket may hold of an image, as far as the system allows, so that a large one is sent in few parts."""

log = structlog.get_logger("smn.decoding")


@dataclass(eq=False)
class Worker:
    """A process as the server sees it. It is `started` once it has said so, and has a job while it decodes."""

    channel: socket.socket
    shared: mmap.mmap
    pid: int | None = None
    job: Job | None = None
    received: bytearray = field(default_factory=bytearray)
    unsent: list[memoryview] = field(default_factory=list)


class DecodePool:
    """Lives on one event loop, from `start` to `close`.

    Args:
        preprocess: timm's, of the backbone.
        max_pixels: of an image.
        n_workers: processes; at least two, of which one is always there for quick images.
        memory_bytes: that the decode of one image may take.
        cpu_s: processor time that the decode of one image may take.
        count_killed: called when a decode was ended by a limit, or because nobody waited for it any more.
    """

    def __init__(
        self,
        preprocess: Mapping[str, Any],
        max_pixels: int,
        *,
        n_workers: int,
        memory_bytes: int,
        cpu_s: float,
        count_killed: Callable[[], object] = lambda: None,
    ) -> None:
        self._wanted = {"preprocess": dict(preprocess), "max_pixels": max_pixels, "memory_bytes": memory_bytes}
        self._input_px: tuple[int, int] = tuple(preprocess["input_size"][-2:])
        self._n_workers, self._cpu_s, self._count_killed = max(2, n_workers), cpu_s, count_killed
        self._lanes = Lanes()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start the workers; returns when the first of them is there.

        Raises:
            Unavailable: none has started.
        """
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        for _ in range(self._n_workers):
            self._fork()
        try:
            await asyncio.wait_for(self._ready, STARTED_WITHIN_S)
        except TimeoutError as error:
            raise Unavailable("the processes that decode images do not start: see what they wrote to stderr") from error

    def close(self) -> None:
        """End all workers. From any thread, once the event loop has ended."""
        loop, self._loop = self._loop, None
        for worker in self._workers:
            if loop is not None and not loop.is_closed():
                loop.remove_reader(worker.channel)
                loop.remove_writer(worker.channel)
            if worker.job is not None and worker.pid is not None:
                FORKER.kill(worker.pid)
            _let_go(worker)  # one that waits reads that nobody is there
        self._workers.clear()
        self._idle.clear()

    @property
    def pids(self) -> set[int]:
        """The process ids of the workers that have started."""
        return {worker.pid for worker in self._workers if worker.pid is not None}

    async def decode(self, client: Hashable, images: Sequence[bytes]) -> UInt8[ndarray, "n h w 3"]:
        """The pixels of the images of one request. `client` shares the workers with all others alike.

        When the caller no longer waits, what was begun is killed.

        Raises:
            InvalidImage, ImageTooLarge: with the number of the image.
        """
        if not images:
            return np.empty((0, *self._input_px, 3), np.uint8)
        batch = Batch(client, len(images), self._input_px)
        for number, data in enumerate(images):
            self._lanes.add(Job(batch, number, data))
        self._dispatch()
        try:
            await batch.done
        finally:
            batch.wanted.clear()
            self._forget(batch)
        if batch.error is not None:
            raise batch.error
        return batch.pixels

    def _forget(self, batch: Batch) -> None:
        self._lanes.drop(batch)
        for worker in self._workers:
            if worker.job is not None and worker.job.batch is batch and self._loop is not None:
                self._loop.call_later(LETTING_GO_S, self._kill, worker, worker.job)

    def _kill(self, worker: Worker, job: Job) -> None:
        """Kill a worker that still has this job."""
        if worker.job is job and worker in self._workers and worker.pid is not None:
            self._count_killed()
            FORKER.kill(worker.pid)

    def _dispatch(self) -> None:
        """Give every worker that waits the image whose turn it is."""
        while self._idle:
            n_slow = sum(worker.job is not None and worker.job.slow for worker in self._workers)
            job = self._lanes.take(n_slow, self._n_workers - 1)
            if job is None:
                return
            self._begin(self._idle.pop(), job)

    def _begin(self, worker: Worker, job: Job) -> None:
        worker.job = job
        head = ASKED.pack(len(job.data), self._cpu_s if job.slow else QUICK_CPU_S, not job.slow)
        worker.unsent = [memoryview(head), memoryview(job.data)]
        self._send(worker)
        if worker.unsent:
            assert self._loop is not None
            self._loop.add_writer(worker.channel, self._send_rest, worker)

    def _send(self, worker: Worker) -> None:
        """Send what the socket takes now."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # the end of a worker is read, not sent
            sent = worker.channel.sendmsg(worker.unsent)
            while worker.unsent and sent >= len(worker.unsent[0]):
                sent -= len(worker.unsent.pop(0))
            if worker.unsent:
                worker.unsent[0] = worker.unsent[0][sent:]

    def _send_rest(self, worker: Worker) -> None:
        self._send(worker)
        if not worker.unsent:
            assert self._loop is not None
            self._loop.remove_writer(worker.channel)

    def _read(self, worker: Worker) -> None:
        try:
            received = worker.channel.recv(ANSWER.size + MAX_TEXT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._ended(worker)
            return
        worker.received += received
        if len(worker.received) < ANSWER.size:
            return
        kind, n_bytes = ANSWER.unpack_from(worker.received)
        if len(worker.received) < ANSWER.size + n_bytes:
            return
        text = worker.received[ANSWER.size :].decode(errors="replace")
        worker.received.clear()
        self._answered(worker, kind, text)
        self._dispatch()

    def _answered(self, worker: Worker, kind: int, text: str) -> None:
        if kind == STARTED:
            worker.pid = int(text)
            assert self._ready is not None
            if not self._ready.done():
                self._ready.set_result(None)
            self._idle.append(worker)
            return
        job, worker.job = worker.job, None
        assert job is not None
        if not job.slow:  # else it ends, with its memory
            self._idle.append(worker)
        if not job.wanted:
            return
        if kind == DONE:
            batch = job.batch
            batch.pixels[job.number] = np.frombuffer(worker.shared, np.uint8).reshape(batch.pixels.shape[1:])
            batch.settle(job.number)
        elif kind == SLOW:
            self._lanes.add_slow(job)
        else:
            job.refuse(ImageTooLarge if kind == TOO_LARGE else InvalidImage, text)

    def _ended(self, worker: Worker) -> None:
        """A worker is gone: its slow image done, killed by a limit or by us, or crashed. Another takes its place."""
        assert self._loop is not None
        self._loop.remove_reader(worker.channel)
        self._loop.remove_writer(worker.channel)
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        job, worker.job = worker.job, None
        if job is not None and job.wanted:
            if job.slow:
                self._count_killed()
                log.warning("decode ended", cpu_s=self._cpu_s, bytes=len(job.data))
                job.refuse(ImageTooLarge, f"its decode failed, or took more than {self._cpu_s:g} s of processor time")
            else:
                self._lanes.add_slow(job)
        _let_go(worker)
        if worker.pid is None:
            self._loop.call_later(AGAIN_AFTER_S, self._fork)
        else:
            self._fork()
        self._dispatch()

    def _fork(self) -> None:
        """Add a worker. It can decode once it says that it has started."""
        if self._loop is None:
            return
        try:
            worker = self._new_worker()
        except OSError as error:  # no descriptor, no process, no memory is left
            log.warning("decode worker", error=str(error))
            self._loop.call_later(AGAIN_AFTER_S, self._fork)
            return
        self._workers.add(worker)
        self._loop.add_reader(worker.channel, self._read, worker)

    def _new_worker(self) -> Worker:
        memory = os.memfd_create("smn-pixels")
        ours, theirs = socket.socketpair()
        try:
            height, width = self._input_px
            os.ftruncate(memory, height * width * 3)
            worker = Worker(ours, mmap.mmap(memory, height * width * 3))
            FORKER.fork(self._wanted, [theirs.fileno(), memory])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return worker


def _let_go(worker: Worker) -> None:
    worker.channel.close()
    worker.shared.close()
