"""What torch has to compute of a norm, whose backward the core lacks."""

from typing import Any

import torch

import pyrope


def neutral_weight(norm: pyrope.RMSNorm) -> float:
    """The weight that multiplies by 1."""
    return 1.0 - norm.weight_bias


def norm_gradients(rope: Any, layout: str, x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> tuple[Any, Any]:
    """Gradients of x and of the weight, of y = x / sqrt(mean(x^2) + eps) * w (arXiv:1910.07467, equation 4).

    With n = x / sqrt(...): dw = dy * n, dx = (dy * w - n * mean(dy * w * n)) / sqrt(...).
    """
    heads = layout.index("h")
    shape = x.shape
    x, dy = (t.unflatten(-1, (-1, rope.head_dim)) if x.ndim < len(layout) else t for t in (x, dy))  # [tokens, h * d]
    over = (heads, -1) if rope.norm.across_heads else (-1,)
    w = weight.float() + rope.norm.weight_bias
    if rope.norm.across_heads:
        w = w.view(*(-1 if i == heads else 1 for i in range(x.ndim - 1)), rope.head_dim)
    scale = torch.rsqrt(x.square().mean(over, keepdim=True) + rope.norm.eps)
    n, dn = x * scale, dy * w
    dx = (dn - n * (dn * n).mean(over, keepdim=True)) * scale
    kept_dims = (heads, x.ndim - 1) if rope.norm.across_heads else (x.ndim - 1,)
    dw = (dy * n).sum([i for i in range(x.ndim) if i not in kept_dims])
    return dx.reshape(shape), dw.reshape(weight.shape)
