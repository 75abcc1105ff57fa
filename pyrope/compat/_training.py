"""What the drop-ins for training share: rotation, with gradients, by rows of cosines and sines that the caller has."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.torch._layouts import Layout

Tensors: TypeAlias = list[Any]  # q and k, or one of them; None for what was None


def split_or_not(turn: Callable[..., Tensors], xs: tuple[torch.Tensor | None, ...], heads: int) -> Tensors:
    """Results of turn(q, k, heads of q, heads of k) for q and k, or one of them: in one call where that can be."""
    q, k = (*xs, None)[:2]
    if q is not None and k is not None and not together(q, k, heads):
        return [turn(q, None, q.shape[heads], 0)[0], turn(None, k, 0, k.shape[heads])[1]]
    counts = [0 if x is None else x.shape[heads] for x in (q, k)]
    return turn(q, k, *counts)[: len(xs)]


class InPlace(torch.autograd.Function):
    """A rotation of parts of x, which is written although it may be a leaf that requires grad."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, turn: Callable[[torch.Tensor, bool], None]) -> torch.Tensor:
        ctx.turn = turn
        turn(x, False)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        ctx.turn(grad, True)
        return grad, None


def rotate(
    xs: tuple[torch.Tensor | None, ...], rows: dict[str, Any], layout: Layout, places: dict[str, Any], *,
    neox: bool = True, columns: str = "pairs", rotary_offset: int = 0, inverse: bool = False,
    out_layout: str | None = None,
) -> Tensors:  # fmt: skip
    """New tensors, with gradients, of q and k or of one of them.

    rows : ``cos`` and ``sin``, or ``angles``, whose columns are of ``pairs`` or of ``elements``
    places : ``positions`` and the like of :func:`pyrope.torch.apply`: which row is a token's
    """
    first = next(iter(rows.values()))
    if not first.shape[-2]:  # and no tokens
        return [None if x is None else x.clone() for x in xs]
    options: dict[str, Any] = {"angle": "cos_sin" if "cos" in rows else "radians", "cos_sin_dtype": first.dtype}
    options |= {"cos_sin_columns": columns, "rotary_offset": rotary_offset, "out_layout": out_layout}
    rotary_dim = first.shape[-1] * (2 if columns == "pairs" else 1)

    def turn(q: torch.Tensor | None, k: torch.Tensor | None, q_heads: int, k_heads: int) -> Tensors:
        x = q if q is not None else k
        assert x is not None
        rope = rope_of(x.shape[-1], q_heads, k_heads, rotary_dim, neox, x.dtype, x.device.type, **options)
        return list(pyrope.torch.apply(rope, q, k, layout=layout, inverse=inverse, **rows, **places))

    return split_or_not(turn, xs, layout.index("h"))


def together(q: torch.Tensor, k: torch.Tensor, heads: int) -> bool:
    """Whether one call takes both."""
    shapes = ((*x.shape[:heads], *x.shape[heads + 1 :]) for x in (q, k))
    return q.dtype == k.dtype and next(shapes) == next(shapes)


def first_half(x: torch.Tensor) -> torch.Tensor:
    return x[..., : x.shape[-1] // 2]


def readable(table: torch.Tensor) -> torch.Tensor:
    """Where the core can read it: rows of any stride but 0, whose elements are contiguous."""
    strides = table.stride()
    return table if strides[-1] == 1 and 0 not in strides else table.contiguous()


def places_of_ragged(
    x: torch.Tensor, cu_seqlens: torch.Tensor, starts: torch.Tensor | None, cp_rank: int, cp_size: int
) -> dict[str, Any]:
    """Of ``[tokens, heads, dim]``, sequences behind one another; of ranks that have two chunks of each, zigzag.

    cu_seqlens : where sequences begin, of all ranks together
    starts : the position of each sequence's first token, 0 where None
    """
    if cp_size == 1:
        offsets = {} if starts is None else {"offsets": starts.to(cu_seqlens.dtype).contiguous()}
        return {"indptr": cu_seqlens, **offsets}
    ends = cu_seqlens // cp_size
    tokens = torch.arange(x.shape[0], device=x.device, dtype=ends.dtype)
    sequence = torch.searchsorted(ends, tokens, right=True).clamp(1, len(ends) - 1)
    place, half = tokens - ends[sequence - 1], (ends[sequence] - ends[sequence - 1]) // 2
    chunk = torch.where(place < half, cp_rank, 2 * (cp_size - 1) - cp_rank)
    return {"positions": torch.where(tokens < ends[-1], place + chunk * half, -1)}
