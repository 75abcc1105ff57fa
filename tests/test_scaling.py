"""Scalings: frequencies and magnitude against the papers, the angle they give, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import reference
from refusals import T, V, refused, rows
from test_angle import EDGES, cos_sin_of, largest_error, make

import pyrope

NAN, INF = float("nan"), float("inf")
DIM, PAIRS = 128, 64
SHORT = [1 + i / 100 for i in range(PAIRS)]
LONG = [1.05 * 1.07**i for i in range(PAIRS)]

# (id, Rope's arguments, reference frequencies, magnitude)
SCALINGS = rows(
    ("none", {"theta": 5e5}, lambda: reference.base_frequencies(DIM, 5e5), 1.0),
    (
        "linear",
        {"theta": 5e5, "scaling": pyrope.Linear(factor=3.0)},
        lambda: reference.linear_frequencies(DIM, 5e5, 3),
        1.0,
    ),
    (
        "llama3",
        {"theta": 5e5, "scaling": pyrope.Llama3()},
        lambda: reference.llama3_frequencies(DIM, 5e5, 8, 1, 4, 8192),
        1.0,
    ),
    (
        "llama3 32",
        {"theta": 5e5, "scaling": pyrope.Llama3(32.0, 2.0, 5.0, 4096)},
        lambda: reference.llama3_frequencies(DIM, 5e5, 32, 2, 5, 4096),
        1.0,
    ),
    (
        "llama3 without a ramp",  # as Llama 4 has it
        {"theta": 5e5, "scaling": pyrope.Llama3(16.0, 1.0, 1.0, 8192)},
        lambda: reference.llama3_frequencies(DIM, 5e5, 16, 1, 1, 8192),
        1.0,
    ),
    ("ntk", {"scaling": pyrope.NTK(8.0)}, lambda: reference.ntk_frequencies(DIM, 1e4, 8), 1.0),
    ("ntk shrinks", {"scaling": pyrope.NTK(0.3)}, lambda: reference.ntk_frequencies(DIM, 1e4, 0.3), 1.0),
    ("ntk 4", {"head_dim": 4, "scaling": pyrope.NTK(8)}, lambda: reference.ntk_frequencies(4, 1e4, 8), 1.0),
    ("ntk 2", {"head_dim": 2, "scaling": pyrope.NTK(8)}, lambda: [1.0], 1.0),
    ("dynamic", {"scaling": pyrope.DynamicNTK(4.0, 2048)}, lambda: reference.base_frequencies(DIM, 1e4), 1.0),
    (
        "dynamic short",
        {"scaling": pyrope.DynamicNTK(4.0, 2048, seq_len=2048)},
        lambda: reference.base_frequencies(DIM, 1e4),
        1.0,
    ),
    (
        "dynamic long",
        {"scaling": pyrope.DynamicNTK(4.0, 2048, seq_len=7000)},
        lambda: reference.dynamic_ntk_frequencies(DIM, 1e4, 4, 2048, 7000),
        1.0,
    ),
    (
        "yarn",
        {"scaling": pyrope.YaRN(16.0, 4096)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 16, 4096),
        reference.yarn_magnitude(16),
    ),
    (
        "yarn without truncation",
        {"head_dim": 64, "theta": 1.5e5, "scaling": pyrope.YaRN(32.0, 4096, truncate=False)},
        lambda: reference.yarn_frequencies(64, 1.5e5, 32, 4096, truncate=False),
        reference.yarn_magnitude(32),
    ),
    (
        "yarn betas",
        {"theta": 1e6, "scaling": pyrope.YaRN(4.0, 32768, beta_fast=24.5, beta_slow=2)},
        lambda: reference.yarn_frequencies(DIM, 1e6, 4, 32768, 24.5, 2),
        reference.yarn_magnitude(4),
    ),
    (
        "yarn from pair 0",  # the ramp would begin before the fastest pair
        {"scaling": pyrope.YaRN(4.0, 100)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 4, 100),
        reference.yarn_magnitude(4),
    ),
    (
        "yarn mscale",
        {"head_dim": 64, "scaling": pyrope.YaRN(40.0, 4096, mscale=0.707, mscale_all_dim=1.3)},
        lambda: reference.yarn_frequencies(64, 1e4, 40, 4096),
        reference.yarn_magnitude(40, 0.707, 1.3),
    ),
    (
        "yarn that shrinks",
        {"scaling": pyrope.YaRN(0.5, 4096)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 0.5, 4096),
        1.0,
    ),
    (
        "longrope short",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope at the border",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096, seq_len=4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope long",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096, seq_len=4097)},
        lambda: reference.divided_frequencies(DIM, 1e4, LONG),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope that does not grow",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 0.5, 4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        1.0,
    ),
    (
        "pair factors",
        {"scaling": pyrope.PairFactors(np.array(LONG))},
        lambda: reference.divided_frequencies(DIM, 1e4, LONG),
        1.0,
    ),
    (
        "proportional",
        {"theta": 1e6, "scaling": pyrope.Proportional(0.26)},
        lambda: reference.proportional_frequencies(DIM, 1e6, 0.26),
        1.0,
    ),
    (
        "proportional and linear",
        {"theta": 1e6, "scaling": pyrope.Proportional(0.5, factor=8.0)},
        lambda: reference.proportional_frequencies(DIM, 1e6, 0.5, 8),
        1.0,
    ),
    (
        "proportional to all",
        {"theta": 1e6, "scaling": pyrope.Proportional(1)},
        lambda: reference.base_frequencies(DIM, 1e6),
        1.0,
    ),
)


@pytest.mark.parametrize(("options", "frequencies", "magnitude"), SCALINGS)
def test_exact(device, options, frequencies, magnitude):
    rope, want = make(device, **options), frequencies()
    assert rope.inv_freq.dtype == np.float64
    np.testing.assert_array_max_ulp(rope.inv_freq, np.array([float(f) for f in want]), maxulp=1)
    # Logarithm, product, sum, root and quotient in double precision, each within an ulp.
    assert rope.attention_factor == pytest.approx(magnitude, rel=8 * 2.0**-53, abs=0)
    if rope.attention_factor != 1.0:
        rope = make(device, **options, attention_factor=1.0)
    assert largest_error(cos_sin_of(rope, EDGES), reference.cos_sin(EDGES, want)) <= 1e-7


@pytest.mark.parametrize(("options", "frequencies", "magnitude"), SCALINGS)
def test_fp32(device, options, frequencies, magnitude):
    rope = make(device, **options | {"attention_factor": 1.0, "angle": "fp32"})
    # A frequency near the middle between two floats may go to either.
    want = [float(f) for f in frequencies()]
    np.testing.assert_array_max_ulp(rope.inv_freq.astype(np.float32), np.float32(want), maxulp=1)
    got = cos_sin_of(rope, EDGES)
    assert largest_error(got, reference.cos_sin_fp32(EDGES, rope.inv_freq.astype(np.float32))) <= 1e-7


def test_magnitude_is_applied(device):
    scaling = pyrope.YaRN(16.0, 4096)
    plain, scaled = make(device, scaling=scaling, attention_factor=1.0), make(device, scaling=scaling)
    for one, other in zip(cos_sin_of(plain, EDGES), cos_sin_of(scaled, EDGES), strict=True):
        # Two roundings of float32: of the magnitude itself, and of the product.
        np.testing.assert_allclose(other, one * scaled.attention_factor, rtol=2 * 2.0**-24, atol=0)


def test_a_given_magnitude_replaces_the_scaling_s():
    assert make("cpu", scaling=pyrope.YaRN(16.0, 4096), attention_factor=1.25).attention_factor == 1.25


@pytest.mark.parametrize("factor", [2.0, 8.0, 64.0])
def test_ntk_divides_the_slowest_pair(factor):
    plain, scaled = make("cpu").inv_freq, make("cpu", scaling=pyrope.NTK(factor)).inv_freq
    assert scaled[0] == 1 and scaled[-1] == pytest.approx(plain[-1] / factor, rel=1e-15)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_is_monotone(truncate):
    plain = make("cpu", theta=1e6).inv_freq
    ratio = plain / make("cpu", theta=1e6, scaling=pyrope.YaRN(8.0, 8192, truncate=truncate)).inv_freq
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
    ("dynamic seq_len", lambda: pyrope.DynamicNTK(2.0, 2048, -1), V, "seq_len: -1, must not be negative"),
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
    ("yarn mscale_all_dim", lambda: pyrope.YaRN(4.0, 4096, mscale_all_dim=INF), V, f"mscale_all_dim: inf, {ABOVE}"),
    ("yarn truncate", lambda: pyrope.YaRN(4.0, 4096, truncate="no"), T, "truncate: 'no' is not a bool"),
    ("longrope factor", lambda: longrope(factor=-32), V, f"factor: -32, {ABOVE}"),
    (
        "longrope original",
        lambda: longrope(original_max_position=1),
        V,
        "original_max_position: 1, must be above 1 with LongRoPE",
    ),
    ("longrope seq_len", lambda: longrope(seq_len=-4), V, "seq_len: -4, must not be negative"),
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
    ("proportion", lambda: pyrope.Proportional(1.5), V, "proportion: 1.5, must be above 0 and at most 1"),
    ("proportion negative", lambda: pyrope.Proportional(-0.5), V, f"proportion: -0.5, {ABOVE}"),
    ("proportion zero", lambda: pyrope.Proportional(0.0), V, "proportion: 0.0, must be above 0"),
    ("proportional factor", lambda: pyrope.Proportional(0.5, -1), V, f"factor: -1, {ABOVE}"),
)


@pytest.mark.parametrize(("scaling", "error", "text"), REFUSED)
def test_refused(scaling, error, text):
    with refused(error, text):
        make("cpu", scaling=scaling())


def test_a_sequence_of_another_length_than_it_says():
    class Liar(list):
        def __len__(self):
            return PAIRS

    with refused(ValueError, r"inv_freq: 1000 values, must be rotary_dim / 2 = 64"):
        make("cpu", inv_freq=Liar([1.0] * 1000))


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(theta):
    with refused(ValueError, f"theta: {theta:g}, must be above 1 with YaRN"):
        make("cpu", theta=theta, scaling=pyrope.YaRN(4.0, 4096))


def test_scalings_are_values():
    one, same, other = longrope(), longrope(short_factors=np.array(SHORT)), longrope(seq_len=5000)
    assert one == same and hash(one) == hash(same) and one != other
    assert repr(pyrope.NTK(2.0)) == "NTK(factor=2.0)"
    with pytest.raises(AttributeError, match=r"^YaRN: immutable"):
        pyrope.YaRN(2.0, 4096).factor = 3.0
