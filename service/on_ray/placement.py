"""Which replica a request goes to: one that holds its mask. A mask with much traffic is held by several.

Rendezvous hashing (Thaler and Ravishankar, 1998) orders the replicas for every digest: all ingresses agree without
telling each other, and a replica that comes or goes moves its own share of the masks alone. Loads are bounded
(consistent hashing with bounded loads, Mirrokni et al., 2018): the first in the order takes the request unless it has
more than its share in work, then the next. So a mask lives on one replica while that is enough for it, and spreads
over as many as its traffic needs. The untouched backbone is everywhere: it goes where the least is in work.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from hashlib import blake2b
from math import ceil

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from service.on_ray.call import Call

SHARE = 1.25
"""How much more than the mean a replica may have in work before a mask's requests go to the next one."""
UNSHARED = 2
"""Requests that a replica takes whatever the mean: one batch that runs, and one that gathers behind it."""


def by_digest(digest: str, replicas: Collection[str]) -> list[str]:
    """All replicas, in the order in which they should hold this digest."""
    return sorted(replicas, key=lambda replica: blake2b(f"{digest}|{replica}".encode(), digest_size=8).digest())


def in_order(digest: str | None, loads: Mapping[str, int], avoid: Collection[str] = ()) -> list[str]:
    """All replicas in the order in which to ask them. `loads` are requests in work; replicas to `avoid` come last.

    Replicas below their share of work come first, in the digest's order; then the others, the least loaded first.
    """
    bound = max(UNSHARED, ceil(SHARE * (sum(loads.values()) + 1) / max(1, len(loads))))
    if digest is None:
        shuffled = sorted(loads, key=lambda _: random.random())
        order = sorted(shuffled, key=loads.__getitem__)
    else:
        ranked = by_digest(digest, loads)
        within = [replica for replica in ranked if loads[replica] < bound]
        order = within + sorted((r for r in ranked if loads[r] >= bound), key=loads.__getitem__)
    return sorted(order, key=lambda replica: replica in avoid)


class HolderRouter(RequestRouter):
    """Chooses the replica of every request, in the ingress's process. Ray tells it the live replicas and their load."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in order, one a rank: Ray takes the first that has room."""
        call = pending_request.args[0] if pending_request is not None and pending_request.args else None
        digest, avoid = (call.digest, call.avoid) if isinstance(call, Call) else (None, ())
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # all were offered: wait before the next round
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        loads = {name: known.get(replica.replica_id) or 0 for name, replica in named.items()}
        return [[named[name]] for name in in_order(digest, loads, avoid)]
