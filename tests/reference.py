"""Rotary embedding in float64 and arbitrary precision, written from the papers; shares nothing with pyrope."""

import ml_dtypes
import numpy as np
from mpmath import mp, mpf

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
BITS = 300  # of every mpmath number: positions reach 2^63, results are wanted to far below 2^-30


def base_frequencies(rotary_dim, theta):
    """theta^(-2i/r), RoFormer (arXiv:2104.09864), section 3.2.2, as mpmath numbers."""
    with mp.workprec(BITS):
        return [mpf(theta) ** (mpf(-2 * i) / rotary_dim) for i in range(rotary_dim // 2)]


def linear_frequencies(rotary_dim, theta, factor):
    """Position interpolation (arXiv:2306.15595), equation 4: f(x, m) becomes f(x, m / factor)."""
    with mp.workprec(BITS):
        return [f / mpf(factor) for f in base_frequencies(rotary_dim, theta)]


def llama3_frequencies(rotary_dim, theta, factor, low, high, original):
    """The rule of Llama 3.1's reference code, by wavelength."""
    with mp.workprec(BITS):
        result = []
        for f in base_frequencies(rotary_dim, theta):
            wavelength = 2 * mp.pi / f
            if wavelength < mpf(original) / high:
                result.append(f)
            elif wavelength > mpf(original) / low:
                result.append(f / factor)
            else:
                smooth = (mpf(original) / wavelength - low) / (mpf(high) - low)
                result.append((1 - smooth) * f / factor + smooth * f)
        return result


def ntk_frequencies(rotary_dim, theta, stretch):
    """NTK-aware scaling as YaRN's paper (arXiv:2309.00071) defines it: b' = b * s^(|D| / (|D| - 2))."""
    with mp.workprec(BITS):
        return base_frequencies(rotary_dim, mpf(theta) * mpf(stretch) ** (mpf(rotary_dim) / (rotary_dim - 2)))


def dynamic_ntk_frequencies(rotary_dim, theta, factor, original, length):
    """Dynamic NTK: the stretch follows the current length, and is none up to the original one."""
    with mp.workprec(BITS):
        stretch = mpf(factor) * length / original - (mpf(factor) - 1)
        return ntk_frequencies(rotary_dim, theta, max(stretch, mpf(1)))


def yarn_frequencies(rotary_dim, theta, factor, original, fast=32, slow=1, truncate=True):
    """NTK-by-parts, arXiv:2309.00071, equations 11 to 13, gamma being a ramp over the pairs' indices as in the
    authors' code: the index at which a pair turns n times solves original * theta^(-2i/r) = 2 pi n."""
    with mp.workprec(BITS):
        low, high = (
            mpf(rotary_dim) / 2 * mp.log(original / (2 * mp.pi * mpf(turns))) / mp.log(mpf(theta))
            for turns in (fast, slow)
        )
        if truncate:
            low, high = mp.floor(low), mp.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        result = []
        for i, f in enumerate(base_frequencies(rotary_dim, theta)):
            gamma = 1 - min(max((i - low) / (high - low), 0), 1)
            result.append((1 - gamma) * f / mpf(factor) + gamma * f)
        return result


def yarn_magnitude(factor, mscale=1, mscale_all_dim=0):
    """arXiv:2309.00071, section 3.4: sqrt(1/t) = 0.1 ln(s) + 1, over the same with DeepSeek's mscale_all_dim."""
    growth = mp.log(factor) if factor > 1 else 0
    return float((mpf("0.1") * mscale * growth + 1) / (mpf("0.1") * mscale_all_dim * growth + 1))


def divided_frequencies(rotary_dim, theta, factors):
    """LongRoPE (arXiv:2402.13753), equation 2, and rope_freqs of GGUF files: pair i divided by factors[i]."""
    with mp.workprec(BITS):
        return [f / mpf(x) for f, x in zip(base_frequencies(rotary_dim, theta), factors, strict=True)]


def longrope_magnitude(factor, original):
    """Phi-3's: sqrt(1 + ln(s) / ln(original))."""
    return float(mp.sqrt(1 + mp.log(factor) / mp.log(original))) if factor > 1 else 1.0


def proportional_frequencies(rotary_dim, theta, proportion, factor=1):
    """p-RoPE (arXiv:2410.06205), section 6: the lowest (1 - p) of the frequencies are 0."""
    with mp.workprec(BITS):
        turning = int(mp.floor(mpf(proportion) * rotary_dim / 2))
        return [f / mpf(factor) if i < turning else mpf(0) for i, f in enumerate(base_frequencies(rotary_dim, theta))]


def cos_sin(positions, inv_freq):
    """float64 [len(positions), len(inv_freq)] of cos and sin; the product of the two is formed without rounding."""
    with mp.workprec(BITS):
        angles = [[mpf(int(p)) * f for f in inv_freq] for p in positions]
        pairs = [[(float(mp.cos(a)), float(mp.sin(a))) for a in row] for row in angles]
    table = np.array(pairs, dtype=np.float64).reshape(len(positions), len(inv_freq), 2)
    return table[..., 0], table[..., 1]


def cos_sin_fp32(positions, inv_freq):
    """The same of the float32 angle float32(position) * float32(inv_freq), as tables of Hugging Face hold."""
    f = np.array([float(x) for x in inv_freq]).astype(np.float32)
    angles = np.asarray(positions).astype(np.float32)[:, None] * f
    with mp.workprec(BITS):
        pairs = [[(float(mp.cos(mpf(float(a)))), float(mp.sin(mpf(float(a))))) for a in row] for row in angles]
    table = np.array(pairs, dtype=np.float64).reshape(*angles.shape, 2)
    return table[..., 0], table[..., 1]


def pair_indices(rotary_dim, layout):
    """The two elements of every pair: NeoX splits the rotated part in halves, GPT-J interleaves."""
    i = np.arange(rotary_dim // 2)
    return (i, i + rotary_dim // 2) if layout == "neox" else (2 * i, 2 * i + 1)


def rotate(x, cos, sin, layout, rotary_dim, rotary_offset=0):
    """x [tokens, heads, head_dim] in float64; cos and sin [tokens, rotary_dim / 2]. RoFormer, equation 34."""
    x = np.asarray(x, dtype=np.float64)
    first, second = (rotary_offset + i for i in pair_indices(rotary_dim, layout))
    c, s = cos[:, None, :], sin[:, None, :]
    y = x.copy()
    y[..., first] = x[..., first] * c - x[..., second] * s
    y[..., second] = x[..., first] * s + x[..., second] * c
    return y


def error_bound(x, y, dtype, layout, rotary_dim, rotary_offset=0):
    """What |result - y| may be: one rounding to dtype, and 3e-7 of the pair's length for cos, sin and float32
    arithmetic (1e-7 + 3 * 2^-24, with the cross terms)."""
    x = np.abs(np.asarray(x, dtype=np.float64))
    first, second = (rotary_offset + i for i in pair_indices(rotary_dim, layout))
    length = np.hypot(x[..., first], x[..., second])
    bound = np.zeros_like(y)
    bound[..., first] = bound[..., second] = 3e-7 * length
    info = ml_dtypes.finfo(DTYPES[dtype])
    half_ulp = np.maximum(np.abs(y) + bound, float(info.smallest_normal)) * float(info.eps) / 2
    rotated = np.zeros(y.shape, bool)
    rotated[..., first] = rotated[..., second] = True
    return np.where(rotated, bound + half_ulp, 0.0)
