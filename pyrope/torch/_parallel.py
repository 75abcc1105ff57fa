"""Sequences that are spread over ranks (context parallelism): which positions each rank has."""

from typing import Literal, TypeAlias

import torch

Scheme: TypeAlias = Literal["contiguous", "zigzag", "round_robin"]
CHUNKS = {"contiguous": 1, "zigzag": 2, "round_robin": 1}  # a rank's


def rank_positions(
    seq: int,
    rank: int,
    world_size: int,
    scheme: Scheme = "contiguous",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.int64,
) -> torch.Tensor:
    """The positions of a rank's tokens, in the order in which it holds them; no data moves.

    Parameters
    ----------
    seq : int
        Tokens of the whole sequence: a multiple of ``world_size``, with ``zigzag`` of twice that.
    rank, world_size : int
        Of the context-parallel group.
    scheme : {"contiguous", "zigzag", "round_robin"}
        ``contiguous``: rank ``r`` has the r-th part. ``zigzag``: of ``2 * world_size`` chunks it has the r-th and the
        r-th from the end, so that causal attention costs every rank the same (Megatron-LM, TransformerEngine).
        ``round_robin``: it has token ``r`` and every ``world_size``-th after it (striped attention, arXiv:2311.09431).
    device, dtype
        Of the result.

    Returns
    -------
    torch.Tensor
        ``[seq / world_size]``: ``positions`` of :func:`pyrope.torch.apply`, and the index that takes the rank's tokens
        out of the whole sequence.

    Raises
    ------
    ValueError
        An argument is not allowed; the text names it.
    """
    if scheme not in CHUNKS:
        raise ValueError(f"scheme: {scheme!r}, must be {', '.join(map(repr, CHUNKS))}")
    if world_size < 1:
        raise ValueError(f"world_size: {world_size}, must be at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: {rank}, must be 0 to {world_size - 1}")
    chunks = CHUNKS[scheme] * world_size
    if seq < 0 or seq % chunks:
        raise ValueError(f"seq: {seq}, must be a multiple of {chunks}")
    if scheme == "round_robin":
        return torch.arange(rank, seq, world_size, device=device, dtype=dtype)
    n = seq // chunks
    starts = (rank,) if scheme == "contiguous" else (rank, chunks - 1 - rank)
    return torch.cat([torch.arange(i * n, (i + 1) * n, device=device, dtype=dtype) for i in starts])
