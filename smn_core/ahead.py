"""Work done ahead in threads, and handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(
    jobs: Iterable[Callable[[], T]], n_threads: int, n_ahead: int, name: str = "smn-ahead"
) -> Generator[T, None, None]:
    """Yield what the jobs return, in their order, while later ones run in threads.

    Jobs are taken as they are needed, in the caller's thread, at most `n_ahead` beyond the one that is waited for: so
    there may be endlessly many. What a job raises is raised in its turn; then, or when the caller stops, no further
    job begins, and those that run are waited for.
    """
    coming = iter(jobs)
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix=name) as pool:
        try:
            while True:
                while len(ahead) <= n_ahead:
                    job = next(coming, None)
                    if job is None:
                        break
                    ahead.append(pool.submit(job))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
