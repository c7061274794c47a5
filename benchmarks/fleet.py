"""A discrete-event model of replicas that share many masks: placement, batches, tiers of memory, cold loads, a loss.

A request is one image through one mask. It goes to a replica, waits there for its mask if that is not on the device,
then for a batch: the oldest whose masks are ready, up to the batch size, as soon as the engine is free. A mask is on
the device, else in the replica's host cache, else in Redis; every tier forgets the least recently used. Loads of a
replica run on two threads, one load for all who wait, and share Redis's link with those of all other replicas.

What is left out: the network between client and replica, decode (a bound of its own, by cores), and the spread of
service times, which are taken as constant. Built on simpy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

LOAD_THREADS = 2
SHARE, UNSHARED = 1.25, 2
"""Of the mean in work, and requests: what a replica may have before a mask's requests go to the next one."""
DEVICE, HOST, REDIS, JOINED = "device", "host", "redis", "joined"
"""Where a request found its mask; joined: on its way already, for another request."""

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Figures:
    """What a replica does and holds. Times are seconds of one replica, sizes bytes."""

    image_s: float
    """An image in a batch of one mask."""
    mixed_image_s: float
    """An image in a batch of several."""
    swap_s: float
    """Writing a slot; 0 for masks that need none."""
    fetch_latency_s: float
    prepare_s: float
    """Checking a mask's file and making the form that the engine wears."""
    file_bytes: int
    device_bytes: int
    """A mask as the engine keeps it."""
    slot_bytes: int
    """The weights of one slot."""
    redis_bytes_s: float
    batch: int = 32


@dataclass(frozen=True)
class Room:
    """What a replica has room for, in masks. `cores`: None, or all work of a replica shares so many."""

    device: int
    host: int = 0
    slots: int = 0
    cores: int | None = None


class Request(NamedTuple):
    """One image. `done` is set by whoever waits for the answer."""

    mask: int
    arrived_s: float
    done: simpy.Event | None


@dataclass
class Seen:
    """What happened: answers with their end and latency, tiers, loads and swaps."""

    end_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    tiers: Counter[str] = field(default_factory=Counter)
    loads_s: list[float] = field(default_factory=list)
    swaps: int = 0
    worn: int = 0
    """Segments that needed a slot, swapped or not."""
    moved: int = 0
    stale: int = 0
    """Copies of masks that a new version made useless."""
    busy_s: float = 0.0


class Recent:
    """A least-recently-used set of so many masks."""

    def __init__(self, room: int) -> None:
        self.room, self._masks = room, OrderedDict[int, None]()

    def touch(self, mask: int) -> bool:
        """Whether it is there; then it is the most recent."""
        if mask not in self._masks:
            return False
        self._masks.move_to_end(mask)
        return True

    def add(self, mask: int) -> None:
        if self.room == 0:
            return
        self._masks[mask] = None
        self._masks.move_to_end(mask)
        if len(self._masks) > self.room:
            self._masks.popitem(last=False)

    def drop(self, mask: int) -> bool:
        return self._masks.pop(mask, self) is None

    def __contains__(self, mask: int) -> bool:
        return mask in self._masks


class Replica:
    """One engine with its queue, its tiers and its two loading threads."""

    def __init__(self, env: simpy.Environment, figures: Figures, room: Room, link: simpy.Resource, seen: Seen) -> None:
        self._env, self._figures, self._seen = env, figures, seen
        self.device, self.host, self.slots = Recent(room.device), Recent(room.host), Recent(room.slots)
        self._ready: deque[Request] = deque()
        self._in_hand: list[Request] = []
        self._waiting: dict[int, list[Request]] = {}
        self._link, self._threads = link, simpy.Resource(env, LOAD_THREADS)
        self._cores = simpy.Resource(env, room.cores) if room.cores else None
        self._work = env.event()
        self.alive, self.in_work = True, 0
        env.process(self._serve())

    def submit(self, request: Request) -> None:
        mask = request.mask
        self.in_work += 1
        if self.device.touch(mask):
            self._seen.tiers[DEVICE] += 1
            self._enqueue(request)
        elif mask in self._waiting:
            self._seen.tiers[JOINED] += 1
            self._waiting[mask].append(request)
        else:
            self._seen.tiers[HOST if mask in self.host else REDIS] += 1
            self._waiting[mask] = [request]
            self._env.process(self._load(mask))

    def lose(self) -> list[Request]:
        """The replica dies; the requests that it had."""
        self.alive, self.in_work = False, 0
        had = [*self._in_hand, *self._ready, *(r for some in self._waiting.values() for r in some)]
        self._ready.clear()
        self._in_hand.clear()
        self._waiting.clear()
        return had

    def _enqueue(self, request: Request) -> None:
        self._ready.append(request)
        if not self._work.triggered:
            self._work.succeed()

    def _load(self, mask: int) -> Steps:
        with self._threads.request() as thread:
            yield thread
            if not self.host.touch(mask):
                self._seen.loads_s.append(self._env.now)
                yield self._env.timeout(self._figures.fetch_latency_s)
                with self._link.request() as link:
                    yield link
                    yield self._env.timeout(self._figures.file_bytes / self._figures.redis_bytes_s)
                self.host.add(mask)
            yield from self._on_a_core(self._figures.prepare_s)
        self.device.add(mask)
        for request in self._waiting.pop(mask, ()):
            self._enqueue(request)

    def _serve(self) -> Steps:
        while self.alive:
            if not self._ready:
                self._work = self._env.event()
                yield self._work
            n = min(self._figures.batch, len(self._ready))
            self._in_hand = [self._ready.popleft() for _ in range(n)]
            took_s = self._batch_s({request.mask for request in self._in_hand}, n)
            self._seen.busy_s += took_s
            yield from self._on_a_core(took_s)
            self.in_work -= len(self._in_hand)
            for request in self._in_hand:  # none where the replica died meanwhile
                self._seen.end_s.append(self._env.now)
                self._seen.latency_s.append(self._env.now - request.arrived_s)
                if request.done is not None:
                    request.done.succeed()
            self._in_hand = []

    def _batch_s(self, masks: set[int], n: int) -> float:
        figures, swaps = self._figures, 0
        if figures.swap_s:
            for mask in sorted(masks):
                swaps += not self.slots.touch(mask)
                self.slots.add(mask)
            self._seen.swaps += swaps
            self._seen.worn += len(masks)
        return n * (figures.image_s if len(masks) == 1 else figures.mixed_image_s) + swaps * figures.swap_s

    def _on_a_core(self, seconds: float) -> Steps:
        if self._cores is None:
            yield self._env.timeout(seconds)
            return
        with self._cores.request() as core:
            yield core
            yield self._env.timeout(seconds)


