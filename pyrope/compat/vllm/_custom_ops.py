"""vllm._custom_ops: the rotations, on tensors as vLLM's layers have them."""

from operator import index
from typing import Any, Literal, TypeAlias

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import heads_of, norm_and_turn_, pages_of, split_qkv, table_width

CacheDType: TypeAlias = Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]
STORED = {"auto": None, "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def rows_of(name: str, x: torch.Tensor, positions: torch.Tensor, head_size: int) -> tuple[torch.Tensor, int]:
    """x as pyrope.torch takes it, and its heads.

    x is ``[..., heads * head_size]`` or ``[..., heads, head_size]`` over the dimensions of positions, one or two: of
    ``[batch, seq, head_size]`` only they tell that it is the first, of a single head.
    """
    lead, shape = positions.ndim, x.shape
    if lead not in (1, 2):
        raise ValueError(f"positions: {lead} dimensions, must be [tokens] or [batch, seq]")
    if shape[:lead] != positions.shape or len(shape) not in (lead + 1, lead + 2):
        raise ValueError(
            f"{name}: shape {tuple(shape)}, must be {[*positions.shape]} and heads of head_size={head_size}"
        )
    if len(shape) == lead + 1:
        heads = heads_of(name, shape[-1], head_size)
        return (x if lead == 1 else x.unflatten(-1, (heads, head_size))), heads
    if shape[-1] != head_size:
        raise ValueError(f"{name}: {shape[-1]} elements a head, must be head_size={head_size}")
    return x, shape[-2]


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    rope_dim_offset: int = 0,
    inverse: bool = False,
) -> None:
    """Rotate query and key where they lie, by the rows of a table.

    Parameters
    ----------
    positions : torch.Tensor
        ``[tokens]`` or ``[batch, seq]``, int64 or int32. A token of a position that is no row is left alone.
    query, key : torch.Tensor
        ``[..., heads * head_size]`` or ``[..., heads, head_size]`` over the dimensions of positions; no key is None.
    head_size : int
        Elements of a head.
    cos_sin_cache : torch.Tensor
        ``[positions, rotary_dim]``, cosines before sines, of any of the three dtypes.
    is_neox : bool
        Pairs are halves instead of neighbours.
    rope_dim_offset : int
        First element of a head that is rotated.
    inverse : bool
        The other way round.
    """
    head_size = index(head_size)
    q, q_heads = rows_of("query", query, positions, head_size)
    k, k_heads = (None, 0) if key is None else rows_of("key", key, positions, head_size)
    rope = rope_of(
        head_size, q_heads, k_heads, table_width(cos_sin_cache), is_neox, query.dtype, query.device.type,
        angle="cos_sin", cos_sin_dtype=cos_sin_cache.dtype, rotary_offset=index(rope_dim_offset),
    )  # fmt: skip
    layout: Any = "thd" if positions.ndim == 1 else "bshd"
    pyrope.torch.apply_(rope, q, k, layout=layout, positions=positions, cos=cos_sin_cache, inverse=bool(inverse))


def fused_qk_norm_rope(
    qkv: torch.Tensor,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_dim: int,
    eps: float,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    position_ids: torch.Tensor,
    forced_token_heads_per_warp: int = -1,
) -> None:
    """Norm of every head of q and k, then their rotation, where they lie.

    Parameters
    ----------
    qkv : torch.Tensor
        ``[tokens, (all heads) * head_dim]``; v is left alone.
    num_heads_q, num_heads_k, num_heads_v, head_dim : int
        Its shape.
    eps, q_weight, k_weight
        Of the norm; ``[head_dim]`` of qkv's dtype or float32.
    cos_sin_cache, is_neox, position_ids
        As for :func:`rotary_embedding`; ``[tokens]``.
    forced_token_heads_per_warp : int
        Means nothing here.
    """
    norm_and_turn_(
        qkv, (num_heads_q, num_heads_k, num_heads_v), head_dim, table_width(cos_sin_cache), is_neox, eps,
        {"q_weight": q_weight, "k_weight": k_weight}, position_ids, cos_sin_cache,
    )  # fmt: skip


def stored_as(kv_cache_dtype: str) -> str | None:
    if kv_cache_dtype not in STORED:
        raise ValueError(f"kv_cache_dtype: {kv_cache_dtype!r}, must be one of {', '.join(map(repr, STORED))}")
    return STORED[kv_cache_dtype]


