"""Liger-Kernel's rotary functions (liger_kernel.transformers.rope, ead96b61), by pyrope.

They run on the CPU too, and leave q and k as they are. pyrope/compat/README.md says what differs.
"""

from pyrope.compat.liger.transformers.rope import liger_rotary_pos_emb, liger_rotary_pos_emb_vision

__all__ = ["liger_rotary_pos_emb", "liger_rotary_pos_emb_vision"]
