"""flashinfer.rope."""

from operator import index
from typing import Any

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import heads_of
from pyrope.compat.flashinfer._quantize import (
    mla_rope_quantize_fp8,
    rope_quantize_fp8,
    rope_quantize_fp8_append_paged_kv_cache,
)
from pyrope.compat.flashinfer._table import check_table

__all__ = [
    "apply_llama31_rope",
    "apply_llama31_rope_inplace",
    "apply_llama31_rope_pos_ids",
    "apply_llama31_rope_pos_ids_inplace",
    "apply_rope",
    "apply_rope_inplace",
    "apply_rope_pos_ids",
    "apply_rope_pos_ids_inplace",
    "apply_rope_with_cos_sin_cache",
    "apply_rope_with_cos_sin_cache_inplace",
    "mla_rope_quantize_fp8",
    "rope_quantize_fp8",
    "rope_quantize_fp8_append_paged_kv_cache",
]

Pair = tuple[torch.Tensor, torch.Tensor]

# ---- angles by theta


def _rope(
    q: torch.Tensor, k: torch.Tensor, rotary_dim: int | None, interleave: bool, theta: float, scaling: tuple[Any, ...]
) -> pyrope.FusedRope:
    shape, k_shape = q.shape, k.shape
    if len(shape) != 3 or len(k_shape) != 3:
        name, wrong = ("q", shape) if len(shape) != 3 else ("k", k_shape)
        raise ValueError(f"{name}: shape {tuple(wrong)}, must be [tokens, heads, head_dim]")
    return rope_of(
        shape[2], shape[1], k_shape[1], shape[2] if rotary_dim is None else index(rotary_dim), not interleave, q.dtype,
        q.device.type, theta=theta, scaling=scaling, skip=None,
    )  # fmt: skip


def _ragged(indptr: torch.Tensor, offsets: torch.Tensor) -> dict[str, Any]:
    return {"layout": "thd", "indptr": indptr, "offsets": offsets}


def _ids(pos_ids: torch.Tensor) -> dict[str, Any]:
    return {"layout": "thd", "positions": pos_ids}


def _turned(rope: pyrope.FusedRope, q: torch.Tensor, k: torch.Tensor, places: dict[str, Any]) -> Pair:
    q_rope, k_rope = pyrope.torch.apply(rope, q, k, **places)
    assert q_rope is not None and k_rope is not None
    return q_rope, k_rope


def apply_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
) -> Pair:
    """Rotate q and k of ragged requests; the others of this family differ in where positions and angles come from.

    Parameters
    ----------
    q, k : torch.Tensor
        ``[tokens, heads, head_dim]``.
    indptr, offsets : torch.Tensor
        ``[requests + 1]``, where requests begin, and ``[requests]``, the position of each one's first token; int32 or
        int64, both the same.
    rotary_dim : int, optional
        Elements of a head that are rotated, the first ones. Default: all.
    interleave : bool
        Pairs are neighbours (GPT-J) instead of halves (NeoX).
    rope_scale : float
        What positions are divided by.
    rope_theta : float
        Base of the frequencies.

    Returns
    -------
    (q_rope, k_rope)
    """
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, (pyrope.Linear, rope_scale))
    return _turned(rope, q, k, _ragged(indptr, offsets))


def apply_rope_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
) -> None:
    """:func:`apply_rope` where q and k lie."""
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, (pyrope.Linear, rope_scale))
    pyrope.torch.apply_(rope, q, k, **_ragged(indptr, offsets))


def apply_rope_pos_ids(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
) -> Pair:
    """:func:`apply_rope` with the position of every token: ``[tokens]`` int32 or int64."""
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, (pyrope.Linear, rope_scale))
    return _turned(rope, q, k, _ids(pos_ids))


def apply_rope_pos_ids_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
) -> None:
    """:func:`apply_rope_pos_ids` where q and k lie."""
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, (pyrope.Linear, rope_scale))
    pyrope.torch.apply_(rope, q, k, **_ids(pos_ids))


