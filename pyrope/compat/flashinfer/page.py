"""flashinfer.page: what appends, and what says where to."""

from operator import index
from typing import Any, TypeAlias

import torch

import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import check_dtype, int32, pages_of

Cache: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def get_seq_lens(kv_indptr: torch.Tensor, kv_last_page_len: torch.Tensor, page_size: int) -> torch.Tensor:
    """``[requests]``: tokens of every request, by its pages and how many tokens the last one has."""
    return (kv_indptr.diff() - 1).clamp(min=0) * page_size + kv_last_page_len


def get_batch_indices_positions(
    append_indptr: torch.Tensor,
    seq_lens: torch.Tensor,
    nnz: int,
    batch_indices: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The request of every token that is appended, and its place there.

    Parameters
    ----------
    append_indptr : torch.Tensor
        ``[requests + 1]``: where each request's new tokens begin.
    seq_lens : torch.Tensor
        ``[requests]``: tokens of every request, the new ones among them.
    nnz : int
        Tokens; more than there are in requests is padding, of request -1.
    batch_indices, positions : torch.Tensor, optional
        ``[nnz]`` int32, where to put the results; positions of padding are left as they are there, else 0.

    Returns
    -------
    (batch_indices, positions)
    """
    nnz = index(nnz)
    for name, x in (("batch_indices", batch_indices), ("positions", positions)):
        if x is not None:
            check_dtype(name, x, torch.int32)
            if x.shape != (nnz,):
                raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [{nnz}]")
            if x.device != append_indptr.device:
                raise ValueError(f"{name}: on {x.device}, must be on {append_indptr.device}, as append_indptr")
    tokens = torch.arange(nnz, device=append_indptr.device, dtype=append_indptr.dtype)
    ends = append_indptr[1:]
    request = torch.searchsorted(ends, tokens, right=True)
    inside = request < len(ends)
    row = request.clamp(max=max(len(ends) - 1, 0))
    place = (tokens + (seq_lens - ends)[row]).int()
    request, kept = request.int().masked_fill(~inside, -1), positions if positions is not None else 0
    place = torch.where(inside, place, kept)
    if batch_indices is not None:
        request = batch_indices.copy_(request)
    if positions is not None:
        place = positions.copy_(place)
    return request, place


def append_paged_kv_cache(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    paged_kv_cache: Cache,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str = "NHD",
) -> None:
    """Append keys and values as they are, bit by bit.

    Parameters
    ----------
    append_key, append_value : torch.Tensor
        ``[tokens, heads, head_dim]`` of the cache's dtype.
    batch_indices, positions : torch.Tensor
        ``[tokens]``: the request of every token, and its place there. One of request -1 is appended nowhere.
    paged_kv_cache : tuple of torch.Tensor, or torch.Tensor
        k and v, ``[pages, page_size, heads, head_dim]`` or as ``kv_layout`` says; or both, in the second dimension.
    kv_indices, kv_indptr : torch.Tensor
        The pages of all requests, and where each one's begin: ``[requests + 1]``.
    kv_last_page_len : torch.Tensor
        Means nothing here.
    kv_layout : {"NHD", "HND"}
        Of the pages.
    """
    if kv_layout not in ("NHD", "HND"):
        raise KeyError(f"kv_layout: {kv_layout!r}, must be 'NHD' or 'HND'")
    caches = paged_kv_cache
    if isinstance(caches, torch.Tensor):
        if caches.ndim != 5 or caches.shape[1] != 2:
            raise ValueError(f"paged_kv_cache: shape {tuple(caches.shape)}, must be [pages, 2, ...]")
        caches = caches[:, 0], caches[:, 1]
    for name, x in (("append_key", append_key), ("append_value", append_value)):
        if x.ndim != 3:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [tokens, heads, head_dim]")
    pairs = [(append_key, caches[0]), (append_value, caches[1])]
    _append(pairs, batch_indices, positions, kv_indices, kv_indptr, kv_layout)


def append_paged_mla_kv_cache(
    append_ckv: torch.Tensor,
    append_kpe: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    ckv_cache: torch.Tensor | None,
    kpe_cache: torch.Tensor | None,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
) -> None:
    """:func:`append_paged_kv_cache` of latent attention.

    append_ckv and append_kpe are ``[tokens, dim]``, their caches ``[pages, page_size, dim]``; of no cache nothing is
    appended.
    """
    for name, x in (("append_ckv", append_ckv), ("append_kpe", append_kpe)):
        if x.ndim != 2:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must be [tokens, dim]")
    both = [(append_ckv, ckv_cache), (append_kpe, kpe_cache)]
    pairs = [(x, cache) for x, cache in both if cache is not None]
    if pairs:
        _append(pairs, batch_indices, positions, kv_indices, kv_indptr, "NHD")


def _append(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_layout: str,
) -> None:
    """One or two tensors to their pages. Elements of one byte go in twos."""
    for x, cache in pairs:
        check_dtype("cache", cache, x.dtype)
    pairs = [(_wide(x), _wide(cache)) for x, cache in pairs]
    (k, k_cache), *rest = pairs
    places: dict[str, Any] = {
        "page_table": int32(kv_indices), "page_indptr": int32(kv_indptr), "request_ids": int32(batch_indices),
        "cache_positions": int32(positions), "k_cache": k_cache,
    }  # fmt: skip
    for v, v_cache in rest:
        places |= {"v": v, "v_cache": v_cache}
    heads = k.shape[1] if k.ndim == 3 else 1
    rope = rope_of(
        k.shape[-1], 0, heads, 0, True, k.dtype, k.device.type, pages_of("cache", k_cache, kv_layout),
        num_v_heads=rest[0][0].shape[1] if rest and k.ndim == 3 else None,
        v_head_dim=rest[0][0].shape[-1] if rest else None,
    )  # fmt: skip
    pyrope.torch.apply_(rope, None, k, layout="thd", **places)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.float16) if x.dtype.itemsize == 1 else x
