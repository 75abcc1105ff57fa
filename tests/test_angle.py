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
