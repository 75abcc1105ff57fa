"""flashinfer.diffusion_ops."""

from pyrope.compat.flashinfer.norm import fused_qk_rmsnorm_rope

__all__ = ["fused_qk_rmsnorm_rope"]
