"""pyrope.torch.attention, and the operator torch.ops.pyrope.attention that torch.compile and torch.export record."""

from typing import Any

import torch

import pyrope
from pyrope.torch._functions import refuse_grad, traced
from pyrope.torch._launch import current_device, current_stream
from pyrope.torch._layouts import DIMENSIONS, Layout, check_layout, check_rows, given
from pyrope.torch._operators import library
from pyrope.torch._specs import attention_of, constant_attention_spec_of

COUNTERS = 256  # bytes at the head of a workspace that are zero between calls

library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? positions, Tensor? sinks, Tensor? q_indptr, Tensor? k_indptr, "
    "SymInt offset, SymInt max_q_tokens, SymInt max_k_tokens, bool q_rotated, bool k_rotated, str layout, "
    "str attention) -> (Tensor, Tensor)"
)


def sequences_first(x: torch.Tensor, layout: str) -> torch.Tensor:
    """[sequences, tokens, heads, dim], or of "thd" [tokens, heads, dim]: a view."""
    if layout == "bhsd":
        return x.transpose(1, 2)
    return x.transpose(0, 1) if layout == "sbhd" else x


def results_like(attention: pyrope.RopeAttention, q: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse, not yet written."""
    out = torch.empty_like(q) if q.shape[-1] == attention.v_head_dim else q.new_empty(
        (*q.shape[:-1], attention.v_head_dim)
    )  # fmt: skip
    sizes = dict(zip(layout, q.shape, strict=True))
    shape = (sizes["h"], sizes["t"]) if layout == "thd" else (sizes["b"], sizes["h"], sizes["s"])
    return out, torch.empty(shape, dtype=torch.float32, device=q.device)


def compute(attention: pyrope.RopeAttention, layout: str, q: Any, k: Any, v: Any, options: dict[str, Any]) -> Any:
    """out and lse, of tensors that autograd need not see."""
    index = q.get_device()
    if index >= 0 and index != current_device():
        with torch.cuda.device(index):
            return compute(attention, layout, q, k, v, options)
    out, lse = results_like(attention, q, layout)
    tensors = [sequences_first(x.detach(), layout) for x in (q, k, v, out)]
    if index >= 0:
        ragged = "q_indptr" in options
        size = attention.workspace_size(
            tensors[0].shape[0 if layout == "thd" else 1], tensors[1].shape[0 if layout == "thd" else 1],
            num_sequences=1 if ragged or layout == "thd" else tensors[0].shape[0],
            q_rotated=options["q_rotated"], k_rotated=options["k_rotated"],
        )  # fmt: skip
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        workspace[:COUNTERS].zero_()
        options = {**options, "workspace": workspace, "stream": current_stream(index)}
    attention.apply(*tensors, lse=lse, **options)
    return out, lse


def options_of(positions: Any, sinks: Any, q_indptr: Any, k_indptr: Any, offset: int, max_q_tokens: int,
               max_k_tokens: int, q_rotated: bool, k_rotated: bool) -> dict[str, Any]:  # fmt: skip
    """The options of RopeAttention.apply that a call has. Of ragged sequences the longest are 0 where not known."""
    options = given({"positions": positions, "sinks": sinks, "q_indptr": q_indptr, "k_indptr": k_indptr})
    options |= {"offset": offset, "q_rotated": q_rotated, "k_rotated": k_rotated}
    if q_indptr is not None:
        options["max_q_tokens"] = max_q_tokens
    if k_indptr is not None:
        options["max_k_tokens"] = max_k_tokens
    return options


def _attention(q: Any, k: Any, v: Any, *arguments: Any) -> Any:
    *options, layout, spec = arguments
    return compute(attention_of(spec), layout, q, k, v, options_of(*options))


def _attention_fake(q: Any, k: Any, v: Any, *arguments: Any) -> Any:
    return results_like(attention_of(arguments[-1]), q, arguments[-2])


library.impl("attention", _attention, "CompositeExplicitAutograd")
torch.library.register_fake("pyrope::attention", _attention_fake, lib=library)


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
    RuntimeError
        A tensor requires grad: there is no gradient yet.
    """
    if layout not in DIMENSIONS:
        check_layout(layout)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not (isinstance(x, torch.Tensor) and x.ndim == len(layout)):
            check_rows(name, x, layout)
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must have the dimensions {layout}")
    if layout != "thd" and q_indptr is not None:
        raise ValueError("q_indptr: only allowed with layout='thd'; a batch is not ragged")
    if torch.is_grad_enabled():
        refuse_grad({"q": q, "k": k, "v": v, "sinks": sinks}, "and attention has no gradient yet; use torch.no_grad()")
    if positions is not None and positions.ndim == 1 and layout != "thd":
        positions = positions.unsqueeze(0)  # for every sequence
    longest = max_q_tokens or 0, max_k_tokens or 0
    arguments = (positions, sinks, q_indptr, k_indptr, offset, *longest, q_rotated, k_rotated)
    if traced(q):
        spec = constant_attention_spec_of(attention)
        results = torch.ops.pyrope.attention.default(q, k, v, *arguments, layout, spec)
    else:
        results = compute(attention, layout, q, k, v, options_of(*arguments))
    return tuple(results) if return_lse else results[0]
