"""The linear probe of the evaluation protocol; on a GPU where there is one, since a large set takes hours without.

Both ways minimise `C * sum of cross-entropies + |W|^2 / 2` over W, the bias free, by L-BFGS in float64. The least is
unique up to a constant in the bias, so both give the same labels but for ties within rounding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from numpy import ndarray

from training.evaluation.probes import PROBE_C, PROBE_ITERATIONS, linear

GRADIENT = 1e-4
"""Of the mean loss, where scikit-learn stops too."""
ROWS_AT_ONCE = 16_384


def predict(
    train: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], queries: Float32[ndarray, "m d"], device: torch.device
) -> Int64[ndarray, "m"]:
    """Predicted labels; on a CPU as `smn evaluate` finds them."""
    if device.type == "cpu" or len(np.unique(labels)) == 1:
        return linear(train, labels, queries)
    return predict_by_torch(train, labels, queries, device)


def predict_by_torch(
    train: Float32[ndarray, "n d"], labels: Int64[ndarray, "n"], queries: Float32[ndarray, "m d"], device: torch.device
) -> Int64[ndarray, "m"]:
    """The same by torch on any device."""
    present, numbers = np.unique(labels, return_inverse=True)
    x = torch.from_numpy(np.ascontiguousarray(train)).to(device)
    y = torch.from_numpy(numbers.reshape(-1).astype(np.int64)).to(device)
    weight = torch.zeros(x.shape[1], len(present), dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.zeros(len(present), dtype=torch.float64, device=device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_ITERATIONS, max_eval=2 * PROBE_ITERATIONS, tolerance_grad=GRADIENT,
        tolerance_change=0, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        solver.zero_grad()
        total = weight.square().sum() / (2 * PROBE_C * len(x))
        total.backward()
        for rows, wanted in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
            part = F.cross_entropy(rows.double() @ weight + bias, wanted, reduction="sum") / len(x)
            part.backward()
            total = total.detach() + part.detach()
        return total

    solver.step(loss)
    with torch.inference_mode():
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(device).split(ROWS_AT_ONCE)
        found = torch.cat([(rows.double() @ weight + bias).argmax(1) for rows in asked]).cpu().numpy()
    return present[found].astype(np.int64)
