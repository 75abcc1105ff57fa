"""What flash-attn's arguments mean to pyrope.torch."""

from typing import Any

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import rope_of


def rope_of_tables(q: torch.Tensor, q_heads: int, k_heads: int, rotary_dim: int, interleaved: bool) -> Any:
    """With tables of q's dtype."""
    shape = q.shape[-1], q_heads, k_heads, rotary_dim
    return rope_of(*shape, not interleaved, q.dtype, q.device.type, angle="cos_sin", cos_sin_dtype=q.dtype)


def sizes_of(x: torch.Tensor, cu_seqlens: torch.Tensor | None, max_seqlen: int | None) -> tuple[int, int]:
    """Sequences, and the length of the longest."""
    if cu_seqlens is None:
        return x.shape[0], x.shape[1]
    assert max_seqlen is not None, "If cu_seqlens is passed in, then max_seqlen must be passed"
    return cu_seqlens.shape[0] - 1, max_seqlen


def tables_of(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cu_seqlens: torch.Tensor | None, max_seqlen: int | None
) -> dict[str, Any]:
    """Tables that fit x: those that require grad as constants, as flash-attn has them."""
    _, seqlen = sizes_of(x, cu_seqlens, max_seqlen)
    assert sin.shape == cos.shape
    assert cos.shape[1] * 2 <= x.shape[-1], "rotary_dim must be <= headdim"
    assert cos.shape[0] >= seqlen, "seqlen_ro must be >= seqlen"
    assert cos.dtype == sin.dtype, f"cos and sin must have the same dtype, got {cos.dtype} and {sin.dtype}"
    assert x.dtype == cos.dtype, f"Input and cos/sin must have the same dtype, got {x.dtype} and {cos.dtype}"
    return {"cos": cos.detach().contiguous(), "sin": sin.detach().contiguous()}


def places_of(
    x: torch.Tensor,
    rows: int | None,
    seqlen_offsets: int | torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    max_seqlen: int | None,
) -> dict[str, Any]:
    """Layout and positions. rows: of the tables, None without."""
    batch, seqlen = sizes_of(x, cu_seqlens, max_seqlen)
    if isinstance(seqlen_offsets, torch.Tensor):
        assert seqlen_offsets.shape == (batch,)
        assert seqlen_offsets.dtype in [torch.int32, torch.int64]
    else:
        assert rows is None or seqlen_offsets + seqlen <= rows
    if cu_seqlens is None:
        if isinstance(seqlen_offsets, torch.Tensor):
            return {"positions": seqlen_offsets[:, None] + torch.arange(seqlen, device=x.device)}
        return {"offset": seqlen_offsets}
    places = {"layout": "thd", "indptr": cu_seqlens}
    if isinstance(seqlen_offsets, torch.Tensor):
        places["offsets"] = seqlen_offsets.to(cu_seqlens.dtype).contiguous()
    elif seqlen_offsets:
        places["offsets"] = torch.full((batch,), seqlen_offsets, dtype=cu_seqlens.dtype, device=x.device)
    return places


def turn_(rope: pyrope.Rope, q: torch.Tensor | None, k: torch.Tensor | None, **arguments: Any) -> None:
    """In place, whatever autograd thinks of it; of any strides."""
    with torch.no_grad():
        dense = [x.contiguous() if x is not None and x.stride(-1) != 1 else x for x in (q, k)]
        pyrope.torch.apply_(rope, *dense, **arguments)
        for x, y in zip((q, k), dense, strict=True):
            if x is not None and y is not None and y is not x:
                x.copy_(y)
