"""Rotary embedding and its stages in float64 and arbitrary precision; shares nothing with pyrope.

Written from the papers and format definitions: RoFormer (arXiv:2104.09864), the scalings of its frequencies, RMSNorm
(arXiv:1910.07467), fp8 formats (arXiv:2209.05433), M-RoPE's sections (arXiv:2409.12191), xPos (arXiv:2212.10554).
A value here is a pair of float64 arrays: what it is, and how far from it a correct float32 result may be.
"""

import functools
import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
from mpmath import mp, mpf

U = 2.0**-24  # half a unit in the last place of float32, relative
BITS = 300  # of every mpmath number: positions reach 2^63, results are wanted to far below 2^-30

# ---- formats of stored numbers

FORMATS = {  # mantissa bits, least exponent of a normal number, largest finite value
    "float32": (23, -126, float(np.finfo(np.float32).max), np.float32),
    "float16": (10, -14, 65504.0, np.float16),
    "bfloat16": (7, -126, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), ml_dtypes.bfloat16),
    "float8_e4m3fn": (3, -6, 448.0, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": (2, -14, 57344.0, ml_dtypes.float8_e5m2),
    "int8": (None, None, 127.0, np.int8),
    "float4_e2m1fn": (1, 0, 6.0, np.uint8),
}
DTYPES = {name: FORMATS[name][3] for name in ("float32", "float16", "bfloat16")}
QUANTISED = ("float8_e4m3fn", "float8_e5m2", "int8")


def storage(name):
    """The dtype of a format, or of anything that NumPy takes for one."""
    return np.dtype(FORMATS[name][3] if isinstance(name, str) and name in FORMATS else name)


def decode(array):
    """Stored numbers of any format as float64."""
    with np.errstate(invalid="ignore"):  # NaNs
        return np.asarray(array).astype(np.float64)


def exact(array):
    """Stored numbers as a value."""
    x = decode(array)
    return x, np.zeros(x.shape)


def round_to(x, name):
    """Float64 to the nearest number of a format, ties to even, saturating; NaN stays (0 in int8)."""
    mantissa, least, largest, _ = FORMATS[name]
    x = np.asarray(x, np.float64)
    if mantissa is None:
        return np.clip(np.rint(np.nan_to_num(x, nan=0.0, posinf=1e9, neginf=-1e9)), -128, 127)
    exponent = np.maximum(np.frexp(x)[1] - 1, least)
    unit = np.ldexp(1.0, exponent - mantissa)
    rounded = np.rint(x / unit) * unit
    return rounded if name in DTYPES else np.clip(rounded, -largest, largest)


def within(stored, value, name):
    """Whether stored numbers of a format are roundings of something within the error of a value."""
    y, error = value
    got = decode(stored)
    return (round_to(y - error, name) <= got) & (got <= round_to(y + error, name))


# ---- frequencies


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


# ---- cos and sin of mpmath's own reduction


def cos_sin(positions, inv_freq):
    """float64 [len(positions), len(inv_freq)] of cos and sin; the product of the two is formed without rounding."""
    with mp.workprec(BITS):
        angles = [[mpf(p) * f for f in inv_freq] for p in np.asarray(positions).tolist()]
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


# ---- cos and sin of turns, which are exact fractions, so that differences of positions are exact too

TURN_BITS = 192
ONE = 1 << TURN_BITS


@functools.cache
def inverse_two_pi():
    with mp.workprec(TURN_BITS + 80):
        return int(mp.floor(mp.mpf(2) ** TURN_BITS / (2 * mp.pi)))


@functools.cache
def words_exact(rotary_dim, theta):
    """Turns per position of every pair, times 2^TURN_BITS."""
    with mp.workprec(TURN_BITS + 80):
        scale = mp.mpf(2) ** TURN_BITS / (2 * mp.pi)
        return [int(mp.nint(f * scale)) for f in base_frequencies(rotary_dim, theta)]


@functools.cache
def frequencies_fp32(rotary_dim, theta):
    return np.array([float(f) for f in base_frequencies(rotary_dim, theta)]).astype(np.float32)


@functools.lru_cache(1 << 16)  # as random_rows.py has positions without end
def phase_fp32(position, frequency):
    position = np.int64(position) if isinstance(position, int) else position
    angle = Fraction(float(np.float32(position) * np.float32(frequency)))
    return inverse_two_pi() * angle.numerator // angle.denominator


