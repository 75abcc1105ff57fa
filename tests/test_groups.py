"""Scales for groups of a row and GGUF's blocks: every bit by an encoder of the formats, and what decoding gives."""

import functools

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit import groups
from kit import reference as ref
from kit.blocks import Block, call, index, normal_block, rows_block, same_on_both
from kit.groups import FORMS
from kit.places import place_of_cache
from kit.ropes import make

TENSOR_SCALE = 0.003
PAGES, PAGE_SIZE = 3, 4
HEADS = {"q": 3, "k": 2, "v": 2}


def options_of(form, names, strides=None):
    """Of FusedRope."""
    out_dtype, size, dtype = FORMS[form]
    options = {f"{x}_out_dtype": out_dtype for x in names}
    if dtype:
        options |= {f"{x}_scale_kind": pyrope.GroupScales(size, dtype, strides) for x in names}
    return options


def scale_blocks(form, shapes, strides=None):
    """Scales and those of the tensors, of a call: shapes [..., groups] by name."""
    dtype = FORMS[form][2]
    blocks = {f"{x}_scale": Block(groups.SCALE_STORAGE[dtype], shape, strides) for x, shape in shapes.items() if dtype}
    if dtype == "float8_e4m3fn":
        blocks |= {f"{x}_tensor_scale": TENSOR_SCALE for x in shapes}
    return blocks


def check(form, y, blocks, flats, name, scale_name, rows=...):
    """Codes and scales of these rows are those of float32 y."""
    codes, scales = groups.encode(y, form, TENSOR_SCALE)
    np.testing.assert_array_equal(blocks[name].bytes(flats[name])[rows], codes)
    if scales is not None:
        got = blocks[scale_name].view(flats[scale_name])[rows]
        np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), scales.view(f"u{scales.itemsize}"))


