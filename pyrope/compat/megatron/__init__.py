"""Megatron-LM's fused rotary functions of multi-head latent attention (megatron-core 0.16.1,
megatron.core.fusions.fused_mla_yarn_rope_apply), by pyrope.

They run on the CPU too. pyrope/compat/README.md says what differs.
"""

from pyrope.compat.megatron.core.fusions.fused_mla_yarn_rope_apply import (
    fused_apply_mla_rope_for_kv,
    fused_apply_mla_rope_for_q,
)

__all__ = ["fused_apply_mla_rope_for_kv", "fused_apply_mla_rope_for_q"]
