"""vLLM's rotations (0.33.0): its operators as functions, its layers, and pyrope in their place in vLLM itself.

:func:`install` is worth most: vLLM and its models run unchanged, with pyrope under the operators that they call. What
differs on purpose is in the README of :mod:`pyrope.compat`.
"""

from pyrope.compat.vllm._custom_ops import (
    concat_and_cache_mla_rope_fused,
    fused_qk_norm_rope,
    fused_qknorm_rope_cache,
    rotary_embedding,
)
from pyrope.compat.vllm._install import install, uninstall
from pyrope.compat.vllm._layers import (
    ApplyRotaryEmb,
    MRotaryEmbedding,
    RotaryEmbedding,
    get_rope,
    mrope,
    triton_mrope,
)

__all__ = [
    "ApplyRotaryEmb",
    "MRotaryEmbedding",
    "RotaryEmbedding",
    "concat_and_cache_mla_rope_fused",
    "fused_qk_norm_rope",
    "fused_qknorm_rope_cache",
    "get_rope",
    "install",
    "mrope",
    "rotary_embedding",
    "triton_mrope",
    "uninstall",
]
