"""What the drop-ins for training share: rotation, with gradients, by rows of cosines and sines that the caller has."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

import pyrope
import pyrope.torch
from pyrope.torch._functions import refuse_grad
from pyrope.torch._layouts import Layout
from pyrope.torch._operators import call_apply
from pyrope.torch._specs import spec_of

Tensors: TypeAlias = list[Any]  # q and k, or one of them; None for what was None
Apply = Callable[..., Tensors]


def applied(make: Callable[..., pyrope.Rope]) -> Apply:
    """pyrope.torch.apply by the Rope that a function makes of numbers, text and dtypes, its first argument.

    The function runs once. While dynamo traces, its Rope is the text that the operator takes: dynamo neither follows
    how a Rope is made nor holds one that it had no part in.
    """
    cached = functools.lru_cache(maxsize=256)(make)

    @torch.compiler.assume_constant_result
    def spec(*arguments: Any) -> str:
        return spec_of(cached(*arguments))

    def apply(
        arguments: tuple[Any, ...], q: torch.Tensor | None, k: torch.Tensor | None, layout: Layout, **options: Any
    ) -> Tensors:
        if not torch.compiler.is_compiling():
            return list(pyrope.torch.apply(cached(*arguments), q, k, layout=layout, **options))
        refuse_grad(options, "which has no gradient")
        outs = call_apply(spec(*arguments), layout, {"q": q, "k": k}, options)
        return [outs.get("q"), outs.get("k")]

    return apply


@applied
def apply_by_rows(
    head_dim: int, q_heads: int, k_heads: int, rotary_dim: int, rotary_offset: int, pairing: str, dtype: Any,
    cos_sin_dtype: Any, device: str,
) -> pyrope.Rope:  # fmt: skip
    """By rows of cosines and sines."""
    options: dict[str, Any] = {"rotary_dim": rotary_dim, "rotary_offset": rotary_offset, "layout": pairing}
    options |= {"angle": "cos_sin", "cos_sin_dtype": cos_sin_dtype, "dtype": dtype, "device": device}
    return pyrope.FusedRope(head_dim, q_heads, k_heads, **options)


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
    xs: tuple[torch.Tensor | None, ...], cos: torch.Tensor, sin: torch.Tensor, layout: Layout, places: dict[str, Any],
    *, pairing: str = "neox", rotary_offset: int = 0, inverse: bool = False,
) -> Tensors:  # fmt: skip
    """New tensors, with gradients, of q and k or of one of them; cos and sin are rows of one value a pair.

    places : ``positions`` and the like of :func:`pyrope.torch.apply`: which row is a token's
    """

    def turn(q: torch.Tensor | None, k: torch.Tensor | None, q_heads: int, k_heads: int) -> Tensors:
        x = q if q is not None else k
        assert x is not None
        shape = x.shape[-1], q_heads, k_heads, 2 * cos.shape[-1], rotary_offset
        rope = (*shape, pairing, x.dtype, cos.dtype, x.device.type)
        return apply_by_rows(rope, q, k, layout, inverse=inverse, cos=cos, sin=sin, **places)

    return split_or_not(turn, xs, layout.index("h"))


def together(q: torch.Tensor, k: torch.Tensor, heads: int) -> bool:
    """Whether one call takes both."""
    shapes = ((*x.shape[:heads], *x.shape[heads + 1 :]) for x in (q, k))
    return q.dtype == k.dtype and next(shapes) == next(shapes)


def first_half(x: torch.Tensor) -> torch.Tensor:
    return x[..., : x.shape[-1] // 2]


def every_second(x: torch.Tensor) -> torch.Tensor:
    return x[..., ::2]


def deinterleave(x: torch.Tensor) -> torch.Tensor:
    """Neighbours to halves."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def interleave(x: torch.Tensor) -> torch.Tensor:
    """Halves to neighbours."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def rows_of_pairs(table: torch.Tensor, take: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``[rows, pairs]`` of ``[.., width]``, with one value for each pair, where the core can read it.

    The core reads rows of any stride whose elements are contiguous: halves are a view, values of other orders a copy.
    """
    taken = take(table)
    if taken.stride(-1) != 1:
        taken = taken.contiguous()
    return taken.reshape(-1, taken.shape[-1])


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
