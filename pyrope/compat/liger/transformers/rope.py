"""liger_kernel.transformers.rope."""

from typing import Any

import torch

from pyrope.compat.transformers import apply_rotary_pos_emb, apply_rotary_pos_emb_vision


def liger_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: Any = None,
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate halves of q and k.

    They are ``[batch, heads, seq, head_dim]``, cos and sin ``[1 or batch, seq, head_dim]`` with equal halves.
    position_ids and unsqueeze_dim are not used. Results are views of contiguous ``[batch, seq, heads, head_dim]``.
    """
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    return apply_rotary_pos_emb(q, k, cos.detach(), sin.detach())


def liger_rotary_pos_emb_vision(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of ``[seq, heads, head_dim]`` and ``[seq, head_dim]``."""
    return apply_rotary_pos_emb_vision(q.contiguous(), k.contiguous(), cos.detach(), sin.detach())
