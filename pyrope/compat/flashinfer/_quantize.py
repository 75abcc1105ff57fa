"""The functions of flashinfer.rope that store fp8."""

from typing import Any

import torch

import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import check_dtype, float8_of, int32, pages_of, scale_of
from pyrope.compat.flashinfer._table import check_table

Pair = tuple[torch.Tensor, torch.Tensor]


def _quantised(name: str, x: torch.Tensor | None, out: torch.Tensor | None, like: torch.Tensor, dtype: Any) -> Any:
    """An output for x: the given one, or strided as FlashInfer's; of nothing for no x."""
    if out is None:
        if x is None:
            return torch.empty(*like.shape[:-1], 0, dtype=dtype, device=like.device)
        return torch.empty_like(x, dtype=dtype)
    shape = x.shape if x is not None else (*like.shape[:-1], 0)
    if out.shape != shape:
        raise ValueError(f"{name}: shape {tuple(out.shape)}, must be {list(shape)}")
    check_dtype(name, out, dtype)
    return out


def _dtype_of(given: torch.dtype | None, *outs: torch.Tensor | None) -> torch.dtype:
    if given is not None:
        return given
    return next((out.dtype for out in outs if out is not None), torch.float8_e4m3fn)


def _part(x: torch.Tensor | None) -> torch.Tensor | None:
    """x, where it has elements in a head."""
    return None if x is None or x.shape[-1] == 0 else x


