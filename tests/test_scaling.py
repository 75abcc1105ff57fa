"""Scalings: frequencies and magnitude against the papers, the angle they give, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest

import pyrope
from kit import reference
from kit.angles import EDGES, cos_sin_by, largest_error, one_head
from kit.refusals import T, V, refused, rows
from kit.scalings import LONG, PAIRS, SCALINGS, SHORT

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("options", "frequencies", "magnitude"), SCALINGS)
def test_exact(device, options, frequencies, magnitude):
    rope, want = one_head(device, **options), frequencies()
    assert rope.inv_freq.dtype == np.float64
    np.testing.assert_array_max_ulp(rope.inv_freq, np.array([float(f) for f in want]), maxulp=1)
    # Logarithm, product, sum, root and quotient in double precision, each within an ulp.
    assert rope.attention_factor == pytest.approx(magnitude, rel=8 * 2.0**-53, abs=0)
    if rope.attention_factor != 1.0:
        rope = one_head(device, **options, attention_factor=1.0)
    assert largest_error(cos_sin_by(rope, EDGES), reference.cos_sin(EDGES, want)) <= 1e-7


@pytest.mark.parametrize(("options", "frequencies", "magnitude"), SCALINGS)
def test_fp32(device, options, frequencies, magnitude):
    rope = one_head(device, **options | {"attention_factor": 1.0, "angle": "fp32"})
    # A frequency near the middle between two floats may go to either.
    want = [float(f) for f in frequencies()]
    np.testing.assert_array_max_ulp(rope.inv_freq.astype(np.float32), np.float32(want), maxulp=1)
    got = cos_sin_by(rope, EDGES)
    assert largest_error(got, reference.cos_sin_fp32(EDGES, rope.inv_freq.astype(np.float32))) <= 1e-7


def test_magnitude_is_applied(device):
    scaling = pyrope.YaRN(16.0, 4096)
    plain, scaled = one_head(device, scaling=scaling, attention_factor=1.0), one_head(device, scaling=scaling)
    for one, other in zip(cos_sin_by(plain, EDGES), cos_sin_by(scaled, EDGES), strict=True):
        # Two roundings of float32: of the magnitude itself, and of the product.
        np.testing.assert_allclose(other, one * scaled.attention_factor, rtol=2 * 2.0**-24, atol=0)


def test_a_given_magnitude_replaces_the_scaling_s():
    assert one_head("cpu", scaling=pyrope.YaRN(16.0, 4096), attention_factor=1.25).attention_factor == 1.25


@pytest.mark.parametrize("factor", [2.0, 8.0, 64.0])
def test_ntk_divides_the_slowest_pair(factor):
    plain, scaled = one_head("cpu").inv_freq, one_head("cpu", scaling=pyrope.NTK(factor)).inv_freq
    assert scaled[0] == 1 and scaled[-1] == pytest.approx(plain[-1] / factor, rel=1e-15)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_is_monotone(truncate):
    plain = one_head("cpu", theta=1e6).inv_freq
    ratio = plain / one_head("cpu", theta=1e6, scaling=pyrope.YaRN(8.0, 8192, truncate=truncate)).inv_freq
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8, rel=1e-15)
    assert all(b >= a * (1 - 2.0**-50) for a, b in pairwise(ratio))


def longrope(**changes):
    return pyrope.LongRoPE(
        **{"short_factors": SHORT, "long_factors": LONG, "factor": 32.0, "original_max_position": 4096} | changes
    )


ABOVE = "must be a finite number above 0"
REFUSED = rows(
    ("ntk factor", lambda: pyrope.NTK(-1), V, f"factor: -1, {ABOVE}"),
    ("ntk factor zero", lambda: pyrope.NTK(0), V, "factor: 0, must be above 0"),
    ("ntk factor str", lambda: pyrope.NTK("8"), T, "factor: '8', must be a real number"),
    ("dynamic factor", lambda: pyrope.DynamicNTK(NAN, 2048), V, f"factor: nan, {ABOVE}"),
    ("dynamic original", lambda: pyrope.DynamicNTK(2.0, -2048), V, f"original_max_position: -2048, {ABOVE}"),
    ("dynamic original zero", lambda: pyrope.DynamicNTK(2.0, 0), V, "original_max_position: 0, must be above 0"),
    ("dynamic original None", lambda: pyrope.DynamicNTK(2.0, None), V, f"original_max_position: 0, {ABOVE}"),
    (
        "dynamic seq_len",
        lambda: pyrope.DynamicNTK(2.0, 2048, -1),
        V,
        "seq_len: -1, must be 0 or a finite number above 0",
    ),
    ("dynamic seq_len zero", lambda: pyrope.DynamicNTK(2.0, 2048, 0), V, "seq_len: 0, must be above 0"),
    ("dynamic seq_len float", lambda: pyrope.DynamicNTK(2.0, 2048, 1.5), T, "seq_len: 1.5 is not an integer"),
    ("yarn factor", lambda: pyrope.YaRN(INF, 4096), V, f"factor: inf, {ABOVE}"),
    ("yarn factor None", lambda: pyrope.YaRN(None, 4096), V, f"factor: 0, {ABOVE}"),
    ("yarn original", lambda: pyrope.YaRN(4.0, -1), V, f"original_max_position: -1, {ABOVE}"),
    ("yarn original float", lambda: pyrope.YaRN(4.0, 4096.0), T, "original_max_position: 4096.0 is not an integer"),
    ("yarn beta_fast", lambda: pyrope.YaRN(4.0, 4096, beta_fast=-32), V, f"beta_fast: -32, {ABOVE}"),
    ("yarn beta_slow", lambda: pyrope.YaRN(4.0, 4096, beta_slow=NAN), V, f"beta_slow: nan, {ABOVE}"),
    ("yarn betas", lambda: pyrope.YaRN(4.0, 4096, 1, 32), V, "beta_fast: 1, must be at least beta_slow, 32"),
    ("yarn mscale", lambda: pyrope.YaRN(4.0, 4096, mscale=-1), V, f"mscale: -1, {ABOVE}"),
    (
        "yarn mscale_all_dim",
        lambda: pyrope.YaRN(4.0, 4096, mscale_all_dim=INF),
        V,
        "mscale_all_dim: inf, must be 0 or a finite number above 0",
    ),
    ("yarn truncate", lambda: pyrope.YaRN(4.0, 4096, truncate="no"), T, "truncate: 'no' is not a bool"),
    ("longrope factor", lambda: longrope(factor=-32), V, f"factor: -32, {ABOVE}"),
    (
        "longrope original",
        lambda: longrope(original_max_position=1),
        V,
        "original_max_position: 1, must be a finite number above 1",
    ),
    ("longrope seq_len", lambda: longrope(seq_len=-4), V, "seq_len: -4, must be 0 or a finite number above 0"),
    (
        "longrope short",
        lambda: longrope(short_factors=SHORT[1:]),
        V,
        "short_factors: 63 values, must be rotary_dim / 2",
    ),
    (
        "longrope long",
        lambda: longrope(long_factors=[*LONG, 1.0]),
        V,
        "long_factors: 65 values, must be rotary_dim / 2",
    ),
    ("longrope number", lambda: longrope(long_factors=2.0), T, "long_factors: 2.0 is not a sequence of numbers"),
    (
        "longrope negative",  # refused even where seq_len does not choose it
        lambda: longrope(long_factors=[*LONG[:-1], -1.0]),
        V,
        f"long_factors: value 63 is -1, {ABOVE}",
    ),
    ("longrope str", lambda: longrope(short_factors=["1"] * PAIRS), T, "short_factors: '1', must be a real number"),
    ("longrope None", lambda: longrope(factor=None), V, f"factor: 0, {ABOVE}"),
    ("pair factors zero", lambda: pyrope.PairFactors([0] * PAIRS), V, f"pair_factors: value 0 is 0, {ABOVE}"),
    ("pair factors nan", lambda: pyrope.PairFactors([1.0, NAN] * 32), V, f"pair_factors: value 1 is .*nan, {ABOVE}"),
    ("pair factors few", lambda: pyrope.PairFactors([]), V, "pair_factors: 0 values, must be rotary_dim / 2 = 64"),
    ("pair factors None", lambda: pyrope.PairFactors(None), T, "pair_factors: None is not a sequence of numbers"),
    ("proportion", lambda: pyrope.Proportional(1.5), V, "proportion: 1.5, must be a number above 0 and at most 1"),
    (
        "proportion negative",
        lambda: pyrope.Proportional(-0.5),
        V,
        "proportion: -0.5, must be a number above 0 and at most 1",
    ),
    ("proportion zero", lambda: pyrope.Proportional(0.0), V, "proportion: 0.0, must be above 0"),
    ("proportional factor", lambda: pyrope.Proportional(0.5, -1), V, f"factor: -1, {ABOVE}"),
)


@pytest.mark.parametrize(("scaling", "error", "text"), REFUSED)
def test_refused(scaling, error, text):
    with refused(error, text):
        one_head("cpu", scaling=scaling())


def test_a_sequence_of_another_length_than_it_says():
    class Liar(list):
        def __len__(self):
            return PAIRS

    with refused(ValueError, r"inv_freq: 1000 values, must be rotary_dim / 2 = 64"):
        one_head("cpu", inv_freq=Liar([1.0] * 1000))


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(theta):
    with refused(ValueError, f"theta: {theta:g}, must be a finite number above 1"):
        one_head("cpu", theta=theta, scaling=pyrope.YaRN(4.0, 4096))


def test_scalings_are_values():
    one, same, other = longrope(), longrope(short_factors=np.array(SHORT)), longrope(seq_len=5000)
    assert one == same and hash(one) == hash(same) and one != other
    assert repr(pyrope.NTK(2.0)) == "NTK(factor=2.0)"
    with pytest.raises(AttributeError, match=r"^YaRN: immutable"):
        pyrope.YaRN(2.0, 4096).factor = 3.0