def wide_values(rng, shape):
    """From 1e-8 to 1e4, zeros, and a group of nothing else."""
    x = np.exp(rng.uniform(-18, 9, shape)) * rng.choice([-1, 1], shape)
    x[..., ::7] = 0
    x[0, 0] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["dense", "odd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_those_of_the_format(device, dtype, place, form, rng):
    """Of q, k and v out of place: what float32 gives, encoded. With a partial rotation, of both pairings."""
    tokens, d = 7, 256 if place == "dense" else 128
    layout, rotary = ("neox", 64) if place == "dense" else ("gptj", 36)
    shape = {"rotary_dim": rotary, "rotary_offset": 16, "layout": layout, "head_dim": d, "num_q_heads": 3}
    shape |= {"num_k_heads": 2, "fused": True}
    values = {x: wide_values(rng, (tokens, n, d)).astype(ref.storage(dtype)) for x, n in HEADS.items()}
    inputs = {x: rows_block(dtype, v.shape, place, v) for x, v in values.items()}
    plain = {x: rows_block("float32", v.shape, values=v.astype(np.float32)) for x, v in values.items()}
    plain |= {f"{x}_out": rows_block("float32", v.shape) for x, v in values.items()} | {"offset": 70_001}
    flats = call(make(device, **shape), plain, tokens)
    y = {x: plain[f"{x}_out"].view(flats[f"{x}_out"]).copy() for x in HEADS}

    width = groups.row_bytes(FORMS[form][0], d)
    blocks = inputs | {f"{x}_out": rows_block(np.uint8, (tokens, n, width), place) for x, n in HEADS.items()}
    blocks |= scale_blocks(form, {x: (tokens, n, d // FORMS[form][1]) for x, n in HEADS.items()})
    flats = call(make(device, dtype, **shape, **options_of(form, "qkv")), blocks | {"offset": 70_001}, tokens)
    for x in HEADS:
        check(form, y[x], blocks, flats, f"{x}_out", f"{x}_scale")


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("form", FORMS)
def test_appended(device, form, layout, rng):
    """The keys' codes and scales in pages, each with strides of their own; the rest of the caches is untouched."""
    tokens, d, size = 9, 128, FORMS[form][1]
    x = {name: wide_values(rng, (tokens, 2, d)) for name in "kv"}
    slots = rng.permutation(PAGES * PAGE_SIZE)[:tokens]
    slots[3] = -1
    live = np.flatnonzero(slots >= 0)
    rows = tuple(np.divmod(slots[live], PAGE_SIZE))
    pages = {"cache": pyrope.PagedCache(PAGE_SIZE, PAGES, layout)}
    inputs = {name: rows_block("float32", v.shape, values=v) for name, v in x.items()}
    ids = {"slots": index(slots), "positions": index(rng.integers(0, 1 << 40, tokens))}
    y = inputs | ids | {f"{name}_cache": Block(np.float32, (PAGES, PAGE_SIZE, 2, d)) for name in "kv"}
    plain = pages | {"cache": pyrope.PagedCache(PAGE_SIZE, PAGES)}
    flats = call(make(device, fused=True, head_dim=d, **plain), y, tokens)
    y = {name: y[f"{name}_cache"].view(flats[f"{name}_cache"])[rows] for name in "kv"}

    width = groups.row_bytes(FORMS[form][0], d)
    strides = {n: place_of_cache(layout, PAGE_SIZE, 2, n, "odd")[0] for n in (width, d // size)}
    pages["cache"] = pyrope.PagedCache(PAGE_SIZE, PAGES, layout, k_strides=strides[width][:3])
    blocks = inputs | ids
    for name in "kv":
        blocks[f"{name}_cache"] = Block(np.uint8, (PAGES, PAGE_SIZE, 2, width), strides[width], 1)
    blocks["v_cache"] = Block(np.uint8, (PAGES, PAGE_SIZE, 2, width), place_of_cache(layout, PAGE_SIZE, 2, width)[0])
    shape = PAGES, PAGE_SIZE, 2, d // size
    blocks |= scale_blocks(form, {"k": shape, "v": shape}, strides[d // size])
    options = options_of(form, "kv", strides[d // size][:3])
    flats = call(make(device, fused=True, head_dim=d, **pages, **options), blocks, tokens)
    for name in "kv":
        check(form, y[name], blocks, flats, f"{name}_cache", f"{name}_scale", rows)
        for block in (f"{name}_cache", f"{name}_scale"):
            if block in flats:
                rest = flats[block].copy()
                blocks[block].view(rest)[rows] = blocks[block].view()[rows]
                np.testing.assert_array_equal(rest, blocks[block].flat)


@pytest.mark.parametrize("form", FORMS)
def test_decoded_numbers_are_near(device, form, rng):
    """What the decoder reads is within half a step of its format of what was rotated, in float64."""
    tokens, d, (out_dtype, size, _) = 40, 128, FORMS[form]
    q = normal_block(rng, "float32", (tokens, 3, d))
    blocks = {"q": q, "q_out": rows_block(np.uint8, (tokens, 3, groups.row_bytes(out_dtype, d)))}
    blocks |= scale_blocks(form, {"q": (tokens, 3, d // size)}) | {"offset": 5}
    flats = call(make(device, fused=True, head_dim=d, **options_of(form, "q")), blocks, tokens)
    turns = ref.phases(np.repeat(5 + np.arange(tokens)[:, None], d // 2, axis=1), "exact", d, 10000.0)
    y, _ = ref.rotate(ref.exact(q.view()), *ref.cos_sin_of_phases(turns), "neox", d, 0)
    scales = blocks["q_scale"].view(flats["q_scale"]) if "q_scale" in flats else None
    stored = blocks["q_out"].bytes(flats["q_out"])
    units = np.abs(groups.units_of(stored, scales, form, TENSOR_SCALE))
    largest = np.repeat(np.abs(y.reshape(*y.shape[:-1], -1, size)).max(-1), size, axis=-1)
    # Steps at the top of a group: of e4m3, e5m2, e2m1 2^-3, 2^-2, 2^-1 of the number; of integers one unit. Rounding a
    # scale to e4m3 or float16 moves the largest number past the last code by up to 2^-4, q4_0's 8 by one.
    step = {"float8_e4m3fn": 2**-3, "float8_e5m2": 2**-2, "float4_e2m1fn": 2**-1}.get(out_dtype, 0)
    bound = np.where(step > 0, step / 2 * largest, units / 2) + largest * 2**-4 * (form == "nvfp4")
    bound += units * {"q4_0": 0.51, "q8_0": 0.07}.get(form, 1e-4)
    error = np.abs(groups.decode(stored, scales, form, TENSOR_SCALE) - y)
    assert (error <= bound).all() and error.max() > 0.1 * bound.max()


@pytest.mark.parametrize("form", FORMS)
def test_keys_that_move(device, form, rng):
    """rotate_cache: the stored numbers, decoded, turned in float32 by the core's own rotation, and encoded anew."""
    tokens, d, (out_dtype, size, dtype) = 8, 128, FORMS[form]
    width, shape = groups.row_bytes(out_dtype, d), (PAGES, PAGE_SIZE, 2, d // size)
    cache = Block(np.uint8, (PAGES, PAGE_SIZE, 2, width))
    codes, scales = groups.encode(wide_values(rng, (PAGES, PAGE_SIZE, 2, d)), form, TENSOR_SCALE)
    cache.view()[...] = codes
    slots = rng.permutation(PAGES * PAGE_SIZE)[:tokens]
    rows = tuple(np.divmod(slots, PAGE_SIZE))
    blocks = {"k_cache": cache, "slots": index(slots), "positions": index(rng.integers(0, 1 << 40, tokens))}
    blocks |= scale_blocks(form, {"k": shape})
    if dtype:
        blocks["k_scale"].view()[...] = scales
    blocks["positions_from"] = index(rng.integers(0, 1 << 40, tokens))
    options = {"head_dim": d, "rotary_dim": 48, "rotary_offset": 8, "layout": "gptj", "num_q_heads": 0}
    options["cache"] = pyrope.PagedCache(PAGE_SIZE, PAGES)
    flats = call(make(device, fused=True, **options, **options_of(form, "k")), blocks, tokens, "rotate_cache")

    numbers = groups.decode(codes, scales, form, np.float32(TENSOR_SCALE)).astype(np.float32)
    if form == "nvfp4":  # two products, each rounded
        unit = scales.astype(np.float32) * np.float32(TENSOR_SCALE)
        numbers = groups.codes_of(codes, out_dtype).astype(np.float32) * np.repeat(unit, size, axis=-1)
    plain = blocks | {"k_cache": Block(np.float32, (PAGES, PAGE_SIZE, 2, d), values=numbers)}
    plain = {name: x for name, x in plain.items() if "scale" not in name}
    turned = call(make(device, fused=True, **options), plain, tokens, "rotate_cache")["k_cache"]
    check(form, plain["k_cache"].view(turned)[rows], blocks, flats, "k_cache", "k_scale", rows)
    rest = flats["k_cache"].copy()
    cache.view(rest)[rows] = codes[rows]
    np.testing.assert_array_equal(rest, cache.flat)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["apply", "rotate_cache"])
def test_cuda_equals_cpu_for_any_bits(method, form, rng):
    """Infinities, NaNs and every code and scale, with a norm before; of every head_dim that the groups divide."""
    out_dtype, size, _ = FORMS[form]
    for d, memory in (
        (size, "odd"),
        (256 // size * size, "odd"),
        (3 * size, "padded"),
        (512, "padded"),
        (2048, "dense"),
    ):
        rotary = min(d, 64) // 4 * 2 if memory == "odd" else min(d, 96)
        options = {"head_dim": d, "rotary_dim": rotary, "layout": ("neox", "gptj")[d % 3 % 2], "num_q_heads": 3}
        options |= {"num_k_heads": 2, "dtype": "bfloat16", "fused": True}
        shape, width = (PAGES, PAGE_SIZE, 2, d // size), groups.row_bytes(out_dtype, d)
        if method == "apply":
            q = rows_block("bfloat16", (5, 3, d), memory)
            q.flat[...] = rng.integers(0, 256, q.flat.size, np.uint8)
            q.view()[3:] = rng.standard_normal((2, 3, d))
            blocks = {"q": q, "q_out": rows_block(np.uint8, (5, 3, width), memory)}
            blocks |= scale_blocks(form, {"q": (5, 3, d // size)}) | {
                "q_weight": index(rng.standard_normal(d), "bfloat16")
            }
            options |= options_of(form, "q") | {"norm": pyrope.RMSNorm()}
        else:
            blocks = {"k_cache": Block(np.uint8, (PAGES, PAGE_SIZE, 2, width)), "slots": index([3, 7, 11, 0, 2])}
            blocks |= scale_blocks(form, {"k": shape}) | {"positions": index(rng.integers(0, 1 << 40, 5))}
            for name in {"k_cache", "k_scale"} & blocks.keys():
                blocks[name].flat[...] = rng.integers(0, 256, blocks[name].flat.size, np.uint8)
            options |= options_of(form, "k") | {"cache": pyrope.PagedCache(PAGE_SIZE, PAGES)}
        same_on_both(functools.partial(make, **options), blocks, 5, method)


@pytest.mark.parametrize("number", [True, False])
def test_tensor_scale_as_a_number_and_in_memory(device, number, rng):
    """The same bits; scales fall by it."""
    x = rows_block("float32", (4, 3, 64), values=rng.standard_normal((4, 3, 64)))
    rope = make(device, fused=True, **options_of("nvfp4", "q"))
    results = []
    for scale in (1 / 512, index([1 / 512], np.float32), 1 / 256):
        blocks = {"q": x, "q_out": rows_block(np.uint8, (4, 3, 32)), "q_tensor_scale": scale}
        blocks["q_scale"] = Block(ml_dtypes.float8_e4m3fn, (4, 3, 4))
        flats = call(rope, blocks, 4)
        results.append((flats["q_out"], blocks["q_scale"].view(flats["q_scale"]).astype(np.float64)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][1], 2 * results[2][1])


def test_latent_rows_with_their_scales_in_them(device, rng):
    """FlashMLA's row of 656 bytes: 512 e4m3, their four float32 scales, 64 bfloat16 that turn."""
    tokens, row = 5, 656
    cache = rng.integers(0, 256, 3 * 4 * row, np.uint8)
    slots = np.array([7, 0, 11, -1, 3])
    latent = wide_values(rng, (tokens, 1, 512))
    k, v = normal_block(rng, "bfloat16", (tokens, 1, 64)), rows_block("bfloat16", latent.shape, values=latent)
    pages = pyrope.PagedCache(4, 3, k_strides=(2 * row, row // 2, row // 2), v_strides=(4 * row, row, row))
    rope = make(device, "bfloat16", fused=True, num_q_heads=0, num_k_heads=1, v_head_dim=512, cache=pages,
                v_out_dtype="float8_e4m3fn",
                v_scale_kind=pyrope.GroupScales(128, strides=(row, row // 4, row // 4)))  # fmt: skip
    parts = {
        "v_cache": Block(np.uint8, (12, 512), (row, 1), flat=cache),
        "v_scale": Block(np.float32, (12, 4), (row // 4, 1), 128, flat=cache),
        "k_cache": Block("bfloat16", (12, 64), (row // 2, 1), 264, flat=cache),
    }
    flats = call(rope, {"k": k, "v": v, "slots": slots, "offset": 9} | parts, tokens)
    live = slots >= 0
    codes, scales = groups.encode(v.view()[live, 0].astype(np.float32), "e4m3 128")
    want = cache.copy()
    parts["v_cache"].view(want)[slots[live]] = codes
    parts["v_scale"].view(want)[slots[live]] = scales
    out = rows_block("bfloat16", (tokens, 1, 64))
    alone = make(device, "bfloat16", num_q_heads=0, num_k_heads=1)
    turned = out.view(call(alone, {"k": k, "k_out": out, "offset": 9}, tokens)["k_out"])
    parts["k_cache"].view(want)[slots[live]] = turned[live, 0]
    np.testing.assert_array_equal(flats["v_cache"], want)


def test_blocks_of_the_nope_part(device, rng):
    """Which needs no scales beside it."""
    q = normal_block(rng, "float32", (4, 3, 64))
    nope = normal_block(rng, "float32", (4, 3, 96))
    blocks = {
        "q": q,
        "q_nope": nope,
        "q_out": rows_block(np.uint8, (4, 3, 68)),
        "q_nope_out": Block(np.uint8, (4, 3, 102)),
    }
    flats = call(make(device, fused=True, q_nope_dim=96, q_out_dtype="q8_0"), blocks, 4)
    check("q8_0", nope.view(), blocks, flats, "q_nope_out", None)
