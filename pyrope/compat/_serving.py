"""What serving libraries' arguments mean to pyrope.torch: shapes, tables, pages and multipliers."""

import functools
from typing import Any

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import rope_of

FLOAT8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


def table_width(cos_sin_cache: torch.Tensor) -> int:
    """rotary_dim of ``[positions, rotary_dim]``."""
    if cos_sin_cache.ndim != 2:
        raise ValueError(f"cos_sin_cache: shape {tuple(cos_sin_cache.shape)}, must be [positions, rotary_dim]")
    return cos_sin_cache.shape[1]


def heads_of(name: str, width: int, head_size: int) -> int:
    """Heads in a token of so many elements; a shape with -1 would not tell where there are no tokens."""
    if head_size < 1 or width % head_size:
        raise ValueError(f"{name}: {width} elements a token, must be a multiple of head_size={head_size}")
    return width // head_size


def pages_of(name: str, cache: torch.Tensor, layout: str = "NHD") -> tuple[int, int, str]:
    """What rope_of takes, of ``[pages, page_size, heads, dim]``, ``[pages, heads, page_size, dim]``, or no heads."""
    if cache.ndim not in (3, 4):
        raise ValueError(f"{name}: shape {tuple(cache.shape)}, must have 3 or 4 dimensions")
    return cache.shape[2 if layout == "HND" and cache.ndim == 4 else 1], cache.shape[0], layout


def int32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.int32 else x.int()


def float8_of(name: str, dtype: Any) -> str:
    try:
        return FLOAT8[dtype]
    except (KeyError, TypeError):
        allowed = ", ".join(map(str, FLOAT8))
        raise ValueError(f"{name}: {dtype}, must be one of {allowed}") from None


def scale_of(name: str, multiplier: float) -> float:
    """The divisor that pyrope calls a scale, of a number that is multiplied with before rounding."""
    if not multiplier > 0:
        raise ValueError(f"{name}: {multiplier}, must be above 0")
    return 1.0 / multiplier


def check_dtype(name: str, x: torch.Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        raise ValueError(f"{name}: {x.dtype}, must be {dtype}")


def split_qkv(qkv: torch.Tensor, q_heads: int, k_heads: int, v_heads: int, head_dim: int) -> tuple[torch.Tensor, ...]:
    """q, k and v where they lie in ``[tokens, (all heads) * head_dim]``."""
    width = (q_heads + k_heads + v_heads) * head_dim
    if qkv.ndim != 2 or qkv.shape[1] != width:
        raise ValueError(f"qkv: shape {tuple(qkv.shape)}, must be [tokens, {width}]")
    return qkv.split([n * head_dim for n in (q_heads, k_heads, v_heads)], 1)


def norm_and_turn_(
    qkv: torch.Tensor, heads: tuple[int, int, int], head_dim: int, rotary_dim: int, neox: bool, eps: float,
    weights: dict[str, torch.Tensor], positions: torch.Tensor, cos_sin_cache: torch.Tensor | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """Norm of every head of q and k, then their rotation, where they lie in qkv: by a table, or as the options say."""
    q, k, _ = split_qkv(qkv, *heads, head_dim)
    tensors: dict[str, Any] = dict(weights)
    if cos_sin_cache is not None:
        options |= {"angle": "cos_sin", "cos_sin_dtype": cos_sin_cache.dtype}
        tensors["cos"] = cos_sin_cache
    rope = rope_of(
        head_dim, *heads[:2], rotary_dim, neox, qkv.dtype, qkv.device.type,
        norm=(eps, weights["q_weight"].dtype), **options,
    )  # fmt: skip
    pyrope.torch.apply_(rope, q, k, layout="thd", positions=positions, **tensors)


@functools.lru_cache(maxsize=64)
def ramped_frequencies(rotary_dim: int, base: float, factor: float, low: float, high: float) -> tuple[float, ...]:
    """YaRN's by where the ramp is: pairs before ``low`` keep their frequency, those behind ``high`` have it divided by
    factor."""
    high = high if abs(low - high) > 1e-6 else high + 0.001
    result = []
    for i, frequency in enumerate(pyrope.Rope(rotary_dim, 1, 0, theta=base, device="cpu").inv_freq.tolist()):
        slowed = min(max((i - low) / (high - low), 0.0), 1.0)
        result.append(frequency * (1 - slowed) + frequency / factor * slowed)
    return tuple(result)
