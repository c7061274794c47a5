"""Attention as two batched products with a softmax between them, in place of torch's fused kernel.

Which one is faster depends on the processor and the type: in bfloat16 the fused kernel converts, the products do not.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Attention
from torch import Tensor, nn


def attend(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], scale: float
) -> Float[Tensor, "b h n d"]:
    """`softmax(q @ k.T * scale) @ v` for every image and head."""
    n_images, n_heads, n, width = q.shape
    q, k, v = (part.reshape(n_images * n_heads, n, width) for part in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view(n_images, n_heads, n, width)


class AttentionByProducts(Attention):
    """What a timm `Attention` becomes. With a mask over positions it is timm's own again."""

    def forward(self, x: Tensor, *over: Any, **positions: Any) -> Tensor:
        if any(given is not None and given is not False for given in (*over, *positions.values())):
            return super().forward(x, *over, **positions)
        n_images, n, _ = x.shape
        qkv = self.qkv(x).reshape(n_images, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = attend(self.q_norm(q), self.k_norm(k), v, self.scale).transpose(1, 2).reshape(n_images, n, -1)
        return self.proj(self.norm(y))


def can_run_by_products(module: nn.Module) -> bool:
    """Whether a module is a timm `Attention` with nothing that `AttentionByProducts` leaves out."""
    parts = ("qkv", "q_norm", "k_norm", "norm", "proj", "num_heads", "head_dim", "scale")
    return (
        type(module) is Attention
        and "forward" not in module.__dict__
        and all(hasattr(module, part) for part in parts)
        and getattr(module, "gate", None) is None
    )
