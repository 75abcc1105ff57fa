"""Calls of rotate_cache that cannot be: each refusal names the argument, and nothing is written."""

import numpy as np
import pytest

import pyrope
from kit.blocks import Block, call, index
from kit.memory import Buffers
from kit.refusals import T, V, read_only, refused, rows

DIM, E4M3 = 16, "float8_e4m3fn"
FP8 = {"k_out_dtype": E4M3}


def pages_of(p):
    return {"slots": None, "page_table": p.page_table, "page_table_stride": 2, "request_ids": p.ids32,
            "cache_positions": p.ids}  # fmt: skip


CALLS = rows(
    ("no cache", {"cache": None}, lambda p: {}, V, "k_cache: only allowed with cache="),
    ("norm after", {"norm": pyrope.RMSNorm(after=True)}, lambda p: {}, V, "norm: after=True, not allowed with rotate"),
    ("k_cache None", {}, lambda p: {"k_cache": None}, T, "k_cache: required with rotate_cache"),
    ("k_cache misaligned", {}, lambda p: {"k_cache": p.k_cache + 2}, V, "cache.k: pointer .* misaligned"),
    ("k_cache low", {}, lambda p: {"k_cache": 4096}, V, "k_cache: 0x1000 is not the address"),
    ("num_tokens missing", {}, lambda p: {"num_tokens": None}, T, "num_tokens: required with pointers"),
    ("num_tokens negative", {}, lambda p: {"num_tokens": -1}, V, "num_tokens: -1, must be"),
    ("no slots", {}, lambda p: {"slots": None}, T, "slots and page_table: both None"),
    ("slots and page_table", {}, lambda p: pages_of(p) | {"slots": p.ids}, V, "page_table: not allowed together"),
    ("request_ids missing", {}, lambda p: pages_of(p) | {"request_ids": None}, T, "request_ids: required with"),
    ("slots misaligned", {}, lambda p: {"slots": p.ids + 4}, V, "cache.slots: pointer .* misaligned"),
    ("inverse", {}, lambda p: {"inverse": 1}, T, "inverse: 1 is not a bool"),
    ("scale", {}, lambda p: {"k_scale": 1.0}, V, "k_scale: only allowed with"),
    ("scale zero", FP8, lambda p: {"k_scale": 0.0}, V, "k_scale: 0.0, must be above 0"),
    ("scale an int", FP8, lambda p: {"k_scale": 1}, T, "k_scale: 1 is an integer"),
    ("scales missing", FP8 | {"k_scale_kind": "dynamic"}, lambda p: {}, T, "k_scale: required with"),
    ("dynamic number", FP8 | {"k_scale_kind": "dynamic"}, lambda p: {"k_scale": 1.0}, T, "k_scale: 1.0, must be memo"),
    ("scales are keys", FP8 | {"k_scale_kind": "head"}, lambda p: {"k_scale": p.k_cache}, V,
     "k_quantize: overlaps cache.k"),
    ("dynamic scales are keys", FP8 | {"k_scale_kind": "dynamic"}, lambda p: {"k_scale": p.k_cache + 124}, V,
     "k_quantize: overlaps cache.k"),
    ("slots are keys", {}, lambda p: {"slots": p.k_cache}, V, "cache.slots: overlaps cache.k"),
    ("positions are keys", {}, lambda p: {"positions": p.k_cache}, V, "positions: overlaps cache.k"),
    ("positions_from are keys", {}, lambda p: {"positions": p.ids, "positions_from": p.k_cache}, V,
     "positions_from: overlaps cache.k"),
    ("positions_from alone", {}, lambda p: {"positions_from": p.ids}, T, "positions: required with positions_from"),
    ("positions and indptr", {}, lambda p: {"positions": p.ids, "indptr": p.ids, "num_requests": 2}, V,
     "indptr: not allowed together with positions"),
    ("offset and positions", {}, lambda p: {"positions": p.ids, "offset": 3}, V, "offset: 3, must be 0 with"),
    ("sections", {"sections": (4, 4)}, lambda p: {}, T, "positions: required with sections"),
    ("set_ids_from alone", {}, lambda p: {"frequency_sets": p.ids, "num_sets": 1, "set_ids": p.ids32,
     "set_ids_from": p.ids32}, V, "set_ids_from: only allowed with positions_from"),
    ("cos missing", {"angle": "cos_sin"}, lambda p: {}, T, "cos: required with angle='cos_sin'"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "change", "error", "text"), CALLS)
def test_refusals(device, options, change, error, text):
    options = {"cache": pyrope.PagedCache(2, 4), "dtype": "float32"} | options
    rope = pyrope.FusedRope(DIM, 2, 1, device=device, **options)
    arrays = {"k_cache": np.arange(400, dtype=np.float32), "ids": np.arange(16), "ids32": np.zeros(16, np.int32),
              "page_table": np.arange(8, dtype=np.int32)}  # fmt: skip
    buffers = Buffers(device, arrays)
    p = buffers.at
    with refused(error, text):
        rope.rotate_cache(**{"k_cache": p.k_cache, "num_tokens": 3, "slots": p.ids} | change(p))
    assert buffers.untouched()


def test_refused_arrays():
    rope = pyrope.FusedRope(DIM, 0, 1, dtype="float32", device="cpu", cache=pyrope.PagedCache(2, 4))
    cache, slots = np.zeros((4, 2, 1, DIM), np.float32), np.arange(3)
    for arguments, error, text in (
        ((cache.astype(np.float16),), TypeError, "k_cache: dtype float16, must be float32"),
        ((cache[:3],), ValueError, r"k_cache: shape \(3, 2, 1, 16\), must be"),
        ((read_only(cache.copy()),), ValueError, "k_cache: the array is read-only"),
        ((cache, 4), ValueError, "slots: 4 are needed, one a token; got 3"),
    ):
        with refused(error, text):
            rope.rotate_cache(*arguments, slots=slots)
    with refused(ValueError, r"slots: shape \(1, 3\), must be contiguous \[num_tokens\]"):
        rope.rotate_cache(cache, slots=slots[None])
    assert not cache.any()


@pytest.mark.parametrize(("head_dim", "odd"), [(4096, False), (4098, False), (258, True)])
def test_heads_too_long(device, head_dim, odd):
    """For a block, which is to hold the heads of dynamic scales; beyond 4096 for all."""
    strides = (head_dim + odd,) * 3
    rope = pyrope.FusedRope(head_dim, 0, 1, rotary_dim=64, device=device, k_out_dtype=E4M3, k_scale_kind="dynamic",
                            cache=pyrope.PagedCache(1, 2, k_strides=strides))  # fmt: skip
    blocks = {"k_cache": Block(np.int8, (2, 1, 1, head_dim), (*strides, 1), odd), "k_scale": Block(np.float32, (2, 1)),
              "slots": index([1])}  # fmt: skip
    blocks["k_scale"].view()[...] = 1
    texts = {4098: "^head_dim: 4098, must be at most 4096"}
    text = texts.get(head_dim, "^dynamic scales: in a cache heads of up to 2048 elements")
    fails = head_dim == 4098 or device == "cuda"
    flats = call(rope, blocks, 1, "rotate_cache", refused=text if fails else None)
    assert fails or (flats["k_cache"] != blocks["k_cache"].flat).any()
