"""Every operation in float64, written from its definition, and the test that a result must pass before it is timed."""

import numpy as np
from cases import FP8, OPS

NORM_EPS = 1e-6
# Half a unit in the last place, relative.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class WrongResultError(Exception):
    """A result is further from the reference than its tolerance, or what must stay was changed."""


def inv_freq(rotary_dim: int, theta: float) -> np.ndarray:
    """Radians per position of each pair, float64 [rotary_dim / 2]."""
    return theta ** (-2.0 * np.arange(rotary_dim // 2) / rotary_dim)


def rotate(layout: str, x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """x, float64 [tokens, heads, rotated], turned by one position a token, or [tokens, pairs] of them."""
    angle = (positions.astype(np.float64).reshape(len(positions), -1) * inv_freq(x.shape[-1], theta))[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = pairs(layout, x.shape[-1])
    out = np.empty_like(x)
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out


def pairs(layout: str, rotated: int) -> tuple:
    """Indices of the first and of the second elements of the pairs."""
    half = rotated // 2
    return (np.s_[..., :half], np.s_[..., half:]) if layout == "neox" else (np.s_[..., 0::2], np.s_[..., 1::2])


def pair_lengths(layout: str, x: np.ndarray) -> np.ndarray:
    """Length of each element's pair."""
    length = np.empty_like(x)
    first, second = pairs(layout, x.shape[-1])
    length[first] = length[second] = np.hypot(x[first], x[second])
    return length


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Each head over its root mean square, times the weight."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPS) * weight


def split(case, inputs: dict) -> dict:
    """The inputs by name, `qkv` taken apart."""
    if "qkv" not in inputs:
        return inputs
    ends = case.num_heads, case.num_heads + case.num_kv_heads
    return dict(zip("qkv", np.split(inputs["qkv"], ends, axis=1), strict=True))


def codes_apart(y: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many 8-bit floats lie from y, of such a type, to the rounded and saturated expected value; inf for a NaN."""
    import ml_dtypes

    limit = float(ml_dtypes.finfo(y.dtype).max)
    wanted = np.clip(expected, -limit, limit).astype(y.dtype)
    order = [np.where(code < 128, code, 128 - code) for code in (x.view(np.uint8).astype(int) for x in (y, wanted))]
    return np.where(np.isnan(y.astype(np.float32)), np.inf, np.abs(order[0] - order[1]))


def check(case, before: dict, after: dict, positions: np.ndarray, weights: dict, theta: float, angle: float) -> float:
    """Compare rows of results with the operation in float64.

    A rounded result may be half a unit in its last place away, and what float32 arithmetic adds: for a rotation 2**-20
    of the pair's length; for a norm head_dim / 2 roundings of a sum, as half of its relative error arrives. A result of
    8 bits may be the neighbour of the right one. What is only stored must be the same bits.

    Parameters
    ----------
    before, after : {name: array}
        Rows [tokens, heads, dim] of inputs and results.
    positions : array
        [tokens], or [tokens, pairs].
    weights : {"q": array, "k": array}
        Of the norm, if the operation has one.
    angle : float
        Error of cos and sin that is allowed, absolute, beyond that of float32 arithmetic.

    Returns
    -------
    The largest error as a fraction of its tolerance, at most 1.
    """
    op, worst = OPS[case.op], 0.0
    before = split(case, before)
    for name, result in op.results(case).items():
        x, y, r = before[name], after[name], case.rotated
        eight_bits = op.dtypes.get(result) == FP8
        if name not in ("q", "k"):
            r = 0
        expected, slack = x.astype(np.float64), 2.0**-20 + angle
        if r and op.norm:
            expected, slack = rms_norm(expected, weights[name]), slack + case.head_dim / 2 * ROUNDING["float32"]
        if r:
            expected[..., :r] = rotate(case.layout, expected[..., :r], positions, theta)
        if not eight_bits and not (r and op.norm) and y[..., r:].tobytes() != x[..., r:].tobytes():
            raise WrongResultError(f"{name}: elements outside the rotated part changed")
        if eight_bits:
            error = codes_apart(y, expected)
        elif r:
            expected = expected[..., :r]
            tolerance = ROUNDING[case.dtype] * np.abs(expected) + slack * pair_lengths(case.layout, expected) + 2.0**-25
            error = np.abs(y[..., :r].astype(np.float64) - expected) / tolerance
        else:
            continue
        if not (error <= 1).all():
            token, head, i = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
            raise WrongResultError(
                f"{name} at position {np.unique(positions[token])}, head {head}, element {i}: "
                f"{float(y[token, head, i]):.6g}, should be {expected[token, head, i]:.6g}"
            )
        worst = max(worst, float(error.max()))
    return worst