def phases(positions, mode, rotary_dim, theta):
    """Turns, times 2^TURN_BITS, of [tokens][pairs] positions; theta: one, or one a token. Pairs may be those of several
    blocks of rotary_dim elements."""
    rows = []
    for token, row in enumerate(np.asarray(positions).tolist()):
        base = theta[token] if isinstance(theta, (list, tuple)) else theta
        if mode == "exact":
            rows.append([int(Fraction(p) * w) for p, w in zip(row, itertools.cycle(words_exact(rotary_dim, base)))])
        else:
            f = frequencies_fp32(rotary_dim, base).tolist()
            rows.append([phase_fp32(p, w) for p, w in zip(row, itertools.cycle(f))])
    return rows


def cos_sin_of_phases(turns):
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


# ---- the rotation

# Of a rotated pair of length 1 with cos and sin as angles: 1e-7 for each of them, its rounding times the attention
# factor, two products and a sum; with the cross terms.
ROTATION = 3.5e-7
XPOS = 1e-7 + U  # what xPos adds: its magnitude, and the rounding of its products with cos and sin


def pair_indices(rotary_dim, layout, blocks=1):
    """The two elements of every pair: NeoX splits each block of the rotated part in halves, GPT-J interleaves."""
    i = np.arange(rotary_dim // 2)
    half = rotary_dim // 2 // blocks
    first = i + i // half * half
    return (first, first + half) if layout == "neox" else (2 * i, 2 * i + 1)


def rotate(value, cos, sin, layout, rotary_dim, rotary_offset, relative=ROTATION, blocks=1):
    """RoFormer, equation 34, of [tokens, heads, head_dim]; cos and sin have factor and xPos in them, and are
    [tokens, pairs] or, for each of a pair's elements, [2, tokens, pairs]."""
    x, error = value
    first, second = (rotary_offset + i for i in pair_indices(rotary_dim, layout, blocks))
    cos, sin = (np.broadcast_to(a, (2, *a.shape[-2:]))[:, :, None] for a in (cos, sin))
    y, carried = x.copy(), error.copy()
    y[..., first] = x[..., first] * cos[0] - x[..., second] * sin[0]
    y[..., second] = x[..., first] * sin[1] + x[..., second] * cos[1]
    for i, (own, other) in enumerate(((first, second), (second, first))):
        c, s = np.abs(cos[i]), np.abs(sin[i])
        length = np.hypot(x[..., first], x[..., second]) * np.hypot(c, s)
        carried[..., own] = error[..., own] * c + error[..., other] * s + relative * length
    return y, carried


def relaid(array, layout, out_layout, rotary_dim, rotary_offset):
    """Heads whose pairs lie as a layout has them, with the pairs where another has them."""
    moved = array.copy()
    for i, j in zip(pair_indices(rotary_dim, layout), pair_indices(rotary_dim, out_layout), strict=True):
        moved[..., rotary_offset + j] = array[..., rotary_offset + i]
    return moved


def xpos(distances, rotary_dim, scale_base, gamma):
    """xPos (arXiv:2212.10554): zeta^(n / scale_base) of [tokens, pairs] distances n, for q; k takes the reciprocal."""
    zeta = (np.arange(rotary_dim // 2) / (rotary_dim / 2) + gamma) / (1 + gamma)
    return zeta ** (np.asarray(distances, np.float64) / scale_base)


# ---- norm


def rms_norm(value, weight, eps, bias, given=None):
    """x / sqrt(mean(x^2) + eps) * (weight + bias) over the last axis, arXiv:1910.07467, equation 4.

    given : the sums of the squares that the mean is of, exact, and of how many elements
    """
    x, error = value
    n = x.shape[-1]
    squares = (x * x).sum(-1, keepdims=True)
    moved = (np.abs(x) * error).sum(-1, keepdims=True) / np.maximum(squares, 1e-30)
    if given:
        (squares, n), moved = given, 0.0
    inverse = 1 / np.sqrt(squares / n + eps)
    w = weight.astype(np.float64) + bias
    y = x * inverse * w
    # Relative, of float32: squares and their sum (of 16 partial sums or a tree), mean and eps, halved by the root; the
    # root, the reciprocal, two products and weight + bias. The error of x moves the sum by 2 * |x| . error.
    additions = 0 if given else -(-n // 16) + 4
    relative = U * ((additions + 3) / 2 + 6) + moved
    return y, np.abs(y) * relative + error * inverse * np.abs(w)


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
