"""What an ingress sends to a replica beside the pixels, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.embedder import Done, Through


@dataclass(frozen=True)
class Call:
    """One request's images through what its name meant when the ingress resolved it.

    Args:
        fingerprint: of the backbone that the ingress speaks for.
        left_s: seconds until the client's deadline.
        avoid: replicas that refused it already.
        who: who asks, for fair shares.
    """

    through: Through
    fingerprint: str
    left_s: float
    request_id: str
    avoid: tuple[str, ...] = ()
    who: str = ""

    @property
    def digest(self) -> str | None:
        """What the replica should hold; None for the untouched backbone."""
        return self.through.cascade or self.through.mask


@dataclass(frozen=True)
class Embedded:
    """The embeddings, and the seconds that each stage took on the replica."""

    done: Done
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Refused:
    """Why a replica did not embed. `elsewhere`: another replica may be able to."""

    replica: str
    error: Exception
    elsewhere: bool = False
