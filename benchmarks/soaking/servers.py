"""Servers of a world's backbone on one registry, with the keys that its clients have."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.redis_server import free_port
from benchmarks.server import Process, process
from benchmarks.soaking.hostile import KEY
from benchmarks.soaking.traffic import ADMIN, READER
from benchmarks.soaking.world import World


@contextlib.contextmanager
def servers(world: World, registry: str, n: int, folder: Path) -> Iterator[list[Process]]:
    """So many, all ready; their logs are in the folder."""
    smn = Path(sys.executable).parent / "smn"
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(n):
            port = free_port()
            words = [str(smn), "serve", *world.flags, "--registry", registry, "--port", str(port), "--device", "cpu"]
            words += ["--admin-keys", ADMIN, "--api-keys", f"{READER},{KEY}", "--threads", "1", "--slots", "4"]
            log = folder / f"server-{number + 1}.log"
            found.append(stack.enter_context(process(words, port, "/readyz", log)))
        yield found