def mla_rope_quantize_fp8(
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    q_nope: torch.Tensor,
    k_nope: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    is_neox: bool = True,
    quantize_dtype: torch.dtype | None = None,
    quant_scale_q: float = 1.0,
    quant_scale_kv: float = 1.0,
    q_rope_out: torch.Tensor | None = None,
    k_rope_out: torch.Tensor | None = None,
    q_nope_out: torch.Tensor | None = None,
    k_nope_out: torch.Tensor | None = None,
    enable_pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`rope_quantize_fp8` of latent attention, whose k_rope and k_nope are ``[tokens, dim]``."""
    return rope_quantize_fp8(
        q_rope, k_rope, q_nope, k_nope, cos_sin_cache, pos_ids, is_neox, quantize_dtype, quant_scale_q, quant_scale_kv,
        q_rope_out, k_rope_out, q_nope_out, k_nope_out, enable_pdl,
    )  # fmt: skip


def _check_parts(
    q_rope: torch.Tensor, k_rope: torch.Tensor, q_nope: torch.Tensor | None, k_nope: torch.Tensor | None
) -> None:
    if q_rope.ndim != 3:
        raise ValueError(f"q_rope: shape {tuple(q_rope.shape)}, must be [tokens, heads, rope_dim]")
    if k_rope.ndim not in (2, 3):
        raise ValueError(f"k_rope: shape {tuple(k_rope.shape)}, must be [tokens, heads, rope_dim] or without heads")
    if k_rope.shape[-1] != q_rope.shape[-1]:
        raise ValueError(f"k_rope: {k_rope.shape[-1]} elements a head, must be those of q_rope, {q_rope.shape[-1]}")
    for name, x, like in (("q_nope", q_nope, q_rope), ("k_nope", k_nope, k_rope)):
        if x is not None and x.shape[:-1] != like.shape[:-1]:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must be {[*like.shape[:-1]]} and its elements")


def rope_quantize_fp8(
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    q_nope: torch.Tensor | None,
    k_nope: torch.Tensor | None,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    is_neox: bool = True,
    quantize_dtype: torch.dtype | None = None,
    quant_scale_q: float = 1.0,
    quant_scale_kv: float = 1.0,
    q_rope_out: torch.Tensor | None = None,
    k_rope_out: torch.Tensor | None = None,
    q_nope_out: torch.Tensor | None = None,
    k_nope_out: torch.Tensor | None = None,
    enable_pdl: bool = False,
    backend: str = "cuda",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate the rope parts of q and k and quantise them and the rest, in one launch.

    Parameters
    ----------
    q_rope, q_nope : torch.Tensor
        ``[tokens, heads, rope_dim]`` and, or None, ``[tokens, heads, nope_dim]``.
    k_rope, k_nope : torch.Tensor
        Likewise; without the heads with latent attention.
    cos_sin_cache, pos_ids, is_neox
        As for :func:`apply_rope_with_cos_sin_cache`; the output of a token of no row stays unwritten.
    quantize_dtype : torch.dtype, optional
        ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``. Default: that of an output, else the first.
    quant_scale_q, quant_scale_kv : float
        What is multiplied with before rounding.
    q_rope_out, k_rope_out, q_nope_out, k_nope_out : torch.Tensor, optional
        Outputs, strided as you like.
    enable_pdl : bool
        As for :class:`pyrope.Rope`.
    backend : {"cuda", "cutile"}
        Means nothing here.

    Returns
    -------
    (q_rope_out, k_rope_out, q_nope_out, k_nope_out)
    """
    if backend not in ("cuda", "cutile"):
        raise ValueError(f"backend: {backend!r}, must be 'cuda' or 'cutile'")
    rotary_dim = check_table(cos_sin_cache)
    _check_parts(q_rope, k_rope, q_nope, k_nope)
    dtype = _dtype_of(quantize_dtype, q_rope_out, k_rope_out, q_nope_out, k_nope_out)
    stored, q_part, k_part = float8_of("quantize_dtype", dtype), _part(q_nope), _part(k_nope)
    outs = (
        _quantised("q_rope_out", q_rope, q_rope_out, q_rope, dtype),
        _quantised("k_rope_out", k_rope, k_rope_out, k_rope, dtype),
        _quantised("q_nope_out", q_nope, q_nope_out, q_rope, dtype),
        _quantised("k_nope_out", k_nope, k_nope_out, k_rope, dtype),
    )
    k_heads = 1 if k_rope.ndim == 2 else k_rope.shape[1]
    rope = rope_of(
        q_rope.shape[2], q_rope.shape[1], k_heads, rotary_dim, is_neox, q_rope.dtype, q_rope.device.type,
        angle="cos_sin", q_out_dtype=stored, k_out_dtype=stored, v_out_dtype=stored, enable_pdl=enable_pdl,
        q_nope_dim=0 if q_part is None else q_part.shape[-1], v_head_dim=None if k_part is None else k_part.shape[-1],
    )  # fmt: skip
    q_scale, kv_scale = scale_of("quant_scale_q", quant_scale_q), scale_of("quant_scale_kv", quant_scale_kv)
    arguments: dict[str, Any] = {"positions": pos_ids, "cos": cos_sin_cache, "q_scale": q_scale, "k_scale": kv_scale}
    arguments |= {"q_out": outs[0], "k_out": outs[1]}
    if q_part is not None:
        arguments |= {"q_nope": q_part, "q_nope_out": outs[2]}
    if k_part is not None:
        arguments |= {"v": k_part, "v_out": outs[3], "v_scale": kv_scale}
    pyrope.torch.apply_(rope, q_rope, k_rope, layout="thd", **arguments)
    return outs


def rope_quantize_fp8_append_paged_kv_cache(
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    q_nope: torch.Tensor | None,
    k_nope: torch.Tensor | None,
    v: torch.Tensor | None,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    paged_kv_cache: Pair,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    is_neox: bool = True,
    quantize_dtype: torch.dtype | None = None,
    quant_scale_q: float = 1.0,
    quant_scale_kv: float = 1.0,
    page_size: int = 16,
    kv_layout: str = "NHD",
    q_rope_out: torch.Tensor | None = None,
    q_nope_out: torch.Tensor | None = None,
    enable_pdl: bool = False,
) -> Pair:
    """:func:`rope_quantize_fp8`, whose k and v go to the pages of a cache.

    Parameters
    ----------
    v : torch.Tensor or None
        ``[tokens, heads, head_dim]``; None with latent attention.
    paged_kv_cache : tuple of torch.Tensor
        k and v, ``[pages, page_size, heads, head_dim]`` or as ``kv_layout`` says, a key's rope part first; with latent
        attention ``[pages, page_size, nope_dim]`` and ``[pages, page_size, rope_dim]``.
    kv_indices, kv_indptr : torch.Tensor
        The pages of all requests, and where each one's begin: ``[requests + 1]``.
    batch_indices, positions : torch.Tensor
        ``[tokens]``: the request of every token, and its place there. One of request -1 is appended nowhere.

    Returns
    -------
    (q_rope_out, q_nope_out)

    Notes
    -----
    One launch; where keys of several heads have a nope part, two.
    """
    rotary_dim = check_table(cos_sin_cache)
    _check_parts(q_rope, k_rope, q_nope, k_nope)
    is_mla = k_rope.ndim == 2
    dtype = _dtype_of(quantize_dtype, q_rope_out, q_nope_out)
    stored, q_part, k_part = float8_of("quantize_dtype", dtype), _part(q_nope), _part(k_nope)
    shape = (*k_rope.shape[:-1], rotary_dim + (0 if k_part is None else k_part.shape[-1]))
    _check_caches(paged_kv_cache, v, shape, dtype, kv_layout, page_size)
    q_rope_out = _quantised("q_rope_out", q_rope, q_rope_out, q_rope, dtype)
    q_nope_out = _quantised("q_nope_out", q_nope, q_nope_out, q_rope, dtype)

    q_scale, kv_scale = scale_of("quant_scale_q", quant_scale_q), scale_of("quant_scale_kv", quant_scale_kv)
    places = {
        "layout": "thd", "positions": pos_ids, "cos": cos_sin_cache, "page_table": int32(kv_indices),
        "page_indptr": int32(kv_indptr), "request_ids": int32(batch_indices), "cache_positions": int32(positions),
    }  # fmt: skip
    queries = {"q_out": q_rope_out, "q_scale": q_scale}
    if q_part is not None:
        queries |= {"q_nope": q_part, "q_nope_out": q_nope_out}

    def call(q: Any, k: Any, k_cache: Any, v: Any, v_cache: Any) -> None:
        some = k if v is None else v
        heads = 1 if is_mla else some.shape[1]
        rope = rope_of(
            q_rope.shape[2], 0 if q is None else q_rope.shape[1], 0 if k is None else heads, rotary_dim, is_neox,
            q_rope.dtype, q_rope.device.type, pages_of("paged_kv_cache", k_cache if v is None else v_cache, kv_layout),
            angle="cos_sin", q_out_dtype=stored, k_out_dtype=stored, v_out_dtype=stored, enable_pdl=enable_pdl,
            q_nope_dim=0 if q_part is None else q_part.shape[-1], num_v_heads=heads,
            v_head_dim=None if v is None else v.shape[-1],
        )  # fmt: skip
        arguments = places if q is None else places | queries
        if k is not None:
            arguments = arguments | {"k_cache": k_cache, "k_scale": kv_scale}
        if v is not None:
            arguments = arguments | {"v": v, "v_cache": v_cache, "v_scale": kv_scale}
        pyrope.torch.apply_(rope, q, k, **arguments)

    if is_mla:
        ckv_cache, kpe_cache = paged_kv_cache
        call(q_rope, k_rope, kpe_cache, k_part, ckv_cache)
    elif k_part is None:
        call(q_rope, k_rope, paged_kv_cache[0], v, paged_kv_cache[1])
    else:
        k_cache, v_cache = paged_kv_cache
        rope_dim = k_rope.shape[-1]
        call(None, k_rope, k_cache[..., :rope_dim], k_part, k_cache[..., rope_dim:])
        call(q_rope, None, None, v, v_cache)
    return q_rope_out, q_nope_out


def _check_caches(
    caches: Pair, v: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, kv_layout: str, page_size: int
) -> None:
    """Before the first of two launches has written anything. shape: of keys with both parts."""
    is_mla = len(shape) == 2
    if len(caches) != 2:
        raise ValueError(f"paged_kv_cache: {len(caches)} tensors, must be 2")
    if kv_layout not in ("NHD", "HND"):
        raise KeyError(f"kv_layout: {kv_layout!r}, must be 'NHD' or 'HND'")
    if is_mla and v is not None:
        raise ValueError("v: given, must be None with latent attention (k_rope of two dimensions)")
    if not is_mla and v is None:
        raise ValueError("v: None, only allowed with latent attention (k_rope of two dimensions)")
    if v is not None and v.shape != shape:
        raise ValueError(f"v: shape {tuple(v.shape)}, must be {list(shape)}")
    if v is not None and caches[0].shape != caches[1].shape:
        raise ValueError(f"paged_kv_cache: shapes {[tuple(x.shape) for x in caches]}, must be the same")
    for cache in caches:
        check_dtype("paged_kv_cache", cache, dtype)
        if cache.ndim != (3 if is_mla else 4):
            raise ValueError(f"paged_kv_cache: {cache.ndim} dimensions, must have {3 if is_mla else 4}")
        if pages_of("paged_kv_cache", cache, kv_layout)[0] != page_size:
            raise ValueError(f"paged_kv_cache: shape {tuple(cache.shape)}, must have pages of page_size={page_size}")
