"""A bar for those who ask for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smn_core.given import Images, count_of


@contextmanager
def counting(images: Images, progress: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that is called with how many more images are done; with `progress` it draws a bar."""
    if not progress:
        yield lambda _: None
        return
    from smn_core.verbs.show import images_progress

    with images_progress(count_of(images)) as count:
        yield count