def concat_and_cache_mla_rope_fused(
    positions: torch.Tensor,
    q_pe: torch.Tensor,
    k_pe: torch.Tensor,
    kv_c: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_cache_dtype: str,
    kv_cache_scale: torch.Tensor,
) -> None:
    """Rotate q_pe and k_pe where they lie, and append ``[kv_c, k_pe]`` to the rows of a cache (latent attention).

    Parameters
    ----------
    positions : torch.Tensor
        ``[tokens]`` or more.
    q_pe, k_pe, kv_c : torch.Tensor
        ``[tokens, heads, rotary_dim]``, ``[tokens, rotary_dim]`` and ``[tokens, lora]``.
    cos_sin_cache, is_neox
        As for :func:`rotary_embedding`.
    slot_mapping : torch.Tensor
        ``[tokens]``: the row of every token; one below 0 is left alone as a whole. Tokens that it does not reach too.
    kv_cache : torch.Tensor
        ``[blocks, block_size, lora + rotary_dim]``.
    kv_cache_dtype : {"auto", "fp8", "fp8_e4m3", "fp8_e5m2"}
        What it holds; ``auto``: the dtype of kv_c.
    kv_cache_scale : torch.Tensor
        ``[1]`` float32, what is divided by before rounding to fp8.
    """
    stored, tokens, lora = stored_as(kv_cache_dtype), slot_mapping.shape[0], kv_c.shape[-1]
    if q_pe.ndim != 3 or k_pe.ndim != 2:
        name, x = ("q_pe", q_pe) if q_pe.ndim != 3 else ("k_pe", k_pe)
        raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [tokens, heads, rotary_dim], of k_pe without heads")
    if kv_cache.ndim != 3 or kv_cache.shape[2] != lora + k_pe.shape[1]:
        width = lora + k_pe.shape[1]
        raise ValueError(f"kv_cache: shape {tuple(kv_cache.shape)}, must be [blocks, block_size, {width}]")
    q, k = q_pe[:tokens], k_pe[:tokens]
    rope = rope_of(
        q.shape[2], q.shape[1], 1, table_width(cos_sin_cache), is_neox, k.dtype, k.device.type,
        pages_of("kv_cache", kv_cache), skip_q=True, angle="cos_sin", cos_sin_dtype=cos_sin_cache.dtype,
        v_head_dim=lora, k_out_dtype=stored, v_out_dtype=stored,
    )  # fmt: skip
    scales: dict[str, Any] = {} if stored is None else {"k_scale": kv_cache_scale, "v_scale": kv_cache_scale}
    pyrope.torch.apply_(
        rope, q, k, layout="thd", positions=positions[:tokens], cos=cos_sin_cache, k_out=k, v=kv_c[:tokens],
        k_cache=kv_cache[..., lora:], v_cache=kv_cache[..., :lora], slots=slot_mapping, **scales,
    )  # fmt: skip


def fused_qknorm_rope_cache(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    eps: float,
    norm_weight_bias: float = 0.0,
    kv_cache_dtype: str = "auto",
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm and rotate q and k of qkv (halves), append k and v, and return all three.

    Parameters
    ----------
    qkv : torch.Tensor
        ``[tokens, (num_q_heads + 2 * num_kv_heads) * head_dim]``, which stays as it is.
    q_weight, k_weight, eps, norm_weight_bias
        Of the norm; ``[head_dim]`` of qkv's dtype or float32.
    cos_sin_cache, positions
        As for :func:`rotary_embedding`; ``[tokens]``.
    slot_mapping : torch.Tensor
        ``[tokens]``, or of the first ones: where each is appended; below 0 nowhere.
    key_cache, value_cache : torch.Tensor
        ``[blocks, block_size, num_kv_heads, head_dim]``.
    kv_cache_dtype, k_scale, v_scale
        As for :func:`concat_and_cache_mla_rope_fused`; no scale is 1.

    Returns
    -------
    (q, k, v)
        ``[tokens, heads * head_dim]``.

    Notes
    -----
    One launch; where slot_mapping is shorter than the tokens, two.
    """
    if rotary_dim and table_width(cos_sin_cache) != rotary_dim:
        raise ValueError(f"cos_sin_cache: {table_width(cos_sin_cache)} columns, must be rotary_dim={rotary_dim}")
    stored = stored_as(kv_cache_dtype)
    xs = split_qkv(qkv, num_q_heads, num_kv_heads, num_kv_heads, head_dim)
    outs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in xs]
    shape = head_dim, num_q_heads, num_kv_heads, rotary_dim, True, qkv.dtype, qkv.device.type
    options: dict[str, Any] = {"norm": (eps, q_weight.dtype, norm_weight_bias)}
    if rotary_dim:
        options |= {"angle": "cos_sin", "cos_sin_dtype": cos_sin_cache.dtype}

    def call(rows: slice, rope: pyrope.FusedRope, **cache: Any) -> None:
        q, k, v = (x[rows] for x in xs)
        q_out, k_out, v_out = (x[rows] for x in outs)
        if rotary_dim:
            cache |= {"positions": positions[rows], "cos": cos_sin_cache}
        pyrope.torch.apply_(
            rope, q, k, layout="thd", v=v, q_weight=q_weight, k_weight=k_weight, q_out=q_out, k_out=k_out, v_out=v_out,
            **cache,
        )  # fmt: skip

    tokens = slot_mapping.shape[0]
    pages = pages_of("key_cache", key_cache)
    scales: dict[str, Any] = {} if stored is None else {"k_scale": k_scale, "v_scale": v_scale}
    appends = rope_of(*shape, pages, k_out_dtype=stored, v_out_dtype=stored, **options)
    call(slice(tokens), appends, k_cache=key_cache, v_cache=value_cache, slots=slot_mapping, **scales)
    if tokens < qkv.shape[0]:
        call(slice(tokens, None), rope_of(*shape, **options))
    return outs[0], outs[1], outs[2]
