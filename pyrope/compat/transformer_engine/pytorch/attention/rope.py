"""transformer_engine.pytorch.attention.rope."""

from typing import Any

import torch

import pyrope
import pyrope.torch
from pyrope.compat._training import places_of_ragged, readable, rotate


class RotaryPositionEmbedding(torch.nn.Module):
    """Angles of rotary position embedding (arXiv:2104.09864).

    Parameters
    ----------
    dim : int
        Elements of a head.
    rotary_percent : float
        The part of them that turns.
    seq_len_interpolation_factor, pretrained_max_position_embeddings : int, optional
        Both given: positions are divided by the factor, or in longer sequences than the two allow by what brings them
        into the length that the model was trained with (arXiv:2306.15595).
    rotary_base : float
        Of the frequencies.
    interleaved : bool
        Pairs are neighbours instead of halves.

    Attributes
    ----------
    inv_freq : torch.Tensor
        ``[dim / 2]`` float32, to be read: angles do not come from it.
    """

    inv_freq: torch.Tensor

    def __init__(
        self,
        dim: int,
        rotary_percent: float = 1.0,
        seq_len_interpolation_factor: int | None = None,
        pretrained_max_position_embeddings: int | None = None,
        rotary_base: float = 10000.0,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        if rotary_percent < 1.0:
            dim = int(dim * rotary_percent)
        self.seq_len_interpolation_factor = seq_len_interpolation_factor
        self.rotary_base = rotary_base
        self.pretrained_max_position_embeddings = pretrained_max_position_embeddings
        self.interleaved = interleaved
        self._frequencies = torch.tensor(pyrope.Rope(dim, 1, 0, theta=rotary_base, device="cpu").inv_freq)
        device = torch.device("cuda") if torch.cuda.is_available() else None
        self.register_buffer("inv_freq", self._frequencies.to(device, torch.float32))

    def forward(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """``[max_seq_len, 1, 1, dim]`` float32: the angles of positions from ``offset`` on, each for both of a pair."""
        positions = torch.arange(offset, offset + max_seq_len, dtype=torch.float64)
        factor, trained = self.seq_len_interpolation_factor, self.pretrained_max_position_embeddings
        if factor is not None and trained is not None:
            positions /= max(factor, max_seq_len / trained)
        angles = torch.outer(positions, self._frequencies)
        both = angles.repeat_interleave(2, -1) if self.interleaved else torch.cat((angles, angles), -1)
        return both.to(self.inv_freq.device, torch.float32)[:, None, None]


def apply_rotary_pos_emb(
    t: torch.Tensor,
    freqs: torch.Tensor,
    tensor_format: str = "sbhd",
    start_positions: torch.Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> torch.Tensor:
    """Rotate the first ``d2`` elements of every head, with a gradient of ``t``.

    Parameters
    ----------
    t : torch.Tensor
        ``[s, b, h, d]``, ``[b, s, h, d]`` or ``[t, h, d]``, of any strides. The result is contiguous.
    freqs : torch.Tensor
        ``[s2, 1, 1, d2]`` angles, float32, a row a position. A token behind the last is returned as it is.
    tensor_format : {"sbhd", "bshd", "thd"}
        Of t.
    start_positions : torch.Tensor, optional
        ``[b]``: of each sequence, in place of 0.
    interleaved : bool
        Pairs are neighbours instead of halves; in freqs too.
    fused : bool
        Not used.
    cu_seqlens : torch.Tensor, optional
        ``[b + 1]``, with ``thd``: where sequences begin, of all ranks together.
    cp_size, cp_rank : int
        Ranks of context parallelism, of which each has two chunks of a sequence: its own, and that from the end.

    Raises
    ------
    AssertionError, ValueError
        As TransformerEngine does.
    """
    return _turn((t,), freqs, tensor_format, start_positions, interleaved, cu_seqlens, cp_size, cp_rank, fused)[0]


def apply_fused_qkv_rotary_pos_emb(
    qkv: torch.Tensor,
    q_freqs: torch.Tensor,
    k_freqs: torch.Tensor,
    qkv_split_arg_list: list[int],
    tensor_format: str = "sbhd",
    start_positions: torch.Tensor | None = None,
    interleaved: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v of one tensor, contiguous, with q and k rotated; other arguments as :func:`apply_rotary_pos_emb`.

    Parameters
    ----------
    qkv : torch.Tensor
        ``[s, b, groups, q + k + v]`` or ``[b, s, groups, q + k + v]``.
    q_freqs, k_freqs : torch.Tensor
        Angles of q and of k.
    qkv_split_arg_list : list of int
        Elements of q, k and v in a group. q becomes ``groups * q / k`` heads of as many elements as k.
    """
    assert tensor_format in ("sbhd", "bshd"), f"Unsupported tensor_format: {tensor_format}."
    q, k, v = qkv.split(qkv_split_arg_list, -1)
    q = q.reshape(*q.shape[:2], -1, k.shape[-1])
    rest: tuple[Any, ...] = (tensor_format, start_positions, interleaved, cu_seqlens, cp_size, cp_rank, True)
    if q_freqs is k_freqs:
        q, k = _turn((q, k), q_freqs, *rest)
    else:
        (q,), (k,) = _turn((q,), q_freqs, *rest), _turn((k,), k_freqs, *rest)
    return q, k, v.contiguous()


def _turn(
    ts: tuple[torch.Tensor, ...], freqs: torch.Tensor, tensor_format: Any, start_positions: torch.Tensor | None,
    interleaved: bool, cu_seqlens: torch.Tensor | None, cp_size: int, cp_rank: int, fused: bool,
) -> list[Any]:  # fmt: skip
    t = ts[0]
    assert cp_size == 1 or start_positions is None, "start_positions != None with CP SIZE > 1 is not supported!"
    assert tensor_format != "thd" or cu_seqlens is not None, "cu_seqlens must not be None when tensor_format is 'thd'."
    if tensor_format not in ("sbhd", "bshd", "thd"):
        error = AssertionError if fused else ValueError
        raise error(f"Unsupported tensor_format: {tensor_format}.")
    if freqs.ndim != 4 or freqs.shape[1:3] != (1, 1) or not 0 < freqs.shape[3] <= t.shape[-1]:
        raise ValueError(f"freqs: shape {tuple(freqs.shape)}, must be [s2, 1, 1, at most {t.shape[-1]}]")
    if cu_seqlens is not None and tensor_format == "thd":
        places = places_of_ragged(t, cu_seqlens, start_positions, cp_rank, cp_size)
    else:
        seq = t.shape[tensor_format.index("s")]
        rows = freqs.shape[0]
        assert seq * cp_size <= rows, f"Rotary Embeddings only supported up to {rows} sequence length!"
        places = {}
        if cp_size > 1:
            places = {
                "positions": pyrope.torch.rank_positions(seq * cp_size, cp_rank, cp_size, "zigzag", device=t.device)
            }
        elif start_positions is not None:
            places = {"positions": start_positions[:, None] + torch.arange(seq, device=t.device)}
    angles = {"angles": readable(freqs.detach().float())[:, 0, 0]}
    dense = tuple(x.contiguous() for x in ts)
    return rotate(dense, angles, tensor_format, places, neox=not interleaved, columns="elements")
