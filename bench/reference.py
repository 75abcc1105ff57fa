"""Every operation in float64, written from its definition, and the test that a result must pass before it is timed."""

import numpy as np

# Half a unit in the last place, relative.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class WrongResultError(Exception):
    """A result is further from the reference than its tolerance, or what must stay was changed."""


def inv_freq(rotary_dim: int, theta: float) -> np.ndarray:
    """Radians per position of each pair, float64 [rotary_dim / 2]."""
    return theta ** (-2.0 * np.arange(rotary_dim // 2) / rotary_dim)


def apply(case, x: np.ndarray, positions: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate x, float64 [tokens, heads, rotated]; returns the result and the length of each element's pair."""
    angle = (positions.astype(np.float64)[:, None] * inv_freq(x.shape[-1], theta))[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    half = x.shape[-1] // 2
    if case.layout == "neox":
        first, second = np.s_[..., :half], np.s_[..., half:]
    else:
        first, second = np.s_[..., 0::2], np.s_[..., 1::2]
    out, length = np.empty_like(x), np.empty_like(x)
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    length[first] = length[second] = np.hypot(x[first], x[second])
    return out, length


def check_apply(case, before: dict, after: dict, positions: np.ndarray, theta: float, angle_error: float) -> float:
    """Compare rows of results with the reference.

    Parameters
    ----------
    before, after : {"q": array, "k": array}
        Rows [tokens, heads, head_dim] of inputs and results, of the case's dtype.
    angle_error : float
        Error of cos and sin that is allowed, absolute, beyond that of float32 arithmetic.

    Returns
    -------
    The largest error as a fraction of its tolerance, at most 1.
    """
    worst = 0.0
    for name, x in before.items():
        y, r = after[name], case.rotated
        expected, length = apply(case, x[..., :r].astype(np.float64), positions, theta)
        tolerance = ROUNDING[case.dtype] * np.abs(expected) + (2.0**-20 + angle_error) * length + 2.0**-25
        error = np.abs(y[..., :r].astype(np.float64) - expected) / tolerance
        if not (error <= 1).all():
            token, head, i = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
            raise WrongResultError(
                f"{name} at position {positions[token]}, head {head}, element {i}: "
                f"{float(y[token, head, i]):.6g}, should be {expected[token, head, i]:.6g}"
            )
        if y[..., r:].tobytes() != x[..., r:].tobytes():
            raise WrongResultError(f"{name}: elements outside the rotated part changed")
        worst = max(worst, float(error.max()))
    return worst


CHECKS = {"apply": check_apply}
