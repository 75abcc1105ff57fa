"""The angle: cos and sin against arbitrary precision, read off by rotating (1, 0)."""

import numpy as np
import pytest

from kit import reference
from kit.angles import EDGES, cos_sin_by, largest_error, one_head


@pytest.mark.parametrize("theta", [1e2, 1e3, 1e4, 5e5, 1e6, 1e7, 1e8])
def test_exact(device, theta, rng):
    positions = EDGES + sorted(int(p) for p in rng.integers(0, 2**31, 10))
    got = cos_sin_by(one_head(device, theta=theta), positions)
    assert largest_error(got, reference.cos_sin(positions, reference.base_frequencies(128, theta))) <= 1e-7


def test_exact_many_phases(device, rng):
    # One radian per position: integer angles, whose cosine long double arithmetic knows to 1e-18.
    positions = rng.integers(0, 2**31, 1 << 20 if device == "cpu" else 1 << 16)
    got = cos_sin_by(one_head(device, head_dim=2, inv_freq=[1.0]), positions)
    angles = positions.astype(np.longdouble)[:, None]
    assert largest_error(got, (np.cos(angles), np.sin(angles))) <= 1e-7


def test_given_frequencies_are_exact_numbers(device):
    inv_freq = [1.0, 0.1, float(np.float32(0.1)), 1 / 3, -0.7, 12345.678, 1e-9, 0.0]
    got = cos_sin_by(one_head(device, head_dim=16, inv_freq=inv_freq), EDGES)
    assert largest_error(got, reference.cos_sin(EDGES, inv_freq)) <= 1e-7


def test_positions_beyond_32_bits_wrap(device):
    positions = [-1000, -2, 2**31, 2**32 + 5, 2**40 + 1, -(2**45), 2**53 + 1, 2**63 - 1, -(2**63)]
    got = cos_sin_by(one_head(device), positions)
    want = reference.cos_sin(positions, reference.base_frequencies(128, 10000.0))
    # The table's frequency is rounded to 2^-64 turns; a position multiplies that.
    slack = 2 * np.pi * 2.0**-65 * np.abs(np.array(positions, dtype=np.float64))[:, None]
    for g, w in zip(got, want, strict=True):
        assert (np.abs(g - w) <= 1e-7 + slack).all()


@pytest.mark.parametrize("theta", [1e2, 1e4, 5e5, 1e8])
def test_fp32(device, theta, rng):
    positions = [*EDGES, -5, 2**40 + 1, *(int(p) for p in rng.integers(0, 2**31, 10))]
    frequencies = reference.base_frequencies(128, theta)
    got = cos_sin_by(one_head(device, theta=theta, angle="fp32"), positions)
    assert largest_error(got, reference.cos_sin_fp32(positions, frequencies)) <= 1e-7


def test_fp32_over_the_range_of_float(device):
    inv_freq = [float(np.float32(f)) for f in (1e-38, 1e-20, 2.0**-41, 2.0**-24, 1e-3, 1.5, -1.5, 1e9)]
    positions = [1, 3, 2**20 + 1, 2**31 - 1, 2**62 + 2**40]
    got = cos_sin_by(one_head(device, head_dim=16, inv_freq=inv_freq, angle="fp32"), positions)
    assert largest_error(got, reference.cos_sin_fp32(positions, inv_freq)) <= 1e-7


def test_modes_differ_where_float32_runs_out(device):
    exact, fp32 = (cos_sin_by(one_head(device, theta=5e5, angle=angle), [2**20]) for angle in ("exact", "fp32"))
    assert largest_error(exact, fp32) > 1e-2


# ---- positions that are no integers

SMALL = [0.5, -0.25, 1e-3, -3.7e-5, 1e-12, 2.0**-126, 2.0**-149, -0.0, 1.75, 123.456, -65537.25, 2**23 + 0.5]
FLOATS = np.array([*SMALL, *EDGES, 2**24 - 1, -1, -(2.0**31)], np.float32)
# Of LTX, DINOv3 and others frequencies are beyond a turn per position, whole turns of which an integer position drops.
STEEP = [1.0, 2 * np.pi, 2 * np.pi * 3.25, -2 * np.pi, -0.7, 12345.678, 2.0**30 - 1, 1 - 2.0**30, 1e-9, 0.0]


def float_rope(device, **options):
    return one_head(device, position_dtype="float32", **options)


def test_half_a_position(device):
    (cos,), (sin,) = cos_sin_by(float_rope(device, head_dim=2, inv_freq=[1.0]), np.array([0.5], np.float32))
    assert abs(cos - 0.877583) < 1e-6 and abs(sin - 0.479426) < 1e-6


@pytest.mark.parametrize("theta", [1e2, 1e4, 5e5, 1e8])
def test_floats(device, theta, rng):
    positions = np.append(FLOATS, rng.uniform(-1, 1, 40).astype(np.float32) * 2.0 ** rng.integers(-30, 31, 40))
    got = cos_sin_by(float_rope(device, theta=theta), positions.astype(np.float32))
    assert largest_error(got, reference.cos_sin(positions, reference.base_frequencies(128, theta))) <= 1e-7


def test_floats_of_steep_frequencies(device):
    got = cos_sin_by(float_rope(device, head_dim=20, inv_freq=STEEP), FLOATS)
    assert largest_error(got, reference.cos_sin(FLOATS, STEEP)) <= 1e-7


def test_floats_that_are_integers_are_integers(device, rng):
    positions = rng.integers(-(2**24), 2**24, 300)
    integers, floats = cos_sin_by(one_head(device), positions), positions.astype(np.float32)
    for got, want in zip(cos_sin_by(float_rope(device), floats), integers, strict=True):
        np.testing.assert_array_equal(got, want)


def test_fp32_floats(device):
    frequencies = [float(np.float32(f)) for f in (*STEEP[:5], 1e-3, 1e9, 1e-38)]
    positions = np.append(FLOATS, np.array([1e20, -3e28], np.float32))
    got = cos_sin_by(float_rope(device, head_dim=16, inv_freq=frequencies, angle="fp32"), positions)
    assert largest_error(got, reference.cos_sin_fp32(positions, frequencies)) <= 1e-7


@pytest.mark.parametrize("angle", ["exact", "fp32"])
def test_floats_that_are_not_finite(device, angle):
    positions = np.array([np.inf, 1.0, -np.inf, np.nan, 3e38], np.float32)
    cos, sin = cos_sin_by(float_rope(device, head_dim=4, inv_freq=[1.0, 4.0], angle=angle), positions)
    for x in (cos, sin):
        assert np.isnan(x[[0, 2, 3]]).all() and np.isfinite(x[1]).all() and np.isfinite(x[4, 0])
        assert np.isnan(x[4, 1]) == (angle == "fp32")  # whose product is beyond float32