class Fleet:
    """Replicas behind a router.

    Args:
        popularity: [n_masks] the share of the traffic that each mask has.
        affinity: a request goes to the first replica in its mask's own order that has not more than its share in work,
            as service/on_ray/placement.py does it; else to any.
    """

    def __init__(
        self,
        figures: Figures,
        room: Room,
        n_replicas: int,
        popularity: NDArray[np.float64],
        *,
        affinity: bool,
        seed: int = 0,
    ) -> None:
        self.env, self.seen = simpy.Environment(), Seen()
        link = simpy.Resource(self.env, 1)
        self.replicas = [Replica(self.env, figures, room, link, self.seen) for _ in range(n_replicas)]
        self._rng, self._affinity, self._popularity = np.random.default_rng(seed), affinity, popularity
        # Rendezvous: every mask ranks the replicas in an order of its own; a replica's loss moves its masks alone.
        self._ranks = np.argsort(self._rng.random((len(popularity), n_replicas), np.float32), axis=1)

    def warm(self) -> None:
        """Fill the tiers as traffic would have: the hottest masks first, each where it is placed. Masks are by rank."""
        for number, replica in enumerate(self.replicas):
            placed = self._placed_on(number)
            for recent in (replica.slots, replica.device, replica.host):
                for mask in placed[: recent.room][::-1]:
                    recent.add(int(mask))

    def _placed_on(self, number: int) -> NDArray[np.int64]:
        if not self._affinity:
            return np.arange(len(self._ranks))
        n = self._ranks.shape[1]
        spread = np.clip(np.ceil(self._popularity * n), 1, n)  # as many as a mask's traffic fills
        first = np.arange(n) < spread[:, None]
        return np.flatnonzero(((self._ranks == number) & first).any(axis=1))

    def submit(self, request: Request) -> None:
        self._place(request.mask).submit(request)

    def _place(self, mask: int) -> Replica:
        alive = [replica for replica in self.replicas if replica.alive]
        if not self._affinity:
            return alive[int(self._rng.integers(len(alive)))]
        in_work = sum(replica.in_work for replica in alive)
        most = max(UNSHARED, ceil(SHARE * (in_work + 1) / len(alive)))
        for number in self._ranks[mask]:
            replica = self.replicas[number]
            if replica.alive and replica.in_work < most:
                return replica
        return min(alive, key=lambda replica: replica.in_work)

    def open_loop(self, masks: Iterable[int], gaps_s: Iterable[float]) -> None:
        """Requests that come whether or not earlier ones were answered."""

        def arrive() -> Steps:
            for mask, gap_s in zip(masks, gaps_s, strict=False):
                yield self.env.timeout(gap_s)
                self.submit(Request(mask, self.env.now, None))

        self.env.process(arrive())

    def closed_loop(self, masks: Iterator[int], clients: int) -> None:
        """Clients that wait for each answer before they ask again."""

        def ask() -> Steps:
            for mask in masks:
                done = self.env.event()
                self.submit(Request(mask, self.env.now, done))
                yield done

        for _ in range(clients):
            self.env.process(ask())

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        def wait() -> Steps:
            yield self.env.timeout(when_s)
            do()

        self.env.process(wait())

    def lose_one(self) -> None:
        """The first replica dies; what it had is asked again elsewhere, with its age."""
        had = self.replicas[0].lose()
        self.seen.moved = len(had)
        for request in had:
            self.submit(request)

    def change(self, mask: int) -> None:
        """A new version of a mask: what is held of the old one is of no use."""
        for replica in self.replicas:
            for tier in (replica.device, replica.host, replica.slots):
                self.seen.stale += tier.drop(mask)
