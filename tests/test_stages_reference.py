"""The float64 reference of the pipeline itself, against ml_dtypes' codecs and published numbers."""

import ml_dtypes
import numpy as np
import pytest

from kit import reference as ref


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_rounding_is_that_of_the_codec(name, rng):
    x = np.concatenate([rng.standard_normal(20_000) * s for s in (1e-7, 1e-4, 1e-2, 1, 100)]).astype(np.float32)
    bits = 16 if name.endswith("16") else 8
    grid = np.arange(2**bits).astype(f"uint{bits}").view(ref.storage(name)).astype(np.float32)
    grid = np.sort(grid[np.isfinite(grid)])
    ties = (grid[1:].astype(np.float64) + grid[:-1].astype(np.float64)) / 2
    largest = ref.FORMATS[name][2]
    for values in (x, grid, ties.astype(np.float32)[np.float32(ties) == ties]):
        values = values[np.abs(values) <= largest]
        np.testing.assert_array_equal(ref.round_to(values, name), ref.decode(values.astype(ref.storage(name))))


def test_formats():
    """Table 1 of arXiv:2209.05433."""
    for name, largest, normal, smallest in (
        ("float8_e4m3fn", 448, 2**-6, 2**-9),
        ("float8_e5m2", 57344, 2**-14, 2**-16),
    ):
        info = ml_dtypes.finfo(ref.storage(name))
        assert (float(info.max), float(info.smallest_normal), float(info.smallest_subnormal)) == (
            largest, normal, smallest)  # fmt: skip
        assert ref.round_to(1e9, name) == largest == -ref.round_to(-np.inf, name)
        assert ref.round_to(smallest / 2, name) == 0 and ref.round_to(smallest * 0.51, name) == smallest
    assert list(ref.round_to([-1e9, -128.5, -0.5, 0.5, 1.5, 126.5, 127.6, np.nan], "int8")) == [
        -128, -128, 0, 0, 2, 126, 127, 0]  # fmt: skip


def test_angles(rng):
    """Against mpmath's own reduction; differences of positions too."""
    positions = rng.integers(0, 2**31, (4, 1)).repeat(16, axis=1)
    for mode in ("exact", "fp32"):
        table = ref.cos_sin if mode == "exact" else ref.cos_sin_fp32
        want = table(positions[:, 0], ref.base_frequencies(32, 10000.0))
        turns = ref.phases(positions, mode, 32, 10000.0)
        # The angle, up to 2 pi, and its cosine are rounded to float64: 1e-15, and a digit to spare.
        np.testing.assert_allclose(ref.cos_sin_of_phases(turns), want, rtol=0, atol=1e-14)
        assert np.all(ref.cos_sin_of_phases(ref.minus(turns, turns))[0] == 1)


def test_streams():
    assert "".join(map(str, ref.streams(8, [2, 3, 3], False))) == "00111222"
    # Qwen3-VL: [24, 20, 20] of 64 pairs, "THWTHW...TT"
    assert "".join(map(str, ref.streams(64, [24, 20, 20], True))) == "012" * 20 + "0000"


def test_norm(rng):
    x, w = rng.standard_normal((2, 3, 80)), rng.standard_normal(80).astype(np.float32)
    y, error = ref.rms_norm(ref.exact(x), w, 0.0, 0.0)
    np.testing.assert_allclose(np.sqrt(np.mean((y / w) ** 2, -1)), 1)
    assert (error <= 2e-6 * np.abs(y)).all() and (error > 0).all()
