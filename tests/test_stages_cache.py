"""Appending to caches: where rows land, what is skipped and counted, and that nothing else is written."""

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit.blocks import Block, cache_block, call, index, normal_block
from kit.cases import K_HEADS
from kit.memory import HostMemory, memory_of
from kit.ropes import make

PAGES, PAGE_SIZE, DIM = 6, 4, 16
LIMIT = PAGES * PAGE_SIZE


def appender(device, layout="NHD", index_dtype="int64", **options):
    cache = pyrope.PagedCache(PAGE_SIZE, PAGES, layout=layout, index_dtype=index_dtype)
    return make(device, fused=True, cache=cache, **{"head_dim": DIM, "num_q_heads": 0} | options)


def operand(rng, tokens, heads=K_HEADS):
    return normal_block(rng, "float32", (tokens, heads, DIM))


def cache_of(dtype="float32", layout="NHD"):
    return cache_block(dtype, PAGES, PAGE_SIZE, K_HEADS, DIM, layout)


def expect(block, flat, written):
    """A cache holds rows by slot, canaries elsewhere."""
    want = block.flat.copy()
    for slot, row in written.items():
        block.view(want)[slot // PAGE_SIZE, slot % PAGE_SIZE] = row
    np.testing.assert_array_equal(flat, want)


def append_v(device, rng, tokens, blocks, written, counted, layout="NHD", index_dtype="int64", scalars=None):
    """v, whose bits are not changed, and k beside it, twice into a counter; `written`: the token of each slot."""
    k, v = operand(rng, tokens), operand(rng, tokens)
    caches = {x: cache_of(layout=layout) for x in ("k_cache", "v_cache")}
    blocks = {"k": k, "v": v, "cache_skipped": index([41])} | blocks | caches
    for _ in range(2):
        flats = call(appender(device, layout, index_dtype), blocks | (scalars or {}), tokens)
        expect(blocks["v_cache"], flats["v_cache"], {slot: v.view()[token] for slot, token in written.items()})
        changed = (caches["k_cache"].view(flats["k_cache"]) != caches["k_cache"].view()).all((2, 3)).ravel()
        assert sorted(np.flatnonzero(changed)) == sorted(written)
        counted_so_far = blocks["cache_skipped"].view()[0] + counted
        assert flats["cache_skipped"].view(np.int64)[0] == counted_so_far
        blocks["cache_skipped"] = index([counted_so_far])


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_slots(device, layout, index_dtype, rng):
    far = np.iinfo(index_dtype).max
    slots = [5, -1, LIMIT, 0, LIMIT - 1, far, -far, far - far % PAGE_SIZE - 1, 2]
    written = {5: 0, 0: 3, LIMIT - 1: 4, 2: 8}
    append_v(device, rng, 9, {"slots": index(slots, index_dtype)}, written, 3, layout, index_dtype)


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
@pytest.mark.parametrize("by", ["indptr", "stride"])
def test_pages(device, by, index_dtype, rng):
    """Requests of two pages, of none and of two outside the cache; positions beyond a request's pages."""
    far, low = np.iinfo(index_dtype).max, np.iinfo(np.int32).min
    table = [3, 1, 5, -1, PAGES, low]
    tokens = {  # request, cache position: slot, or what becomes of the token
        (0, 0): 12, (0, 3): 15, (0, 4): 4, (0, 8): "counted", (0, far): "counted", (0, -1): "left", (-1, 0): "left",
        (2, 1): "counted" if by == "stride" else 21, (2, 4): "counted", (1, 4): "counted",
        (1, 0): "counted" if by == "indptr" else 20, (low, 5): "left", (2, -far): "left",
    }  # fmt: skip
    blocks = {
        "page_table": index(table, np.int32),
        "request_ids": index([r for r, _ in tokens], np.int32),
        "cache_positions": index([n for _, n in tokens], index_dtype),
    }
    scalars = {"page_table_stride": 2}
    if by == "indptr":
        blocks["page_indptr"], scalars = index([0, 2, 2, 4, 6], np.int32), {}
    written = {slot: token for token, slot in enumerate(tokens.values()) if isinstance(slot, int)}
    append_v(device, rng, len(tokens), blocks, written, list(tokens.values()).count("counted"), "NHD", index_dtype,
             scalars)  # fmt: skip


def test_tokens_that_are_left_alone_are_not_counted(device, rng):
    """Position -1: neither appended nor reported, whatever their slot; nor are the dynamic scales written."""
    tokens = 4
    blocks = {
        "k": operand(rng, tokens),
        "v": operand(rng, tokens),
        "positions": index([7, -1, -1, 3]),
        "slots": index([9, 10, LIMIT, LIMIT]),
        "cache_skipped": index([41]),
    }
    for x in "kv":
        blocks[f"{x}_cache"] = cache_of("int8")
        blocks[f"{x}_scale"] = Block(np.float32, (LIMIT, K_HEADS))
    kinds = {"k_out_dtype": "int8", "v_out_dtype": "int8", "k_scale_kind": "dynamic", "v_scale_kind": "dynamic"}
    flats = call(appender(device, **kinds), blocks, tokens)
    assert flats["cache_skipped"].view(np.int64)[0] == 42
    scale = np.abs(blocks["v"].view()[0]).max(-1) / np.float32(127)
    row = np.rint(blocks["v"].view()[0] * (np.float32(1) / scale[:, None])).astype(np.int8)
    expect(blocks["v_cache"], flats["v_cache"], {9: row})
    want = blocks["v_scale"].flat.copy()
    blocks["v_scale"].view(want)[9] = scale
    np.testing.assert_array_equal(flats["v_scale"], want)


@pytest.mark.parametrize("names", ["k", "v", "kv", ""])
def test_some_of_k_and_v(device, names, rng):
    """With neither, a Rope with a cache serves q alone."""
    blocks = {"q": operand(rng, 3, 2)} | {x: operand(rng, 3) for x in names}
    for x in names:
        blocks[f"{x}_cache"] = cache_of()
    if names:
        blocks["slots"] = index([3, -1, 8])
    flats = call(appender(device, num_q_heads=2), blocks, 3)
    if "v" in names:
        expect(blocks["v_cache"], flats["v_cache"], {3: blocks["v"].view()[0], 8: blocks["v"].view()[2]})
    for x in names:
        np.testing.assert_array_equal(flats[x], blocks[x].flat)
    assert (flats["q"] != blocks["q"].flat).any()


def test_latent_attention(device, rng):
    """MLA: the rotated key and the latent v beside it in one row of the cache, strides of the row; q in two parts."""
    tokens, latent, row = 5, 40, 64
    strides = (PAGE_SIZE * row, row, row)
    pages = pyrope.PagedCache(PAGE_SIZE, PAGES, k_strides=strides, v_strides=strides)
    rope = pyrope.FusedRope(DIM, 3, 1, dtype="bfloat16", device=device, v_head_dim=latent, q_nope_dim=24, cache=pages)
    cache = np.full((PAGES, PAGE_SIZE, row), 0xA5A5, np.uint16)
    shapes = ((3, DIM), (3, 24), (1, DIM), (1, latent))
    q, nope, k, v = (rng.standard_normal((tokens, *shape)).astype(ml_dtypes.bfloat16) for shape in shapes)
    out = np.full((tokens, 3, DIM + 24), 0xA5A5, np.uint16)
    slots, offset = np.array([7, 0, -1, 23, 9]), 100
    plain = pyrope.Rope(DIM, 3, 1, dtype="bfloat16", device="cpu")
    q_want, k_want = q.copy(), k.copy()
    plain.apply(q_want, k_want, offset=offset)

    memory = memory_of(device)
    buffers = [memory.put(x.view(np.uint16)) for x in (q, nope, k, v)]
    b_cache, b_out, b_slots = memory.put(cache), memory.put(out), memory.put(slots)
    at = memory.pointer
    rope.apply(at(buffers[0]), at(buffers[2]), tokens, offset=offset, q_nope=at(buffers[1]), v=at(buffers[3]),
               q_out=at(b_out), q_out_strides=(3 * (DIM + 24), DIM + 24), q_nope_out=at(b_out) + 2 * DIM,
               q_nope_out_strides=(3 * (DIM + 24), DIM + 24), slots=at(b_slots), k_cache=at(b_cache) + 2 * latent,
               v_cache=at(b_cache))  # fmt: skip
    np.testing.assert_array_equal(memory.get(b_out), np.concatenate([q_want, nope], -1).view(np.uint16))
    want = cache.copy().reshape(-1, row)
    keep = slots >= 0
    want[slots[keep], :latent] = v.view(np.uint16)[keep, 0]
    want[slots[keep], latent : latent + DIM] = k_want.view(np.uint16)[keep, 0]
    np.testing.assert_array_equal(memory.get(b_cache).reshape(-1, row), want)


def test_caches_beyond_2_31_elements(device, rng):
    """Pages far apart; the memory between them is reserved and never touched."""
    if not isinstance(memory_of(device), HostMemory):
        pytest.skip("would need that much of the device's memory")
    stride = 2**30
    cache = np.zeros(3 * stride, np.int8)
    strides = (stride, K_HEADS * DIM, DIM)
    rope = pyrope.FusedRope(DIM, 0, K_HEADS, dtype="float32", device=device, v_out_dtype="int8",
                            cache=pyrope.PagedCache(PAGE_SIZE, 3, v_strides=strides))  # fmt: skip
    v = np.rint(rng.uniform(-100, 100, (2, K_HEADS, DIM))).astype(np.float32)
    q, slots = np.zeros((2, K_HEADS, DIM), np.float32), np.array([11, 8])
    k_cache = np.zeros((3, PAGE_SIZE, K_HEADS, DIM), np.float32)
    rope.apply(None, q.ctypes.data, 2, v=v.ctypes.data, v_scale=1.0, slots=slots.ctypes.data,
               k_cache=k_cache.ctypes.data, v_cache=cache.ctypes.data)  # fmt: skip
    for token, slot in enumerate(slots):
        begin = 2 * stride + slot % PAGE_SIZE * K_HEADS * DIM
        np.testing.assert_array_equal(cache[begin : begin + K_HEADS * DIM], v[token].ravel())
