"""megatron.core.fusions.fused_mla_yarn_rope_apply."""

from typing import Any

import torch

from pyrope.compat._training import InPlace, first_half, places_of_ragged, readable, rotate


def fused_apply_mla_rope_for_q(
    t: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    qk_head_dim: int,
    emb_dim: int,
    cu_seqlens_q: torch.Tensor | None = None,
    cp_rank: int = 0,
    cp_size: int = 1,
    rotary_interleaved: bool = False,
) -> torch.Tensor:
    """Rotate the last ``emb_dim`` elements of every head where they are: neighbours, which become halves.

    Parameters
    ----------
    t : torch.Tensor
        ``[seq, batch, heads, qk_head_dim + emb_dim]``, or ``[tokens, heads, qk_head_dim + emb_dim]`` with cu_seqlens_q.
        It is written, and returned, and may be a leaf that requires grad.
    cos, sin : torch.Tensor
        ``[rows, 1, 1, emb_dim]``, a row a position, with the same values in both halves.
    qk_head_dim, emb_dim : int
        Elements that stay, and that turn.
    cu_seqlens_q : torch.Tensor, optional
        ``[sequences + 1]``: where sequences begin, of all ranks together.
    cp_rank, cp_size : int
        Of context parallelism, with cu_seqlens_q: each rank has its chunk and that from the end.
    rotary_interleaved : bool
        False alone.
    """
    _check(t, qk_head_dim + emb_dim, emb_dim, rotary_interleaved)

    def turn(x: torch.Tensor, inverse: bool) -> None:
        part = x[..., qk_head_dim:]
        part.copy_(_rotated(part, cos, sin, cu_seqlens_q, cp_rank, cp_size, inverse))

    return InPlace.apply(t, turn)


def fused_apply_mla_rope_for_kv(
    kv: torch.Tensor,
    k_pos_emb: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    emb_dim: int,
    k_dim: int,
    v_dim: int,
    cu_seqlens_kv: torch.Tensor | None = None,
    cp_rank: int = 0,
    cp_size: int = 1,
    rotary_interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, each with the rotated one behind it that all heads share, and values.

    Parameters
    ----------
    kv : torch.Tensor
        ``[seq, batch, heads, k_dim + v_dim]``, or ``[tokens, heads, k_dim + v_dim]`` with cu_seqlens_kv.
    k_pos_emb : torch.Tensor
        ``[seq, batch, 1, emb_dim]`` or ``[tokens, 1, emb_dim]``: neighbours turn, which become halves.
    cos, sin, emb_dim, cu_seqlens_kv, cp_rank, cp_size, rotary_interleaved
        As for :func:`fused_apply_mla_rope_for_q`.

    Returns
    -------
    tuple of torch.Tensor
        ``[.., heads, k_dim + emb_dim]`` and ``[.., heads, v_dim]``, contiguous.
    """
    _check(kv, k_dim + v_dim, emb_dim, rotary_interleaved)
    turned = _rotated(k_pos_emb, cos, sin, cu_seqlens_kv, cp_rank, cp_size, False)
    k, v = kv.split((k_dim, v_dim), -1)
    return torch.cat((k, turned.expand(*kv.shape[:-1], emb_dim)), -1), v.contiguous()


def _check(x: torch.Tensor, dim: int, emb_dim: int, rotary_interleaved: bool) -> None:
    assert not rotary_interleaved
    assert x.shape[-1] == dim
    assert x.stride(-1) == 1
    assert emb_dim % 4 == 0


def _rotated(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cu_seqlens: torch.Tensor | None, cp_rank: int, cp_size: int,
    inverse: bool,
) -> Any:  # fmt: skip
    """Neighbours of all of x, which become halves; or the other way."""
    places = {} if cu_seqlens is None else places_of_ragged(x, cu_seqlens, None, cp_rank, cp_size)
    rows = {name: first_half(readable(table.detach()))[:, 0, 0] for name, table in (("cos", cos), ("sin", sin))}
    layout: Any = "sbhd" if cu_seqlens is None else "thd"
    out_layout = "gptj" if inverse else "neox"
    return rotate((x,), rows, layout, places, neox=inverse, inverse=inverse, out_layout=out_layout)[0]
