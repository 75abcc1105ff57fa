"""TransformerEngine's rotary functions (transformer_engine.pytorch.attention.rope, 22 August 2026), by pyrope.

They run on the CPU too; ``fused`` makes no difference. pyrope/compat/README.md says what differs.
"""

from pyrope.compat.transformer_engine.pytorch.attention.rope import (
    RotaryPositionEmbedding,
    apply_fused_qkv_rotary_pos_emb,
    apply_rotary_pos_emb,
)

__all__ = ["RotaryPositionEmbedding", "apply_fused_qkv_rotary_pos_emb", "apply_rotary_pos_emb"]
