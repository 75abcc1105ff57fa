"""flashinfer.page: what appends, and what says where to."""

from operator import index

import torch

from pyrope.compat._serving import check_dtype
from pyrope.errors import UnsupportedError

NOT_YET = "{name}: appending without a rotation is not there yet; append by pyrope.FusedRope with the rotation"
Cache = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


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
    """Append keys and values as they are. Not there yet: the core appends what it rotates."""
    raise UnsupportedError(NOT_YET.format(name="append_key"))


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
    """Append rows of latent attention as they are. Not there yet: the core appends what it rotates."""
    raise UnsupportedError(NOT_YET.format(name="append_ckv"))
