"""Whose turn it is: those who wait share alike, however much each of them asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Place(Generic[T]):
    """A place of the path: further places, in the order of their turns, or at its end the things that wait."""

    places: dict[Hashable, _Place[T]] = field(default_factory=dict)
    things: deque[T] = field(default_factory=deque)


class Turns(Generic[T]):
    """A queue that goes round: one thing of each client, of its requests one in turn, of a request in order."""

    def __init__(self) -> None:
        self._top: _Place[T] = _Place()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, path: tuple[Hashable, ...], thing: T) -> None:
        """Let a thing wait for the turn of its path: client, request."""
        place = self._top
        for name in path:
            place = place.places.setdefault(name, _Place())
        place.things.append(thing)
        self._count += 1

    def pop(self) -> T:
        """Take the thing whose turn it is; the places on its path come last then.

        Raises:
            IndexError: nothing waits.
        """
        place, way = self._top, list[tuple[_Place[T], Hashable]]()
        while place.places:
            name = next(iter(place.places))
            way.append((place, name))
            place = place.places[name]
        thing = place.things.popleft()
        self._count -= 1
        for above, name in reversed(way):
            taken = above.places.pop(name)
            if taken.places or taken.things:
                above.places[name] = taken
        return thing

    def drop(self, path: tuple[Hashable, ...]) -> None:
        """Forget what waits on a path."""
        way = [self._top]
        for name in path:
            if name not in way[-1].places:
                return
            way.append(way[-1].places[name])
        self._count -= len(way[-1].things)
        way[-1].things.clear()
        for above, name in zip(way[-2::-1], path[::-1], strict=True):
            if not (above.places[name].places or above.places[name].things):
                del above.places[name]
