"""The bits of a result do not depend on which other stages are on, on the dtype's way in, on the batch or the place."""

import functools

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, bits_block, cache_block, call, index, normal_block, rows_block, same_on_both
from kit.cases import K_HEADS, Q_HEADS, SCALES
from kit.reference import DTYPES
from kit.ropes import make

SHAPES = [(128, 128, 0), (64, 32, 16), (80, 36, 7), (6, 4, 1)]  # head_dim, rotary_dim, rotary_offset
PAGES, PAGE_SIZE = 9, 5


HEADS = {"q": Q_HEADS, "k": K_HEADS}


def rope_of(device, shape, *, fused=True, **options):
    shape = dict(zip(("head_dim", "rotary_dim", "rotary_offset"), shape, strict=True))
    return make(device, fused=fused, num_q_heads=Q_HEADS, num_k_heads=K_HEADS, **shape | options)


def without_nans(block, elements=slice(None)):
    """NaNs among these elements become 0."""
    part = block.view()[..., elements]
    part[np.isnan(part.astype(np.float32))] = 0


def inputs_of(dtype, tokens, head_dim, rng, bits=False):
    """q and k: normal numbers, or any bit patterns."""
    kind = bits_block if bits else normal_block
    return {name: kind(rng, dtype, (tokens, heads, head_dim)) for name, heads in HEADS.items()}


def outputs(dtype, tokens, head_dim, place="dense"):
    return {f"{name}_out": rows_block(dtype, (tokens, heads, head_dim), place) for name, heads in HEADS.items()}


def got(blocks, flats, name):
    """The contents of a block after a call, dense, as bytes."""
    return blocks[name].bytes(flats[name])


