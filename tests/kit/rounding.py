"""What transformers' float32 arithmetic may be off by."""

import math

import numpy as np

import pyrope


def rounding(rope, want):
    """Per pair, in units of u = 2^-24 of a frequency.

    theta^(-x), x = 2i / r: x rounded, ln(theta); theta rounded, 1; the power, 2; its reciprocal, 1; a factor rounded
    and applied, 2; and 2 spare for a base that was computed. In a ramp (Llama 3, YaRN) from f / factor to f, the share
    of f is off by at most 4/3 of (ln(theta) + 12), Llama 3's being (original / wavelength - 1) / 3 with a quotient up
    to 4; and 8 for mixing the two.
    """
    u, log = 2.0**-24, math.log(rope.theta or 1e8)  # 1e8: of frequencies that were given
    bound = (log + 8) * want
    if isinstance(rope.scaling, (pyrope.Llama3, pyrope.YaRN)):
        f = rope.theta ** (-np.arange(len(want)) / len(want))
        between = (want > f / rope.scaling.factor * (1 + 2 * (log + 8) * u)) & (want < f)
        bound += between * (4 / 3 * (log + 12) + 8) * f
    return u * bound
