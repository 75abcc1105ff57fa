"""pyrope.torch.attention."""

from typing import Any

import torch
from torch import is_grad_enabled

import pyrope
from pyrope.torch._attention_gradient import Attention
from pyrope.torch._attention_launch import compute, options_of
from pyrope.torch._functions import traced
from pyrope.torch._layouts import DIMENSIONS, Layout, check_layout, check_rows
from pyrope.torch._specs import constant_attention_spec_of


def attention(
    attention: pyrope.RopeAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: Layout = "bshd",
    positions: torch.Tensor | None = None,
    offset: int = 0,
    sinks: torch.Tensor | None = None,
    q_indptr: torch.Tensor | None = None,
    k_indptr: torch.Tensor | None = None,
    max_q_tokens: int | None = None,
    max_k_tokens: int | None = None,
    q_rotated: bool = False,
    k_rotated: bool = False,
    return_lse: bool = False,
) -> Any:
    """Rotate q and k on their way, and attend; torch.compile and torch.export trace it.

    Differentiable, once, in q, k, v and sinks, the logarithms too. Gradients have the same bits in every run with
    ``torch.use_deterministic_algorithms``.

    Parameters
    ----------
    attention : pyrope.RopeAttention
        Its Rope's dtype is that of q, k and v, its device theirs. Make it once.
    q, k, v : torch.Tensor
        In the layout, the last dimension contiguous. q may have more heads, and other tokens than k and v.
    layout : {"bshd", "sbhd", "bhsd", "thd"}
        As for :func:`apply`. ``thd``: one sequence, or ragged ones.
    positions : torch.Tensor, optional
        int32 or int64 ``[batch, seq]``, in every layout but ``thd``, or ``[seq]``; of that ``[tokens]``: where q's
        tokens stand, and k's where it is rotated here.
    offset : int
        Without positions: the position of the first key.
    sinks : torch.Tensor, optional
        ``[heads]`` float32: the logit of a key without a value.
    q_indptr, k_indptr : torch.Tensor, optional
        With ``thd``: int32 ``[sequences + 1]``, where each sequence begins and ends; default of the second: the first.
    max_q_tokens, max_k_tokens : int
        With them: at least the longest sequence's tokens.
    q_rotated, k_rotated : bool
        Whether q or k is rotated already, as keys of a cache are. k must be unless it has q's tokens.
    return_lse : bool
        Whether to return the logarithms of the softmaxes' sums too.

    Returns
    -------
    torch.Tensor or (torch.Tensor, torch.Tensor)
        In the layout, with ``v_head_dim`` elements a head; with ``return_lse`` and float32 ``[batch, heads, seq]``, of
        ``thd`` ``[heads, tokens]``.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.
    """
    if layout not in DIMENSIONS:
        check_layout(layout)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not (isinstance(x, torch.Tensor) and x.ndim == len(layout)):
            check_rows(name, x, layout)
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must have the dimensions {layout}")
    if layout != "thd" and q_indptr is not None:
        raise ValueError("q_indptr: only allowed with layout='thd'; a batch is not ragged")
    if positions is not None and positions.ndim == 1 and layout != "thd":
        positions = positions.unsqueeze(0)  # for every sequence
    values = (positions, sinks, q_indptr, k_indptr, offset, max_q_tokens or 0, max_k_tokens or 0, q_rotated, k_rotated)
    differentiable = is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, sinks))
    results: Any
    if traced(q):
        spec = constant_attention_spec_of(attention)
        results = torch.ops.pyrope.attention.default(q, k, v, *values, differentiable, layout, spec)
    elif differentiable:
        results = Attention.apply(attention, layout, q, k, v, *values)
    else:
        results = compute(attention, layout, q, k, v, options_of(values))
    return tuple(results[:2]) if return_lse else results[0]
