"""The pipeline norm -> rotate -> quantise -> append in float64, with the error a float32 pipeline may have.

Written from the papers and format definitions, sharing nothing with pyrope: RMSNorm (arXiv:1910.07467), fp8 formats
(arXiv:2209.05433), M-RoPE's sections (arXiv:2409.12191), xPos (arXiv:2212.10554). A value here is a pair of float64
arrays: what it is, and how far from it a correct float32 result may be.
"""

import functools
from fractions import Fraction

import ml_dtypes
import numpy as np
import reference
from mpmath import mp

U = 2.0**-24  # half a unit in the last place of float32, relative
# Of a rotated pair of length 1 with cos and sin as angles: 1e-7 for each of them, its rounding times the attention
# factor, two products and a sum; with the cross terms.
ROTATION = 3.5e-7
XPOS = 1e-7 + U  # what xPos adds: its magnitude, and the rounding of its products with cos and sin

FORMATS = {  # mantissa bits, least exponent of a normal number, largest finite value
    "float32": (23, -126, float(np.finfo(np.float32).max), np.float32),
    "float16": (10, -14, 65504.0, np.float16),
    "bfloat16": (7, -126, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), ml_dtypes.bfloat16),
    "float8_e4m3fn": (3, -6, 448.0, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": (2, -14, 57344.0, ml_dtypes.float8_e5m2),
    "int8": (None, None, 127.0, np.int8),
}
QUANTISED = ("float8_e4m3fn", "float8_e5m2", "int8")


def storage(name):
    return np.dtype(FORMATS[name][3])


def decode(array):
    """Stored numbers of any format as float64."""
    with np.errstate(invalid="ignore"):  # NaNs
        return np.asarray(array).astype(np.float64)


def round_to(x, name):
    """Float64 to the nearest number of a format, ties to even, saturating; NaN stays (0 in int8)."""
    mantissa, least, largest, _ = FORMATS[name]
    x = np.asarray(x, np.float64)
    if mantissa is None:
        return np.clip(np.rint(np.nan_to_num(x, nan=0.0, posinf=1e9, neginf=-1e9)), -128, 127)
    exponent = np.maximum(np.frexp(x)[1] - 1, least)
    unit = np.ldexp(1.0, exponent - mantissa)
    rounded = np.rint(x / unit) * unit
    return np.clip(rounded, -largest, largest) if name in QUANTISED else rounded


def within(stored, value, name):
    """Whether stored numbers of a format are roundings of something within the error of a value."""
    y, error = value
    got = decode(stored)
    return (round_to(y - error, name) <= got) & (got <= round_to(y + error, name))


# ---- norm


def rms_norm(value, weight, eps, bias):
    """x / sqrt(mean(x^2) + eps) * (weight + bias) over the last axis, arXiv:1910.07467, equation 4."""
    x, error = value
    n = x.shape[-1]
    squares = (x * x).sum(-1, keepdims=True)
    inverse = 1 / np.sqrt(squares / n + eps)
    w = weight.astype(np.float64) + bias
    y = x * inverse * w
    # Relative, of float32: squares and their sum (of 16 partial sums or a tree), mean and eps, halved by the root; the
    # root, the reciprocal, two products and weight + bias. The error of x moves the sum by 2 * |x| . error.
    additions = -(-n // 16) + 4
    relative = U * ((additions + 3) / 2 + 6) + (np.abs(x) * error).sum(-1, keepdims=True) / np.maximum(squares, 1e-30)
    return y, np.abs(y) * relative + error * inverse * np.abs(w)


# ---- angles: turns as exact fractions, so that differences of positions are exact too

BITS = 192
ONE = 1 << BITS


@functools.cache
def inverse_two_pi():
    with mp.workprec(BITS + 80):
        return int(mp.floor(mp.mpf(2) ** BITS / (2 * mp.pi)))


@functools.cache
def words_exact(rotary_dim, theta):
    """Turns per position of every pair, times 2^BITS."""
    with mp.workprec(BITS + 80):
        scale = mp.mpf(2) ** BITS / (2 * mp.pi)
        return [int(mp.nint(f * scale)) for f in reference.base_frequencies(rotary_dim, theta)]


@functools.cache
def frequencies_fp32(rotary_dim, theta):
    return np.array([float(f) for f in reference.base_frequencies(rotary_dim, theta)]).astype(np.float32)


@functools.cache
def phase_fp32(position, frequency):
    angle = Fraction(float(np.float32(np.int64(position)) * np.float32(frequency)))
    return inverse_two_pi() * angle.numerator // angle.denominator


def phases(positions, mode, rotary_dim, theta):
    """Turns, times 2^BITS, of [tokens][pairs] positions; theta: one, or one a token."""
    rows = []
    for token, row in enumerate(np.asarray(positions).tolist()):
        base = theta[token] if isinstance(theta, (list, tuple)) else theta
        if mode == "exact":
            rows.append([p * w for p, w in zip(row, words_exact(rotary_dim, base), strict=True)])
        else:
            f = frequencies_fp32(rotary_dim, base).tolist()
            rows.append([phase_fp32(p, w) for p, w in zip(row, f, strict=True)])
    return rows


def cos_sin(turns):
    """Cosine and sine of phases, each to float64's accuracy."""
    radians = np.array([[(p % ONE) / ONE for p in row] for row in turns]) * (2 * np.pi)
    return np.cos(radians), np.sin(radians)


def minus(turns, others):
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(turns, others, strict=True)]