def apply_llama31_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
) -> Pair:
    """:func:`apply_rope` with Llama 3.1's frequencies; the last four are :class:`pyrope.Llama3`'s."""
    scaling = pyrope.Llama3, rope_scale, low_freq_factor, high_freq_factor, old_context_len
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, scaling)
    return _turned(rope, q, k, _ragged(indptr, offsets))


def apply_llama31_rope_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    indptr: torch.Tensor,
    offsets: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
) -> None:
    """:func:`apply_llama31_rope` where q and k lie."""
    scaling = pyrope.Llama3, rope_scale, low_freq_factor, high_freq_factor, old_context_len
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, scaling)
    pyrope.torch.apply_(rope, q, k, **_ragged(indptr, offsets))


def apply_llama31_rope_pos_ids(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
) -> Pair:
    """:func:`apply_llama31_rope` with the position of every token."""
    scaling = pyrope.Llama3, rope_scale, low_freq_factor, high_freq_factor, old_context_len
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, scaling)
    return _turned(rope, q, k, _ids(pos_ids))


def apply_llama31_rope_pos_ids_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    pos_ids: torch.Tensor,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
) -> None:
    """:func:`apply_llama31_rope_pos_ids` where q and k lie."""
    scaling = pyrope.Llama3, rope_scale, low_freq_factor, high_freq_factor, old_context_len
    rope = _rope(q, k, rotary_dim, interleave, rope_theta, scaling)
    pyrope.torch.apply_(rope, q, k, **_ids(pos_ids))


# ---- angles by a table


def _flat(name: str, x: torch.Tensor) -> torch.Tensor:
    """``[tokens, heads * head_size]``."""
    if x.ndim < 2:
        raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [tokens, heads * head_size]")
    return x if x.ndim == 2 else x.flatten(1)


def _table_rope(
    query: torch.Tensor, key: torch.Tensor, head_size: int, cos_sin_cache: torch.Tensor, is_neox: bool
) -> pyrope.FusedRope:
    head_size = index(head_size)
    q_heads, k_heads = heads_of("query", query.shape[1], head_size), heads_of("key", key.shape[1], head_size)
    rotary_dim = check_table(cos_sin_cache)
    dtype, device = query.dtype, query.device.type
    return rope_of(head_size, q_heads, k_heads, rotary_dim, is_neox, dtype, device, angle="cos_sin")


def apply_rope_with_cos_sin_cache(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
) -> Pair:
    """Rotate by the rows of a table.

    Parameters
    ----------
    positions : torch.Tensor
        ``[tokens]`` int32 or int64: the row of every token. One of no row is returned as it is.
    query, key : torch.Tensor
        ``[tokens, heads * head_size]``.
    head_size : int
        Elements of a head.
    cos_sin_cache : torch.Tensor
        ``[positions, rotary_dim]`` float32, cosines before sines.
    is_neox : bool
        Pairs are halves (NeoX) instead of neighbours (GPT-J).

    Returns
    -------
    (query_out, key_out)
    """
    q, k = _flat("query", query), _flat("key", key)
    rope = _table_rope(q, k, head_size, cos_sin_cache, is_neox)
    q_out, k_out = pyrope.torch.apply(rope, q, k, layout="thd", positions=positions, cos=cos_sin_cache)
    assert q_out is not None and k_out is not None
    return q_out.view(query.shape), k_out.view(key.shape)


def apply_rope_with_cos_sin_cache_inplace(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
) -> None:
    """:func:`apply_rope_with_cos_sin_cache` where query and key lie."""
    q, k = _flat("query", query), _flat("key", key)
    rope = _table_rope(q, k, head_size, cos_sin_cache, is_neox)
    pyrope.torch.apply_(rope, q, k, layout="thd", positions=positions, cos=cos_sin_cache)
