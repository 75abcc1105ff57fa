"""Stages at special values: every code of the quantised formats, infinities, NaNs, zeros, extreme rows."""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, call, index, rows_block

QUANTISED = list(ref.QUANTISED)
NAN_CODE = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F, "int8": 0}


def run_q(device, x, blocks=None, *, form=None, scale=None, position=0, dtype=None, **options):
    """x [tokens, heads, head_dim] as q, out of place, at one position; the contents of q_out and other blocks."""
    dtype = dtype or x.dtype.name
    form_options = {"q_out_dtype": form} if form else {}
    rope = pyrope.FusedRope(x.shape[2], x.shape[1], 0, dtype=dtype, device=device, **form_options, **options)
    blocks = {"q": rows_block(x.dtype, x.shape, values=x)} | (blocks or {})
    blocks |= {"q_out": rows_block(form or dtype, x.shape), "positions": index([position] * len(x))}
    flats = call(rope, blocks | ({"q_scale": scale} if scale else {}), len(x))
    return {name: np.ascontiguousarray(blocks[name].view(flats[name])) for name in blocks}


def on_both(device, *arguments, **options):
    """The result, after a comparison with the CPU backend's."""
    result = run_q(device, *arguments, **options)
    if device == "cuda":
        for name, want in run_q("cpu", *arguments, **options).items():
            np.testing.assert_array_equal(result[name].view(np.uint8), want.view(np.uint8), err_msg=name)
    return result


@pytest.mark.parametrize("form", QUANTISED)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number(device, dtype, form):
    """Quantised at position 0, where the rotation leaves finite numbers as they are, with scales 1 and 1/4."""
    bits = np.arange(2**16, dtype=np.uint16)
    x = bits.view(ref.storage(dtype)).reshape(-1, 1, 64)
    finite = np.isfinite(ref.decode(x))
    x = np.where(finite, x, 0).astype(x.dtype)  # an infinity would make its pair NaN
    for scale in (1.0, 0.25):
        got = on_both(device, x, form=form, scale=scale)["q_out"]
        value = ref.decode(x) / scale
        np.testing.assert_array_equal(ref.decode(got), ref.round_to(value, form))
        if form != "int8":  # the sign of a zero is kept; x * 1 - 0 * 0 has that of x, or is positive
            tiny = (value < 0) & (ref.round_to(value, form) == 0)
            assert tiny.any() and (got.view(np.uint8)[tiny] == 0x80).all()


