"""Labels as answers: an embedding, then the classifier of its mask or cascade.

The classifier belongs to the file that a reference meant; the weights that embed are shared by all files with equal
bits (smn_core/engine).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import Request
from jaxtyping import Float32
from numpy import ndarray

from service.bodies import Images
from service.embedding import Embedding, Wanted, embed, in_time
from service.errors import Rejected
from service.security import Caller
from service.server import Server
from smn_core.labels import most_probable, probabilities
from smn_core.mask import Head

MOST_PROBABILITIES = 1_000_000
"""Of one answer: images times the classes that each is told."""


async def classify(
    server: Server,
    request: Request,
    caller: Caller,
    read: Callable[[], Awaitable[Images]],
    wanted: Wanted,
    top: int | None,
) -> tuple[Embedding, list[dict[str, Any]]]:
    """Embed what `read` finds, and label it. To be called inside `begun`.

    Raises:
        Rejected: as `embed`; 409, no classifier; 400, an answer with too many probabilities.
        others: as `embed`.
    """
    found = await embed(server, request, caller, read, wanted)
    head = found.head
    assert head is not None  # `embed` refuses a request for labels without one
    n_told = min(top or len(head.classes), len(head.classes)) * len(found.z)
    if n_told > MOST_PROBABILITIES:
        message = (
            f"the answer would have {n_told:,} probabilities, at most {MOST_PROBABILITIES:,}: say top, or send less"
        )
        raise Rejected(400, "too_many_labels", message, "top")
    loop = asyncio.get_running_loop()
    return found, await in_time(
        server, request, lambda: loop.run_in_executor(server.decoders, tell_labels, head, found.z, top)
    )


def tell_labels(head: Head, z: Float32[ndarray, "n d"], top: int | None) -> list[dict[str, Any]]:
    """One table an image: the `top` most probable classes in order, or all."""
    p = probabilities(head, z)
    order = most_probable(p, top)
    probs = np.take_along_axis(p, order, axis=1).astype(np.float32)
    return [
        {
            "index": index,
            "label": head.classes[chosen[0]],
            "probs": probs[index],
            "classes": [head.classes[c] for c in chosen],
            "num_classes": len(head.classes),
        }
        for index, chosen in enumerate(order.tolist())
    ]
