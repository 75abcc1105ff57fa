"""FlashInfer's tables of cosines and sines."""

import torch

from pyrope.compat._serving import table_width


def check_table(cos_sin_cache: torch.Tensor) -> int:
    """rotary_dim; the error is FlashInfer's."""
    if cos_sin_cache.dtype != torch.float32:
        raise ValueError(f"cos_sin_cache should be float32, got {cos_sin_cache.dtype}")
    return table_width(cos_sin_cache)