@pytest.mark.parametrize("form", QUANTISED)
def test_float32_ties_and_neighbours(device, form):
    """Half-way between every two codes, and one unit of float32 to each side."""
    codes = np.arange(256, dtype=np.uint8).view(ref.storage(form)).astype(np.float32)
    grid = np.unique(codes[np.isfinite(codes)])
    ties = (grid[1:] + grid[:-1]) / 2  # exact in float32
    x = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)), grid])
    x = np.resize(x, (-(-x.size // 64), 1, 64)).astype(np.float32)
    got = on_both(device, x, form=form, scale=1.0)["q_out"]
    np.testing.assert_array_equal(ref.decode(got), ref.round_to(x, form))


@pytest.mark.parametrize("form", QUANTISED)
def test_saturation_and_nan(device, form):
    """Elements of the part that is not rotated go through arithmetic-free; a pair of NaN is NaN."""
    inf, nan, top = np.inf, np.nan, ref.FORMATS[form][2]
    x = np.array([inf, -inf, nan, 1e30, -1e30, top * 1.01, top * 1.5, -2 * top, 0, 0, 1, 2], np.float32)
    got = on_both(device, x.reshape(1, 1, 12), form=form, scale=1.0, rotary_dim=2, rotary_offset=8)
    codes, values = got["q_out"].view(np.uint8).ravel(), ref.decode(got["q_out"]).ravel()
    low = -128 if form == "int8" else -top
    assert list(values[[0, 1, 3, 4, 5, 6, 7]]) == [top, low, top, low, top, top, low]
    assert codes[2] == NAN_CODE[form]
    assert list(values[8:]) == [0, 0, 1, 2]


@pytest.mark.parametrize("form", QUANTISED)
def test_dynamic_scales(device, form):
    """Rows of zeros, with NaNs, of NaNs alone, with an infinity, very small, very large; one of a single element."""
    x = np.zeros((8, 1, 16), np.float32)
    x[1, 0] = np.arange(16) - 7
    x[2, 0] = np.where(np.arange(16) == 3, np.nan, 2.0)
    x[3] = np.nan
    x[4, 0, 5] = np.inf
    x[5] = 1e-30
    x[6] = 3e38
    x[7, 0, 9] = -5.0
    top = np.float32(ref.FORMATS[form][2])
    scales = Block(np.float32, (8, 1))
    got = on_both(device, x, {"q_scale": scales}, form=form, q_scale_kind="dynamic", rotary_dim=2)
    scale, codes = got["q_scale"].ravel(), got["q_out"].view(np.uint8)[:, 0]
    values = ref.decode(got["q_out"])[:, 0]
    assert scale[0] == 1 and not codes[0].any()
    assert scale[1] == np.float32(8) / top
    assert (
        scale[2] == np.float32(2) / top and codes[2, 3] == NAN_CODE[form] and ref.decode(got["q_out"])[2, 0, 4] == top
    )
    assert scale[3] == 1 and (codes[3] == NAN_CODE[form]).all()
    assert scale[4] == np.inf
    assert scale[5] == np.float32(1e-30) / top and (values[5] == top).all()
    assert scale[6] == np.float32(3e38) / top and (values[6] == top).all()
    assert scale[7] == np.float32(5) / top and values[7, 9] == -top


@pytest.mark.parametrize("form", QUANTISED)
def test_dynamic_scale_of_the_two_parts_of_q(device, form, rng):
    """A head has one scale, of which each part of q knows its own alone: refused, and nothing is written."""
    x, nope = rng.standard_normal((40, 3, 16)).astype(np.float32), rng.standard_normal((40, 3, 24)).astype(np.float32)
    blocks = {
        "q": rows_block("float32", x.shape, values=x),
        "q_out": rows_block(form, x.shape),
        "q_nope": rows_block("float32", nope.shape, values=nope),
        "q_nope_out": rows_block(form, nope.shape),
        "q_scale": Block(np.float32, (40, 3)),
    }
    options = {"q_out_dtype": form, "q_scale_kind": "dynamic", "q_nope_dim": 24}
    rope = pyrope.FusedRope(16, 3, 0, dtype="float32", device=device, **options)
    call(rope, blocks, 40, refused="^q_nope: not with a dynamic scale", error=pyrope.UnsupportedError)


@pytest.mark.parametrize("form", QUANTISED)
def test_dynamic_scales_of_any_bits(device, form, rng):
    """Only that both backends agree."""
    x = rng.integers(0, 2**32, (50, 3, 80), np.uint32).view(np.float32)
    x[:20] = np.ldexp(rng.standard_normal((20, 3, 80)), rng.integers(-149, 100, (20, 3, 1)))
    scales = Block(np.float32, (50, 3))
    on_both(device, x, {"q_scale": scales}, form=form, q_scale_kind="dynamic", rotary_dim=40, position=5)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norm_of_any_bits(device, dtype, after, rng):
    """Infinities, NaNs and denormals: both backends agree."""
    for head_dim in (64, 80, 6):
        width = ref.storage(dtype).itemsize
        x = rng.integers(0, 256, (40, 2, head_dim * width), np.uint8).view(ref.storage(dtype))
        x[:20] = rng.standard_normal((20, 2, head_dim)).astype(x.dtype)
        weight = index(rng.standard_normal(head_dim), x.dtype)
        for eps in (0.0, 1e-6):
            norm = pyrope.RMSNorm(eps=eps, after=after)
            on_both(device, x, {"q_weight": weight}, norm=norm, position=3, dtype=dtype)


def test_norm_of_zeros(device):
    weight = index(np.ones(8), np.float32)
    x = np.zeros((2, 1, 8), np.float32)
    assert not on_both(device, x, {"q_weight": weight}, norm=pyrope.RMSNorm(eps=1e-6))["q_out"].any()
    assert np.isnan(on_both(device, x, {"q_weight": weight}, norm=pyrope.RMSNorm(eps=0.0))["q_out"]).all()  # 0 * inf


def test_norm_has_the_length_it_must(device, rng):
    """Against numbers worked out by hand: x = (3, 4), mean of squares 12.5."""
    x, weight = np.array([3, 4], np.float32).reshape(1, 1, 2), index([2, -1], np.float32)
    # 5 * 2^-24: the root, its reciprocal and two products, each rounded to float32, and one spare.
    got = on_both(device, x, {"q_weight": weight}, norm=pyrope.RMSNorm(eps=0.0, weight_bias=1.0))["q_out"]
    np.testing.assert_allclose(got.ravel(), [9 / 12.5**0.5, 0], rtol=3e-7)
    np.testing.assert_allclose(
        on_both(device, x, {"q_weight": weight}, norm=pyrope.RMSNorm(eps=3.5))["q_out"].ravel(), [1.5, -1], rtol=3e-7
    )


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("heads", "head_dim"), [(40, 128), (7, 80), (1, 64), (1024, 6), (3, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_across_heads(device, dtype, heads, head_dim, after, rng):
    """Of one head it is the norm of a head; of many, the root of the mean over all of them."""
    x = rng.standard_normal((5, heads, head_dim)).astype(ref.storage(dtype))
    weight = index(rng.standard_normal(heads * head_dim), x.dtype)
    norm = pyrope.RMSNorm(eps=1e-6, after=after, across_heads=True)
    got = on_both(device, x, {"q_weight": weight}, norm=norm, dtype=dtype)["q_out"]  # at position 0
    value = ref.rms_norm(ref.exact(x.reshape(5, -1)), weight.view(), 1e-6, 0.0)
    assert ref.within(got.reshape(5, -1), value, dtype).all()
    if heads == 1:
        one = on_both(device, x, {"q_weight": weight}, norm=pyrope.RMSNorm(eps=1e-6, after=after), dtype=dtype)["q_out"]
        np.testing.assert_array_equal(one.view(np.uint8), got.view(np.uint8))
