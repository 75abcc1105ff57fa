"""SGLang's rotations (0.5.23, sglang.kernels.ops.attention), by pyrope.

Heads of every size and dtypes of four bytes too; what differs on purpose is in the README of :mod:`pyrope.compat`.
"""

from pyrope.compat.sglang import fused_qknorm_rope, rope
from pyrope.compat.sglang.fused_qknorm_rope import fused_qk_norm_rope, fused_qk_norm_rope_out
from pyrope.compat.sglang.rope import (
    FusedSetKVBufferArg,
    apply_rope_inplace,
    apply_rope_inplace_with_kvcache,
    apply_rope_with_cos_sin_cache_inplace,
    rotary_embedding,
)

__all__ = [
    "FusedSetKVBufferArg",
    "apply_rope_inplace",
    "apply_rope_inplace_with_kvcache",
    "apply_rope_with_cos_sin_cache_inplace",
    "fused_qk_norm_rope",
    "fused_qk_norm_rope_out",
    "fused_qknorm_rope",
    "rope",
    "rotary_embedding",
]
