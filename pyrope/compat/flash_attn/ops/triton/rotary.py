"""flash_attn.ops.triton.rotary."""

import torch

import pyrope.torch
from pyrope.compat.flash_attn._turn import places_of, rope_of_tables, tables_of, turn_


def apply_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> torch.Tensor:
    """Rotate the first ``2 * cos.shape[1]`` elements of every head; without a gradient.

    Parameters
    ----------
    x : torch.Tensor
        ``[batch, seqlen, heads, head_dim]``, or ``[tokens, heads, head_dim]`` with ``cu_seqlens``.
    cos, sin : torch.Tensor
        ``[rows, rotary_dim / 2]`` of x's dtype, a row a position. A token behind the last is returned as it is.
    seqlen_offsets : int or torch.Tensor
        Position of the first token of every sequence; ``[batch]`` int32 or int64.
    cu_seqlens, max_seqlen : torch.Tensor and int, optional
        ``[batch + 1]``: where sequences begin in x, and where the last ends; and the longest.
    interleaved : bool
        Pairs are neighbours (GPT-J) instead of halves (NeoX).
    inplace : bool
        Write x, and return it.
    conjugate : bool
        The other way round.

    Raises
    ------
    AssertionError
        As flash-attn does, of shapes and dtypes that do not fit.
    """
    tables = tables_of(x, cos, sin, cu_seqlens, max_seqlen)
    places = places_of(x, cos.shape[0], seqlen_offsets, cu_seqlens, max_seqlen)
    rope = rope_of_tables(x, x.shape[-2], 0, 2 * cos.shape[1], interleaved)
    if inplace:
        turn_(rope, x, None, inverse=conjugate, **places, **tables)
        return x
    with torch.no_grad():
        (out, _) = pyrope.torch.apply(rope, x, inverse=conjugate, **places, **tables)
    assert out is not None
    return out
