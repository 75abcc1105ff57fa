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
