"""Keeps every metric twice: with Prometheus for the process's own /metrics, and with Ray for the cluster's export.

A request of /metrics reaches one ingress of several, and replicas have no HTTP of their own. The whole is in Ray's
metrics, which every node exports with deployment and replica as tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from prometheus_client import Counter, Gauge, Histogram
from ray.serve import metrics

from service.telemetry import SECONDS, Instruments


class Both:
    """One metric in both systems: every call goes to both."""

    def __init__(self, here: Any, there: Any, names: Sequence[str] = (), values: Sequence[str] = ()) -> None:
        self._here, self._there, self._names, self._values = here, there, names, values

    def labels(self, *values: str) -> Both:
        return Both(self._here.labels(*values), self._there, self._names, values)

    def inc(self, amount: float = 1.0) -> None:
        self._here.inc(amount)
        self._there.inc(amount, tags=self._tags)

    def set(self, value: float) -> None:
        self._here.set(value)
        self._there.set(float(value), tags=self._tags)

    def observe(self, value: float) -> None:
        self._here.observe(value)
        self._there.observe(value, tags=self._tags)

    @property
    def _tags(self) -> dict[str, str]:
        return dict(zip(self._names, self._values, strict=True))


class Doubled(Instruments):
    """Makes the instruments of one replica; inside a Ray Serve deployment."""

    def counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Counter:
        there = metrics.Counter(name.removesuffix("_total"), told, _tags(labels))
        return cast(Counter, Both(super().counter(name, told, labels), there, labels))

    def gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Gauge:
        there = metrics.Gauge(name, told, _tags(labels))
        return cast(Gauge, Both(super().gauge(name, told, labels), there, labels))

    def histogram(
        self, name: str, told: str, buckets: Sequence[float] = SECONDS, labels: Sequence[str] = ()
    ) -> Histogram:
        there = metrics.Histogram(name, told, list(buckets), _tags(labels))
        return cast(Histogram, Both(super().histogram(name, told, buckets, labels), there, labels))


def _tags(labels: Sequence[str]) -> Any:
    return tuple(labels)  # Ray's signatures say a tuple of one
