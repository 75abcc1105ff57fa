"""flash-attn's rotary functions (flash_attn.layers.rotary and flash_attn.ops.triton.rotary, 15 August 2026), by pyrope.

They run on the CPU too, heads may be longer than 256, and the last dimension need not be contiguous. What differs:

============================================  ===================================  =====================================
                                              flash-attn                           here
============================================  ===================================  =====================================
tokens that no sequence of cu_seqlens has     uninitialised, out of place          as they are
gradient of a call in place                   written over the one that came       a tensor of its own
angles of RotaryEmbedding, magnitudes too     tables in the dtype of q, of         exact at every position, rounded once
                                              angles in float32                    behind the rotation
============================================  ===================================  =====================================

The functions that take cos and sin compute from them as flash-attn does. ``RotaryEmbedding``'s own numbers come from
those functions with tables of torch's.
"""

from pyrope.compat.flash_attn.layers.rotary import (
    RotaryEmbedding,
    apply_rotary_emb,
    apply_rotary_emb_func,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
)
from pyrope.compat.flash_attn.ops.triton.rotary import apply_rotary

__all__ = [
    "RotaryEmbedding",
    "apply_rotary",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
]
