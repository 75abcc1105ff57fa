"""Keys turned where they lie in a cache: every pair of the options, against float64 and across backends; and calls."""

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, call
from kit.cached import FACTORS, REFUSED, RULES, CacheCase
from kit.memory import HostMemory, memory_of
from kit.pairwise import Rows

ROWS = Rows(FACTORS, RULES, seed=2)


def test_every_pair_is_covered():
    assert ROWS.uncovered() == []


@pytest.mark.parametrize("number", range(len(ROWS)), ids=ROWS.name)
def test_pairs(device, number):
    CacheCase(ROWS[number], np.random.default_rng(number)).run(device)


@pytest.mark.parametrize("number", range(2 * len(REFUSED)))
def test_refused_pairs(device, number):
    """Two rows for each rule that break it and no other; nothing is written."""
    name, rule = REFUSED[number // 2]
    CacheCase(ROWS.breaking(rule, number)[number % 2], np.random.default_rng(number)).is_refused(device, name)


# ---- calls


def test_rows_shared_with_values(device, rng):
    """Latent attention: the key's part of each row turns, the latent beside it is not touched."""
    tokens, latent, rope_dim = 5, 40, 16
    row = latent + rope_dim
    strides = (4 * row, row, row)
    for form in ("bfloat16", "float8_e4m3fn"):
        options = {"k_out_dtype": form} if form in ref.QUANTISED else {}
        rope = pyrope.FusedRope(rope_dim, 3, 1, dtype="bfloat16", device=device, **options,
                                cache=pyrope.PagedCache(4, 3, k_strides=strides, v_strides=strides))  # fmt: skip
        slots, ids = np.array([7, 0, -1, 11, 9]), np.arange(5) * 1000
        cache = rng.standard_normal((12, row)).astype(ref.storage(form))
        want = cache.copy()
        alone = pyrope.FusedRope(rope_dim, 0, 1, dtype="bfloat16", device="cpu", **options,
                                 cache=pyrope.PagedCache(12, 1))  # fmt: skip
        part = np.ascontiguousarray(cache[:, latent:]).reshape(1, 12, 1, rope_dim)
        alone.rotate_cache(part.ctypes.data, tokens, slots=slots, positions=ids)
        want[:, latent:] = part.reshape(12, rope_dim)
        keys = Block(form, (12, row), (row, 1), latent, flat=cache.view(np.uint8).ravel())
        flats = call(rope, {"k_cache": keys, "slots": slots, "positions": ids}, tokens, "rotate_cache")
        np.testing.assert_array_equal(flats["k_cache"], want.view(np.uint8).ravel())


def test_caches_beyond_2_31_elements(device, rng):
    if not isinstance(memory_of(device), HostMemory):
        pytest.skip("would need that much of the device's memory")
    stride, d = 2**30, 16
    cache = np.zeros(3 * stride, np.int8)
    pages = pyrope.PagedCache(4, 3, k_strides=(stride, 2 * d, d))
    rope = pyrope.FusedRope(d, 0, 2, device=device, k_out_dtype="int8", cache=pages)
    begin = 2 * stride + 3 * 2 * d
    cache[begin : begin + d] = 100
    slots, positions = np.array([11]), np.array([5])
    rope.rotate_cache(cache.ctypes.data, 1, slots=slots.ctypes.data, positions=positions.ctypes.data)
    want = np.full((1, 1, 1, d), 100, np.int8)
    pyrope.FusedRope(d, 0, 1, device="cpu", k_out_dtype="int8", cache=pyrope.PagedCache(1, 1)).rotate_cache(
        want, slots=np.array([0]), positions=np.array([5])
    )
    np.testing.assert_array_equal(cache[begin : begin + d], want.ravel())
    assert not cache[begin - 4096 : begin].any() and not cache[begin + d : begin + 4096].any()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_arrays(layout, rng):
    """Arrays bring num_tokens and strides; a float8 array of any one-byte dtype."""
    shape = (3, 4, 2, 32) if layout == "NHD" else (3, 2, 4, 32)
    cache = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    rope = pyrope.FusedRope(32, 0, 2, device="cpu", k_out_dtype="float8_e4m3fn", k_scale_kind="dynamic",
                            cache=pyrope.PagedCache(4, 3, layout))  # fmt: skip
    scales, skipped = np.ones((12, 2), np.float32), np.zeros(1, np.int64)
    call = {"positions": np.array([9, 8, 7]), "k_scale": scales, "cache_skipped": skipped}
    results = []
    for where in (
        {"slots": np.array([0, 5, 12])},
        {"page_table": np.array([[0, 1, 3]], np.int32), "request_ids": np.zeros(3, np.int32),
         "cache_positions": np.array([0, 5, 8])},
    ):  # fmt: skip
        got = cache.view(np.uint8).copy()
        scales[...] = 1
        rope.rotate_cache(got, **call, **where)
        results.append((got, scales.copy()))
    assert (results[0][0] == results[1][0]).all() and (results[0][1] == results[1][1]).all() and skipped == 2
    moved = np.moveaxis(results[0][0] != cache.view(np.uint8), 1 if layout == "NHD" else 2, 1).any((2, 3)).ravel()
    assert list(np.flatnonzero(moved)) == [0, 5]
    assert rope.rotate_cache(results[0][0], 0, slots=np.zeros(0, int), k_scale=scales) is None


def test_launches_and_threads(device, rng):
    """The same bits however it is run."""
    cache, slots = rng.standard_normal((3, 256, 2, 32)).astype(np.float32), rng.permutation(768)
    memory = memory_of(device)
    ways = {
        "cpu": ({}, {"num_threads": 1}, {"num_threads": 5}),
        "cuda": ({}, {"enable_pdl": True}, {"enable_pdl": True, "positions_ready": True}),
    }
    results = []
    for options in ways[device]:
        buffers = memory.put(cache), memory.put(slots)
        rope = pyrope.FusedRope(32, 0, 2, dtype="float32", device=device, cache=pyrope.PagedCache(256, 3), **options)
        rope.rotate_cache(memory.pointer(buffers[0]), 768, slots=memory.pointer(buffers[1]))
        results.append(memory.get(buffers[0]))
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert (results[0] != cache).any()
