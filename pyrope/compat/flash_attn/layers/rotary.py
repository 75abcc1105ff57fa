"""flash_attn.layers.rotary."""

from collections.abc import Callable
from typing import TypeAlias

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._training import InPlace
from pyrope.compat.flash_attn._turn import places_of, rope_of_tables, tables_of, turn_
from pyrope.compat.flash_attn.ops.triton.rotary import apply_rotary

Parts: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]


def apply_rotary_emb(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """:func:`pyrope.compat.flash_attn.apply_rotary` with a gradient, of x alone."""
    if inplace:

        def turn(x: torch.Tensor, conjugate: bool) -> None:
            apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved, True, conjugate)

        return InPlace.apply(x, turn)
    tables = tables_of(x, cos, sin, cu_seqlens, max_seqlen)
    places = places_of(x, cos.shape[0], seqlen_offsets, cu_seqlens, max_seqlen)
    rope = rope_of_tables(x, x.shape[-2], 0, 2 * cos.shape[1], interleaved)
    (out, _) = pyrope.torch.apply(rope, x, **places, **tables)
    assert out is not None
    return out


apply_rotary_emb_func = apply_rotary_emb


def parts_of(qkv: torch.Tensor, num_heads_q: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k of ``[batch, seqlen, 3, heads, head_dim]`` or ``[batch, seqlen, q heads + 2 k heads, head_dim]``."""
    if qkv.dim() == 5:
        assert qkv.shape[2] == 3
        return qkv[:, :, 0], qkv[:, :, 1]
    assert qkv.dim() == 4
    assert num_heads_q is not None
    num_heads_k = (qkv.shape[2] - num_heads_q) // 2
    assert qkv.shape[2] == num_heads_q + 2 * num_heads_k
    return qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + num_heads_k]


def apply_rotary_emb_qkv_(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cos_k: torch.Tensor | None = None,
    sin_k: torch.Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | torch.Tensor = 0,
    num_heads_q: int | None = None,
) -> torch.Tensor:
    """Rotate q and k where they lie in one tensor, with a gradient; k by tables of its own where they are given.

    ``qkv`` is ``[batch, seqlen, 3, heads, head_dim]``, or with ``num_heads_q``
    ``[batch, seqlen, num_heads_q + 2 * num_heads_k, head_dim]``.
    """

    def turn(x: torch.Tensor, conjugate: bool) -> None:
        q, k = parts_of(x, num_heads_q)
        tables = tables_of(q, cos, sin, None, None)
        if cos_k is not None or sin_k is not None:
            of_k = tables_of(k, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k, None, None)
            tables |= {f"k_{name}": table for name, table in of_k.items()}
        places = places_of(q, cos.shape[0], seqlen_offsets, None, None)
        rope = rope_of_tables(q, q.shape[2], k.shape[2], 2 * cos.shape[1], interleaved)
        turn_(rope, q, k, inverse=conjugate, **places, **tables)

    return InPlace.apply(qkv, turn)


def apply_rotary_emb_kv_(
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | torch.Tensor = 0,
) -> torch.Tensor:
    """Rotate k where it lies in ``[batch, seqlen, 2, heads, head_dim]``, with a gradient."""
    assert kv.dim() == 5 and kv.shape[2] == 2

    def turn(x: torch.Tensor, conjugate: bool) -> None:
        apply_rotary(x[:, :, 0], cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True, conjugate=conjugate)

    return InPlace.apply(kv, turn)


class RotaryEmbedding(torch.nn.Module):
    """Rotary embedding of packed q, k and v, in place, with a gradient; with ``scale_base`` xPos (arXiv:2212.10554).

    Parameters
    ----------
    dim : int
        Elements of a head that are rotated.
    base : float
        Of the frequencies.
    interleaved : bool
        Pairs are neighbours instead of halves.
    scale_base : float, optional
        Of xPos, whose magnitudes are 1 in the middle of the longest sequence so far.
    device : torch.device, optional
        Of ``inv_freq``.

    Attributes
    ----------
    inv_freq : torch.Tensor
        ``[dim / 2]`` float32, to be read: there are no tables, and angles do not come from it.
    """

    inv_freq: torch.Tensor

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved, self.scale_base = dim, float(base), interleaved, scale_base
        inv_freq = pyrope.Rope(dim, 1, 0, theta=base, device="cpu").inv_freq
        self.register_buffer("inv_freq", torch.tensor(inv_freq, dtype=torch.float32, device=device), persistent=False)
        self._seq_len_cached = 0

    def _turned(self, x: torch.Tensor, parts: Parts, seqlen_offsets: int | torch.Tensor) -> torch.Tensor:
        """x, whose parts that are q and k are rotated in place."""
        xpos = None if self.scale_base is None else (self.scale_base, 0.4, self._seq_len_cached // 2)

        def turn(x: torch.Tensor, conjugate: bool) -> None:
            q, k = parts(x)
            some = k if q is None else q
            assert some is not None
            q_heads, k_heads = (0 if part is None else part.shape[2] for part in (q, k))
            shape = some.shape[-1], q_heads, k_heads, self.dim, not self.interleaved
            rope = rope_of(*shape, some.dtype, some.device.type, theta=self.base, xpos=xpos)
            turn_(rope, q, k, inverse=conjugate, **places_of(some, None, seqlen_offsets, None, None))

        return InPlace.apply(x, turn)

    def forward(
        self,
        qkv: torch.Tensor,
        kv: torch.Tensor | None = None,
        seqlen_offset: int | torch.Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Rotate q and k in place.

        Parameters
        ----------
        qkv : torch.Tensor
            As for :func:`apply_rotary_emb_qkv_`; with ``kv`` it is q, ``[batch, seqlen, heads, head_dim]``.
        kv : torch.Tensor, optional
            ``[batch, seqlen, 2, heads, head_dim]``.
        seqlen_offset : int or torch.Tensor
            Position of the first token of every sequence; ``[batch]``.
        max_seqlen : int, optional
            With xPos: the longest sequence, where ``seqlen_offset`` is a tensor.
        num_heads_q : int, optional
            As for :func:`apply_rotary_emb_qkv_`.

        Returns
        -------
        torch.Tensor, or two
            qkv, or q and kv.
        """
        length = max_seqlen
        if length is None and isinstance(seqlen_offset, int):
            length = qkv.shape[1] + seqlen_offset
        self._seq_len_cached = max(self._seq_len_cached, length or 0)
        if kv is None:
            return self._turned(qkv, lambda x: parts_of(x, num_heads_q), seqlen_offset)
        assert kv.dim() == 5 and kv.shape[2] == 2
        q = self._turned(qkv, lambda x: (x, None), seqlen_offset)
        return q, self._turned(kv, lambda x: (None, x[:, :, 0]), seqlen_offset)
