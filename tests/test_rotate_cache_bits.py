"""Keys of any bits turned in a cache: NaNs, infinities and every code, with scales that are anything."""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, cache_block, call, index, same_on_both
from kit.reference import DTYPES, QUANTISED

SCALE_KINDS = ["host", "tensor", "head", "token", "dynamic"]


def any_bits(rng, form, scale, heads, d, memory, tokens=5, page_size=4, layout="NHD"):
    """Options and operands of a call on a cache of random bits, its scales among them."""
    block = cache_block(form, 3, page_size, heads, d, layout, memory)
    block.flat[...] = rng.integers(0, 256, block.flat.size, np.uint8)
    operands = {
        "k_cache": block,
        "slots": index(rng.permutation(3 * page_size)[:tokens]),
        "positions": index(rng.integers(-(2**62), 2**62, tokens)),
        "positions_from": index(rng.integers(-(2**62), 2**62, tokens)),
    }
    options = {"cache": pyrope.PagedCache(page_size, 3, layout, k_strides=block.strides[:3])}
    if form in QUANTISED:
        options |= {"k_out_dtype": form, "k_scale_kind": "tensor" if scale == "host" else scale}
        shape = {"tensor": (1,), "head": (heads,), "token": (tokens,), "dynamic": (3 * page_size, heads)}
        if scale == "host":
            operands["k_scale"] = 0.37
        else:
            scales = np.ldexp(rng.uniform(1, 2, shape[scale]), rng.integers(-20, 20, shape[scale])).astype(np.float32)
            scales.ravel()[::5] = rng.integers(0, 2**32, scales.size, np.uint32).view(np.float32)[::5]
            operands["k_scale"] = index(scales, np.float32)
    return options, operands, tokens


def turn_on_both(options, operands, tokens, heads, d):
    def rope_on(device):
        return pyrope.FusedRope(d, 0, heads, device=device, **options)

    flats = same_on_both(rope_on, operands, tokens, "rotate_cache")
    assert (flats["k_cache"] != operands["k_cache"].flat).any()


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["dense", "odd"])
@pytest.mark.parametrize(
    ("form", "scale"),
    [(form, "host") for form in DTYPES] + [(form, scale) for form in QUANTISED for scale in SCALE_KINDS],
)
def test_cuda_equals_cpu_in_every_head_dim(form, scale, memory, rng):
    """NaNs, infinities and every code, with scales that are anything."""
    longer = () if scale == "dynamic" and memory == "odd" else (576, 1024, 2048)
    for d in (*range(2, 132, 2), 160, 256, *longer):
        half = max(2, d // 4 * 2)
        for number, (rotary_dim, offset) in enumerate([(d, 0), (half, 0), (half, (d - half) // 2)]):
            options, *rest = any_bits(rng, form, scale, 1 + 2 * number, d, memory)
            options |= {
                "rotary_dim": rotary_dim,
                "rotary_offset": offset,
                "layout": ("neox", "gptj")[(d // 2 + number) % 2],
            }
            options["dtype"] = "bfloat16" if form in QUANTISED else form
            turn_on_both(options, *rest, 1 + 2 * number, d)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 700])
@pytest.mark.parametrize(("form", "scale"), [("bfloat16", None), ("float32", None), ("float8_e4m3fn", "head"),
                                             ("int8", "dynamic")])  # fmt: skip
def test_cuda_equals_cpu_at_many_sizes(form, scale, tokens, rng):
    for heads in (1, 8, 40):
        options, *rest = any_bits(rng, form, scale, heads, 128, "dense", tokens, 256)
        turn_on_both(options | {"dtype": "float32" if scale else form}, *rest, heads, 128)


@pytest.mark.gpu
def test_more_heads_than_a_grid_is_high(rng):
    heads, d = 65535 + 7, 256
    options, *rest = any_bits(rng, "int8", "head", heads, d, "odd", 1, 1)
    turn_on_both(options, *rest, heads, d)


@pytest.mark.parametrize("form", QUANTISED)
def test_every_code_keeps_its_place(device, form):
    """Turned by nothing, each number is itself again, whatever the scale; a NaN is the NaN that quantising gives."""
    codes = np.arange(256, dtype=np.uint8)
    number = ref.decode(codes.view(ref.storage(form)))
    finite = np.isfinite(number)
    pairs = np.zeros((256, 2), np.uint8)
    pairs[:, 0] = codes
    for scale in (1.0, 0.0123, 3e-6, 7e4):
        block = Block(form, (1, 256, 1, 2))
        block.view().view(np.uint8)[0, :, 0] = pairs
        slots, ids = index(np.arange(256)), index([1 << 40] * 256)
        rope = pyrope.FusedRope(2, 0, 1, device=device, k_out_dtype=form, cache=pyrope.PagedCache(256, 1))
        blocks = {"k_cache": block, "slots": slots, "positions": ids, "positions_from": ids}
        flats = call(rope, blocks | {"k_scale": scale}, 256, "rotate_cache")
        got = block.view(flats["k_cache"])[0, :, 0]
        np.testing.assert_array_equal(ref.decode(got[finite, 0]), number[finite])
        np.testing.assert_array_equal(got.view(np.uint8)[finite, 1], 0)
        assert (got.view(np.uint8)[np.isnan(number), 0] == 0x7F).all()


@pytest.mark.parametrize("form", QUANTISED)
def test_dynamic_scales_of_zeros_and_nans(device, form):
    """As when they were appended: a row of zeros has scale 1; NaNs are passed over."""
    nan = 0x7F if form != "int8" else 0
    block, scales = Block(form, (1, 4, 1, 8)), index([[3], [3], [0.5], [np.nan]], np.float32)
    codes = block.view().view(np.uint8)[0, :, 0]
    codes[...] = 0
    codes[1], codes[2, 5], codes[2, 7], codes[3] = nan, np.float32(7).astype(block.dtype).view(np.uint8), nan, 1
    rope = pyrope.FusedRope(8, 0, 1, rotary_dim=2, device=device, k_out_dtype=form, k_scale_kind="dynamic",
                            cache=pyrope.PagedCache(4, 1))  # fmt: skip
    blocks = {"k_cache": block, "k_scale": scales, "slots": index(np.arange(4))}
    flats = call(rope, blocks, 4, "rotate_cache")
    got, top = block.view(flats["k_cache"])[0, :, 0], np.float32(ref.FORMATS[form][2])
    np.testing.assert_array_equal(scales.view(flats["k_scale"]).ravel(), np.float32([1, 1, 3.5 / top, 1]))
    want = np.zeros((4, 8), np.uint8)
    want[1], want[2, 5], want[2, 7], want[3] = nan, top.astype(block.dtype).view(np.uint8), nan, nan
    np.testing.assert_array_equal(ref.decode(got), ref.decode(want.view(got.dtype)))
    np.testing.assert_array_equal(got.view(np.uint8)[1], want[1])