@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_and_fused_and_appended(device, shape, dtype, layout, angle, rng):
    """Any bit patterns, where it is rotated NaNs too: Rope, FusedRope and what lands in a cache beside v."""
    tokens, d = 40, shape[0]
    options = {"dtype": dtype, "layout": layout, "angle": angle}
    inputs = inputs_of(dtype, tokens, d, rng, bits=True)
    for block in inputs.values():
        without_nans(block, slice(shape[2]))
        without_nans(block, slice(sum(shape[1:]), None))
    ids = index(rng.integers(-(2**62), 2**62, tokens))
    blocks = inputs | outputs(dtype, tokens, d) | {"positions": ids}
    flats = call(rope_of(device, shape, fused=False, **options), blocks, tokens)
    want_q, want_k = got(blocks, flats, "q_out"), got(blocks, flats, "k_out")

    flats = call(rope_of(device, shape, **options), blocks, tokens)
    np.testing.assert_array_equal(got(blocks, flats, "q_out"), want_q)
    np.testing.assert_array_equal(got(blocks, flats, "k_out"), want_k)

    slots = rng.permutation(PAGES * PAGE_SIZE)[:tokens]
    for layout_of_cache in ("NHD", "HND"):
        cache = pyrope.PagedCache(PAGE_SIZE, PAGES, layout=layout_of_cache)
        rope = rope_of(device, shape, **options, cache=cache)
        v = bits_block(rng, dtype, (tokens, K_HEADS, d), "padded")
        without_nans(v)
        cached = inputs | {"positions": ids, "slots": index(slots), "v": v}
        for name in ("k_cache", "v_cache"):
            cached[name] = cache_block(dtype, PAGES, PAGE_SIZE, K_HEADS, d, layout_of_cache)
        flats = call(rope, cached | {"q_out": blocks["q_out"]}, tokens)
        np.testing.assert_array_equal(got(blocks, flats, "q_out"), want_q)
        rows = np.divmod(slots, PAGE_SIZE)
        for name, want in (("k_cache", want_k), ("v_cache", v.bytes())):
            np.testing.assert_array_equal(got(cached, flats, name)[rows], want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_keep_the_bits_of_nans(device, dtype, rng):
    """What is neither rotated nor quantised is copied, as Rope copies it: v, the nope part of q, the rest of a head."""
    tokens, d, width = 40, 64, ref.storage(dtype).itemsize
    blocks = inputs_of(dtype, tokens, d, rng, bits=True) | outputs(dtype, tokens, d)
    for name, heads in (("v", K_HEADS), ("q_nope", Q_HEADS)):
        blocks[name] = bits_block(rng, dtype, (tokens, heads, d))
        blocks[f"{name}_out"] = rows_block(dtype, (tokens, heads, d))
    flats = call(rope_of(device, (d, 16, 8), dtype=dtype, q_nope_dim=d), blocks, tokens)
    rest = np.r_[: 8 * width, 24 * width : d * width]
    for name, part in (("q", rest), ("k", rest), ("v", slice(None)), ("q_nope", slice(None))):
        want = blocks[name].bytes()[..., part]
        np.testing.assert_array_equal(got(blocks, flats, f"{name}_out")[..., part], want, err_msg=name)


def quantised(y, scale, name):
    """Float32 to a format: one rounding of y * (1 / scale), saturating, as codes."""
    with np.errstate(over="ignore"):
        x = y * (np.float32(1) / scale)
    if name == "int8":
        return np.clip(np.rint(x), -128, 127).astype(np.int8)
    return np.clip(x, -SATURATED[name], SATURATED[name]).astype(ref.storage(name))


SATURATED = {name: np.float32(ref.FORMATS[name][2]) for name in SCALES}


@pytest.mark.parametrize("norm", ["none", "before", "after"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_output_is_one_rounding_of_the_same_float32(device, shape, dtype, norm, rng):
    """What float32 in and out gives is rounded here; the other dtypes and formats must hold exactly that."""
    tokens, d = 17, shape[0]
    stage = {} if norm == "none" else {"norm": pyrope.RMSNorm(eps=1e-6, weight_dtype="float32", after=norm == "after")}
    weights = {f"{x}_weight": index(rng.standard_normal(d), np.float32) for x in "qk" if stage}
    inputs = inputs_of(dtype, tokens, d, rng)
    wide = {x: rows_block("float32", b.shape, values=b.view().astype(np.float32)) for x, b in inputs.items()}
    weights["offset"] = 70_001
    blocks = wide | outputs("float32", tokens, d) | weights
    flats = call(rope_of(device, shape, **stage), blocks, tokens)
    y = {x: blocks[x].view(flats[x]).copy() for x in ("q_out", "k_out")}

    blocks = inputs | outputs(dtype, tokens, d, "padded") | weights
    flats = call(rope_of(device, shape, dtype=dtype, **stage), blocks, tokens)
    for x in y:
        np.testing.assert_array_equal(blocks[x].view(flats[x]), y[x].astype(ref.storage(dtype)))

    for form, size in SCALES.items():
        types = {"q_out_dtype": form, "k_out_dtype": form}
        blocks = inputs | outputs(form, tokens, d) | weights
        scales = {"q_scale": size, "k_scale": size}
        flats = call(rope_of(device, shape, dtype=dtype, **stage, **types), blocks | scales, tokens)
        for x in y:
            want = quantised(y[x], np.float32(size), form).view(np.uint8)
            np.testing.assert_array_equal(got(blocks, flats, x), want)

        types |= {"q_scale_kind": "dynamic", "k_scale_kind": "dynamic"}
        blocks |= {f"{x}_scale": Block(np.float32, (tokens, heads)) for x, heads in HEADS.items()}
        flats = call(rope_of(device, shape, dtype=dtype, **stage, **types), blocks, tokens)
        for x in "qk":
            scale = np.abs(y[f"{x}_out"]).max(-1) / SATURATED[form]
            np.testing.assert_array_equal(blocks[f"{x}_scale"].view(flats[f"{x}_scale"]), scale)
            want = quantised(y[f"{x}_out"], scale[..., None], form).view(np.uint8)
            np.testing.assert_array_equal(got(blocks, flats, f"{x}_out"), want)


@pytest.mark.parametrize("form", ["same", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_place_and_batch_do_not_matter(device, shape, form, rng):
    """Norm and dynamic scales, which are sums and maxima over a head, among them."""
    tokens, d, dtype = 300, shape[0], "bfloat16"
    options = {"dtype": dtype, "norm": pyrope.RMSNorm(eps=1e-6)}
    if form != "same":
        options |= {"q_out_dtype": form, "k_out_dtype": form, "q_scale_kind": "dynamic", "k_scale_kind": "dynamic"}
    rope = rope_of(device, shape, **options)
    weights = {f"{x}_weight": index(rng.standard_normal(d), dtype) for x in "qk"}
    base = inputs_of(dtype, tokens, d, rng)

    def results(place, first, count):
        blocks = weights | outputs(dtype if form == "same" else form, count, d, place)
        for x, heads in HEADS.items():
            values = base[x].view()[first : first + count]
            blocks[x] = rows_block(dtype, values.shape, place, values)
            if form != "same":
                blocks[f"{x}_scale"] = Block(np.float32, (count, heads))
        flats = call(rope, blocks | {"offset": 1000 + first}, count)
        return {x: got(blocks, flats, x) for x in blocks if x.endswith(("_out", "_scale"))}

    want = results("dense", 0, tokens)
    for place, first, count in (("padded", 0, tokens), ("odd", 0, tokens), ("dense", 7, 1), ("odd", 31, 33)):
        for x, value in results(place, first, count).items():
            np.testing.assert_array_equal(value, want[x][first : first + count])


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["dense", "odd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_cpu_in_every_head_dim(dtype, memory, rng):
    """The norm's sum and the scale's maximum, which the kernel divides among threads: every width of its accesses."""
    for d in (*range(2, 132, 2), 160, 192, 256):
        half = max(2, d // 4 * 2)
        for number, (rotary_dim, offset) in enumerate([(d, 0), (half, 0), (half, (d - half) // 2)]):
            blocks = {
                "q": normal_block(rng, dtype, (3, 2, d), memory),
                "q_weight": index(rng.standard_normal(d), dtype),
                "q_out": rows_block("int8", (3, 2, d), memory),
                "q_scale": Block(np.float32, (3, 2)),
                "offset": 3,
            }
            options = {"rotary_dim": rotary_dim, "rotary_offset": offset, "dtype": dtype}
            options["layout"] = ("neox", "gptj")[(d // 2 + number) % 2]
            options |= {"norm": pyrope.RMSNorm(after=number == 1), "q_out_dtype": "int8", "q_scale_kind": "dynamic"}
            same_on_both(functools.partial(make, fused=True, head_dim=d, num_q_heads=2, **options), blocks)
