"""sglang.kernels.ops.attention.rope."""

from dataclasses import dataclass
from typing import Any

import torch

import pyrope.torch
from pyrope.compat import vllm
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import table_width


@dataclass
class FusedSetKVBufferArg:
    """Where the fused store of :func:`apply_rope_with_cos_sin_cache_inplace` goes.

    Parameters
    ----------
    value : torch.Tensor
        ``[tokens, heads * head_dim]``.
    k_buffer, v_buffer : torch.Tensor
        ``[slots, heads * head_dim]``.
    cache_loc : torch.Tensor
        ``[tokens]``: the slot of every token; below 0 none.
    """

    value: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    cache_loc: torch.Tensor


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`pyrope.compat.vllm.rotary_embedding`; returns query and key, which are written."""
    vllm.rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
    return query, key


def _check(q: torch.Tensor, k: torch.Tensor, cos_sin_cache: torch.Tensor, rope_dim: int) -> int:
    """rotary_dim."""
    for name, x in (("q", q), ("k", k)):
        if x.ndim != 3:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [tokens, heads, head_dim]")
    width = table_width(cos_sin_cache)
    if rope_dim and rope_dim != width:
        raise ValueError(f"rope_dim: {rope_dim}, must be the columns of cos_sin_cache, {width}")
    return width


def _turn(
    q: torch.Tensor | None, k: torch.Tensor | None, cos_sin_cache: torch.Tensor, positions: torch.Tensor, is_neox: bool
) -> None:
    """In place; of one dtype and head_dim."""
    some = k if q is None else q
    assert some is not None
    rope = rope_of(
        some.shape[2], 0 if q is None else q.shape[1], 0 if k is None else k.shape[1], table_width(cos_sin_cache),
        is_neox, some.dtype, some.device.type, angle="cos_sin", cos_sin_dtype=cos_sin_cache.dtype,
    )  # fmt: skip
    pyrope.torch.apply_(rope, q, k, layout="thd", positions=positions, cos=cos_sin_cache)


def apply_rope_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    positions: torch.Tensor,
    *,
    is_neox: bool,
    rope_dim: int = 0,
) -> None:
    """Rotate q and k where they lie, by the rows of a table.

    Parameters
    ----------
    q, k : torch.Tensor
        ``[tokens, heads, head_dim]``; of two dtypes or two head_dims it takes two launches.
    cos_sin_cache : torch.Tensor
        ``[positions, rotary_dim]``, cosines before sines.
    positions : torch.Tensor
        ``[tokens]`` int32 or int64. A token of a position that is no row is left alone.
    is_neox : bool
        Pairs are halves instead of neighbours.
    rope_dim : int
        Columns of cos_sin_cache, or 0.
    """
    _check(q, k, cos_sin_cache, rope_dim)
    if q.dtype == k.dtype and q.shape[2] == k.shape[2]:
        _turn(q, k, cos_sin_cache, positions, is_neox)
        return
    _check_tokens(k, q.shape[0], "q")
    _turn(q, None, cos_sin_cache, positions, is_neox)
    _turn(None, k, cos_sin_cache, positions, is_neox)


def _check_tokens(k: torch.Tensor, tokens: int, other: str) -> None:
    """Before the first of two launches has written anything."""
    if k.shape[0] != tokens:
        raise ValueError(f"k: {k.shape[0]} tokens, must be those of {other}, {tokens}")


def _slots(name: str, cache: torch.Tensor, heads: int, head_dim: int) -> torch.Tensor:
    """Pages of one token, of ``[slots, heads * head_dim]`` or ``[slots, heads, head_dim]``."""
    if cache.shape[1:] not in ((heads * head_dim,), (heads, head_dim)):
        raise ValueError(f"{name}: shape {tuple(cache.shape)}, must be [slots, {heads * head_dim}]")
    return (cache.unflatten(1, (heads, head_dim)) if cache.ndim == 2 else cache).unsqueeze(1)


def apply_rope_inplace_with_kvcache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    positions: torch.Tensor,
    out_loc: torch.Tensor,
    *,
    is_neox: bool,
    rope_dim: int = 0,
) -> None:
    """:func:`apply_rope_inplace`, and the rotated k and v stored in slots.

    Parameters
    ----------
    v : torch.Tensor
        As many elements as k.
    k_cache, v_cache : torch.Tensor
        ``[slots, heads * head_dim]`` of k's dtype.
    out_loc : torch.Tensor
        ``[tokens]``: the slot of every token; below 0 none.
    """
    rotary_dim = _check(q, k, cos_sin_cache, rope_dim)
    v = v.view(k.shape)
    heads, head_dim = k.shape[1:]
    caches = [_slots(name, x, heads, head_dim) for name, x in (("k_cache", k_cache), ("v_cache", v_cache))]
    together = q.dtype == k.dtype and q.shape[2] == head_dim
    _check_tokens(k, q.shape[0], "q")
    rope = rope_of(
        head_dim, q.shape[1] if together else 0, heads, rotary_dim, is_neox, k.dtype, k.device.type,
        (1, k_cache.shape[0], "NHD"), angle="cos_sin", cos_sin_dtype=cos_sin_cache.dtype,
    )  # fmt: skip
    arguments: dict[str, Any] = {"positions": positions, "cos": cos_sin_cache, "slots": out_loc}
    arguments |= {"k_out": k, "v": v, "k_cache": caches[0], "v_cache": caches[1]}
    pyrope.torch.apply_(rope, q if together else None, k, layout="thd", **arguments)
    if not together:
        _turn(q, None, cos_sin_cache, positions, is_neox)


def apply_rope_with_cos_sin_cache_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    positions: torch.Tensor,
    *,
    is_neox: bool,
    rope_dim: int = 0,
    fused_args: FusedSetKVBufferArg | None = None,
) -> None:
    """:func:`apply_rope_inplace`, or with ``fused_args`` :func:`apply_rope_inplace_with_kvcache`."""
    if fused_args is None:
        apply_rope_inplace(q, k, cos_sin_cache, positions, is_neox=is_neox, rope_dim=rope_dim)
        return
    apply_rope_inplace_with_kvcache(
        q, k, fused_args.value, fused_args.k_buffer, fused_args.v_buffer, cos_sin_cache, positions,
        fused_args.cache_loc, is_neox=is_neox, rope_dim=rope_dim,
    )  # fmt: skip
