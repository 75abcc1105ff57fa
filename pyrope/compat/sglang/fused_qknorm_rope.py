"""sglang.kernels.ops.attention.fused_qknorm_rope."""

import torch

from pyrope.compat._serving import norm_and_turn_, ramped_frequencies


def fused_qk_norm_rope(
    qkv: torch.Tensor,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_dim: int,
    eps: float,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    base: float,
    is_neox: bool,
    position_ids: torch.Tensor,
    factor: float,
    low: float,
    high: float,
    attention_factor: float,
    rotary_dim: int | None = None,
) -> None:
    """Norm of every head of q and k, then their rotation by exact angles, where they lie.

    Parameters
    ----------
    qkv : torch.Tensor
        ``[tokens, (all heads) * head_dim]``; v is left alone.
    num_heads_q, num_heads_k, num_heads_v, head_dim : int
        Its shape.
    eps, q_weight, k_weight
        Of the norm; ``[head_dim]`` of qkv's dtype or float32.
    base, factor, low, high : float
        Of the frequencies, with YaRN's ramp between the pairs ``low`` and ``high``; factor 1 is without.
    is_neox : bool
        Pairs are halves instead of neighbours.
    position_ids : torch.Tensor
        ``[tokens]`` int32 or int64.
    attention_factor : float
        What the rotated elements are multiplied with.
    rotary_dim : int, optional
        Elements of a head that are rotated. Default: all.
    """
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    fused_qk_norm_rope_out(
        qkv, q_weight, k_weight, position_ids, num_heads_q, num_heads_k, num_heads_v, head_dim, eps, base, is_neox,
        factor, low, high, attention_factor, rotary_dim,
    )  # fmt: skip


def fused_qk_norm_rope_out(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    position_ids: torch.Tensor,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_dim: int,
    eps: float,
    base: float,
    is_neox: bool,
    factor: float,
    low: float,
    high: float,
    attention_factor: float,
    rotary_dim: int,
) -> None:
    """:func:`fused_qk_norm_rope` with its arguments in another order."""
    # Without a ramp theta is quicker to look up than the frequencies.
    ramp = {"theta": base} if factor == 1 else {"inv_freq": ramped_frequencies(rotary_dim, base, factor, low, high)}
    norm_and_turn_(
        qkv, (num_heads_q, num_heads_k, num_heads_v), head_dim, rotary_dim, is_neox, eps,
        {"q_weight": q_weight, "k_weight": k_weight}, position_ids, attention_factor=attention_factor, **ramp,
    )  # fmt: skip
