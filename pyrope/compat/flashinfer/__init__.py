"""FlashInfer's rotations and appends (flashinfer.rope, .norm and .page of 22 August 2026), by pyrope.

They run on the CPU too, with float32 q and k, every even rotary_dim of any head_dim, and strided tensors; what differs
on purpose is in the README of :mod:`pyrope.compat`.
"""

from pyrope.compat.flashinfer import diffusion_ops, norm, page, rope
from pyrope.compat.flashinfer.norm import fused_qk_rmsnorm_rope
from pyrope.compat.flashinfer.page import (
    append_paged_kv_cache,
    append_paged_mla_kv_cache,
    get_batch_indices_positions,
    get_seq_lens,
)
from pyrope.compat.flashinfer.rope import (
    apply_llama31_rope,
    apply_llama31_rope_inplace,
    apply_llama31_rope_pos_ids,
    apply_llama31_rope_pos_ids_inplace,
    apply_rope,
    apply_rope_inplace,
    apply_rope_pos_ids,
    apply_rope_pos_ids_inplace,
    apply_rope_with_cos_sin_cache,
    apply_rope_with_cos_sin_cache_inplace,
    mla_rope_quantize_fp8,
    rope_quantize_fp8,
    rope_quantize_fp8_append_paged_kv_cache,
)

__all__ = [
    "append_paged_kv_cache",
    "append_paged_mla_kv_cache",
    "apply_llama31_rope",
    "apply_llama31_rope_inplace",
    "apply_llama31_rope_pos_ids",
    "apply_llama31_rope_pos_ids_inplace",
    "apply_rope",
    "apply_rope_inplace",
    "apply_rope_pos_ids",
    "apply_rope_pos_ids_inplace",
    "apply_rope_with_cos_sin_cache",
    "apply_rope_with_cos_sin_cache_inplace",
    "diffusion_ops",
    "fused_qk_rmsnorm_rope",
    "get_batch_indices_positions",
    "get_seq_lens",
    "mla_rope_quantize_fp8",
    "norm",
    "page",
    "rope",
    "rope_quantize_fp8",
    "rope_quantize_fp8_append_paged_kv_cache",
]
