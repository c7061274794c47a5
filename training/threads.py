"""How many threads a verb's arithmetic takes."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def limit_threads(threads: int) -> None:
    """Set the threads of torch, numpy and scikit-learn; 0 leaves them. The latter crawl where others want the cores."""
    if threads:
        torch.set_num_threads(threads)
        threadpool_limits(threads)