def streams(pairs, sizes, interleaved):
    """The stream whose position each pair takes; arXiv:2409.12191, and Qwen3-VL's interleaving."""
    if not interleaved:
        return np.repeat(np.arange(len(sizes)), sizes)
    i = np.arange(pairs)
    stream = i % len(sizes)
    return np.where(i < len(sizes) * np.asarray(sizes)[stream], stream, 0)


def rotate(value, cos, sin, layout, rotary_dim, rotary_offset, relative=ROTATION):
    """RoFormer, equation 34, cos and sin [tokens, pairs], an attention factor and xPos already in them."""
    x, error = value
    y = reference.rotate(x, cos, sin, layout, rotary_dim, rotary_offset)
    first, second = (rotary_offset + i for i in reference.pair_indices(rotary_dim, layout))
    c, s = np.abs(cos)[:, None], np.abs(sin)[:, None]
    length = np.hypot(x[..., first], x[..., second]) * np.hypot(c, s)
    carried = error.copy()
    carried[..., first] = error[..., first] * c + error[..., second] * s + relative * length
    carried[..., second] = error[..., second] * c + error[..., first] * s + relative * length
    return y, carried


def xpos(distances, rotary_dim, scale_base, gamma):
    """xPos (arXiv:2212.10554): zeta^(n / scale_base) of [tokens, pairs] distances n, for q; k takes the reciprocal."""
    zeta = (np.arange(rotary_dim // 2) / (rotary_dim / 2) + gamma) / (1 + gamma)
    return zeta ** (np.asarray(distances, np.float64) / scale_base)


# ---- quantisation


def scaled(value, scale):
    """x * (1 / scale): a rounded reciprocal and a rounded product."""
    y, error = (part / scale for part in value)
    return y, error + 2 * U * np.abs(y)


def dynamic_scale(value, name):
    """(least, greatest) scale of every row: its largest magnitude / the format's, 1 for zeros; NaN is passed over."""
    y, error = value
    magnitude = np.where(np.isnan(y), 0, np.abs(y))
    ends = [np.maximum(magnitude + sign * error, 0).max(-1) / FORMATS[name][2] for sign in (-1, 1)]
    zeros = magnitude.max(-1) == 0
    return tuple(np.where(zeros, 1.0, end * (1 + 2 * sign * U)) for end, sign in zip(ends, (-1, 1), strict=True))


# ---- caches


def slots_of_pages(cache_positions, request_ids, page_table, starts, page_size):
    """Slots by a page table; -1 where a request or a position is negative."""
    slots = np.full(len(cache_positions), -1, np.int64)
    for token, (n, request) in enumerate(zip(cache_positions, request_ids, strict=True)):
        if n >= 0 and request >= 0:
            slots[token] = int(page_table[starts[request] + n // page_size]) * page_size + n % page_size
    return slots
