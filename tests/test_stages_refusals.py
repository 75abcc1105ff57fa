"""Stages that cannot be: each refusal names the argument, and nothing is written."""

import functools

import numpy as np
import pytest

import pyrope
from kit.memory import Buffers, memory_of
from kit.refusals import DIM, TOKENS, T, V, refused, rows, small

NAN, INF = float("nan"), float("inf")
PAGES, PAGE_SIZE = 4, 2
E4M3 = "float8_e4m3fn"


def norm(**options):
    return {"norm": pyrope.RMSNorm(**options)}


def xpos(**options):
    return {"xpos": pyrope.XPos(**options)}


def cache(page_size=PAGE_SIZE, num_pages=PAGES, **options):
    return {"cache": pyrope.PagedCache(page_size, num_pages, **options)}


# ---- constructor

CONSTRUCTOR = rows(
    ("angle", {"angle": "tables"}, V, "angle: 'tables', must be one of"),
    ("table with theta", {"angle": "cos_sin", "theta": 5e5}, V, "theta: not allowed with angle='cos_sin'"),
    ("table with scaling", {"angle": "cos_sin", "scaling": pyrope.Linear(2.0)}, V, "scaling: not allowed with angle="),
    ("table with inv_freq", {"angle": "cos_sin", "inv_freq": [1.0] * 32}, V, "inv_freq: not allowed with angle="),
    ("cos_sin_dtype", {"angle": "cos_sin", "cos_sin_dtype": "float64"}, V, "cos_sin_dtype: 'float64', must be one of"),
    ("sections' sum", {"sections": (16, 8, 7)}, V, r"sections: \(16, 8, 7\), their sum must be rotary_dim / 2 = 32"),
    ("sections' sum, partial", {"sections": (16, 16), "rotary_dim": 32}, V, "sections: .* rotary_dim / 2 = 16"),
    ("a section below 0", {"sections": (33, -1)}, V, "sections: "),
    ("one section", {"sections": (32,)}, (V, T), "sections: .* 2 to 8"),
    ("nine sections", {"sections": (24, 1, 1, 1, 1, 1, 1, 1, 1)}, (V, T), "sections: .* 2 to 8"),
    (
        "streams and sections",
        {"sections": (16, 16), "pair_streams": [0, 1] * 16},
        V,
        "pair_streams: not allowed together",
    ),
    ("streams a number", {"pair_streams": 2}, T, "pair_streams: 2, must be the number of a stream for each pair"),
    ("streams a text", {"pair_streams": "01" * 16}, T, "pair_streams: '01.*', must be the number of a stream"),
    (
        "streams of all elements",
        {"pair_streams": [0, 1] * 32},
        V,
        "pair_streams: 64 numbers, must be rotary_dim / 2 = 32",
    ),
    ("a stream too many", {"pair_streams": [0, 8] * 16}, V, "pair_streams: 8, must be 0 to 7"),
    ("a stream below 0", {"pair_streams": [0, -1] * 16}, V, "pair_streams: -1, must be 0 to 7"),
    ("a stream that is no int", {"pair_streams": [0, 1.0] * 16}, T, "pair_streams: 1.0 is not an integer"),
    ("one stream", {"pair_streams": [0] * 32}, V, "pair_streams: all are 0, must be two streams or more"),
    (
        "interleaved streams",
        {"pair_streams": [0, 1] * 16, "sections_interleaved": True},
        V,
        "sections_interleaved: True",
    ),
    ("blocks zero", {"num_blocks": 0}, V, "num_blocks: 0, must be 1 to 8"),
    ("nine blocks", {"num_blocks": 9}, V, "num_blocks: 9, must be 1 to 8"),
    ("blocks float", {"num_blocks": 2.0}, T, "num_blocks: 2.0 is not an integer"),
    ("blocks that do not divide", {"num_blocks": 3}, V, "num_blocks: 3, must divide rotary_dim / 2 = 32"),
    ("blocks of odd size", {"num_blocks": 4, "rotary_dim": 4}, V, "num_blocks: 4, must divide rotary_dim / 2 = 2"),
    ("a section that is no int", {"sections": (16.0, 16)}, T, "sections: 16.0 is not an integer"),
    ("interleaved alone", {"sections_interleaved": True}, V, "sections_interleaved: True, only allowed with sections"),
    ("interleaved int", {"sections": (16, 16), "sections_interleaved": 1}, T, "sections_interleaved: 1 is not a bool"),
    ("xpos", {"xpos": 512}, T, "xpos: 512 is not a pyrope.XPos"),
    ("xpos with a table", xpos() | {"angle": "cos_sin"}, V, "xpos: not allowed with angle='cos_sin'"),
    ("xpos of 514 elements", xpos() | {"head_dim": 514}, V, "rotary_dim: 514, must be at most 512 with xpos"),
    ("scale_base zero", xpos(scale_base=0), V, "scale_base: 0, must be 1e-06 to 1e.18"),
    ("scale_base negative", xpos(scale_base=-512), V, "scale_base: -512, must be 1e-06 to 1e.18"),
    ("scale_base small", xpos(scale_base=9e-7), V, "scale_base: 9e-07, must be 1e-06 to 1e.18"),
    ("scale_base inf", xpos(scale_base=INF), V, "scale_base: inf, must be 1e-06 to 1e.18"),
    ("scale_base nan", xpos(scale_base=NAN), V, "scale_base: nan, must be 1e-06 to 1e.18"),
    ("scale_base str", xpos(scale_base="512"), T, "scale_base: '512', must be a real number"),
    ("gamma zero", xpos(gamma=0), V, "gamma: 0, must be 1e-06 to 1e.06"),
    ("gamma negative", xpos(gamma=-0.5), V, "gamma: -0.5, must be 1e-06 to 1e.06"),
    ("gamma large", xpos(gamma=1.1e6), V, "gamma: 1100000.0, must be 1e-06 to 1e.06"),
    ("gamma nan", xpos(gamma=NAN), V, "gamma: nan, must be 1e-06 to 1e.06"),
    ("gamma None", xpos(gamma=None), T, "gamma: None, must be a real number"),
    ("center float", xpos(center=512.0), T, "center: 512.0 is not an integer"),
    ("center bool", xpos(center=True), T, "center: True is not an integer"),
    ("center large", xpos(center=2**63), V, "center: 9223372036854775808 does not fit 64 bits"),
    ("num_v_heads", {"num_v_heads": 0}, V, "num_v_heads: 0, must be 1 to"),
    ("v_head_dim", {"v_head_dim": -1}, V, "v_head_dim: -1, must be 1 to"),
    ("q_nope_dim", {"q_nope_dim": -1}, V, "q_nope_dim: -1, must be 0 to"),
    ("norm", {"norm": 1e-6}, T, "norm: 1e-06 is not a pyrope.RMSNorm"),
    ("eps negative", norm(eps=-1e-6), V, "eps: -1e-06, must be at least 0"),
    ("eps nan", norm(eps=NAN), V, "eps: nan, must be at least 0"),
    ("eps inf", norm(eps=INF), V, "eps: inf, must be"),
    ("eps str", norm(eps="small"), T, "eps: 'small', must be a real number"),
    ("weight_bias nan", norm(weight_bias=NAN), V, "weight_bias: nan, must be finite"),
    ("weight_dtype", norm(weight_dtype="float16"), V, "weight_dtype: 'float16', must be one of 'float32'"),
    ("after", norm(after=1), T, "after: 1 is not a bool"),
    ("across_heads", norm(across_heads=1), T, "across_heads: 1 is not a bool"),
    ("q_out_dtype", {"q_out_dtype": "float8"}, V, "q_out_dtype: 'float8', must be one of 'float8_e4m3fn'"),
    ("k_out_dtype double", {"k_out_dtype": "float64"}, V, "k_out_dtype: 'float64', must be one of"),
    ("scales of a dtype", {"k_out_dtype": "float16", "k_scale_kind": "head"}, V, "k_scale_kind: not allowed with"),
    ("skip float", {"skip": 1.0}, T, "skip: 1.0 is not an integer"),
    ("skip str", {"skip": "none"}, T, "skip: 'none' is not an integer"),
    ("skip bool", {"skip": True}, T, "skip: True is not an integer"),
    ("skip large", {"skip": 2**63}, V, "skip: 9223372036854775808 does not fit 64 bits"),
    ("out_layout", {"out_layout": "halves"}, V, "out_layout: 'halves', must be one of 'neox', 'gptj'"),
    ("k_nope_dim", {"k_nope_dim": -1}, V, "k_nope_dim: -1, must be 0 to"),
    ("skip_q", cache(skip_q=1), T, "skip_q: 1 is not a bool"),
    ("k_nope_strides", cache(k_nope_strides=(8, 8)) | {"k_nope_dim": 8}, T, r"k_nope_strides: \(8, 8\), must be"),
    ("no rotation by a table", {"rotary_dim": 0, "angle": "cos_sin"}, V, "angle: not allowed with rotary_dim=0"),
    ("no rotation at an offset", {"rotary_dim": 0, "rotary_offset": 2}, V, "rotary_offset: not allowed with rot"),
    ("no rotation by sections", {"rotary_dim": 0, "sections": (1, 1)}, V, "sections: not allowed with rotary_dim=0"),
    ("no rotation with xpos", xpos() | {"rotary_dim": 0}, V, "xpos: not allowed with rotary_dim=0"),
    ("no rotation laid out", {"rotary_dim": 0, "out_layout": "gptj"}, V, "out_layout: not allowed with rotary_dim=0"),
    ("no rotation, scaled", {"rotary_dim": 0, "scaling": pyrope.Linear(2.0)}, V, "scaling: not allowed with rotary_d"),
    ("v_scale_kind", {"v_out_dtype": E4M3, "v_scale_kind": "row"}, V, "v_scale_kind: 'row', must be one of 'tensor'"),
    ("q_scale_kind alone", {"q_scale_kind": "head"}, V, "q_scale_kind: only allowed with q_out_dtype"),
    ("cache", {"cache": (2, 4)}, T, r"cache: \(2, 4\) is not a pyrope.PagedCache"),
    ("page_size zero", cache(page_size=0), V, "page_size: 0, must be 1 to"),
    ("page_size negative", cache(page_size=-16), V, "page_size: -16, must be 1 to"),
    ("page_size float", cache(page_size=16.0), T, "page_size: 16.0 is not an integer"),
    ("num_pages zero", cache(num_pages=0), V, "num_pages: 0, must be at least 1"),
    ("cache layout", cache(layout="HDN"), V, "layout: 'HDN', must be one of 'NHD', 'HND'"),
    ("index_dtype", cache(index_dtype="uint64"), V, "index_dtype: 'uint64', must be one of 'int64', 'int32'"),
    ("k_strides of two", cache(k_strides=(64, 64)), T, r"k_strides: \(64, 64\), must be \(page stride"),
    ("k_strides negative", cache(k_strides=(128, -64, 64)), V, "k_strides: .* must be at least"),
    ("v_strides short", cache(v_strides=(128, 64, 63)), V, "v_strides: .* must be at least"),
)


@pytest.mark.parametrize(("options", "error", "text"), CONSTRUCTOR)
def test_constructor(options, error, text):
    with refused(error, text):
        small(fused=True, **options)


# ---- calls


def pages(p):
    return {"page_table": p.page_table, "page_table_stride": 2, "request_ids": p.ids32, "cache_positions": p.ids}


def sets(p):
    return {"frequency_sets": p.frequency_sets, "num_sets": 2, "set_ids": p.ids32}


def appended(p):
    return {"k_cache": p.k_cache, "slots": p.ids}


Q8, K8 = {"q_out_dtype": E4M3}, {"k_out_dtype": E4M3}
STILL, GPTJ = {"rotary_dim": 0}, {"out_layout": "gptj"}
NORM, CACHE, TABLE = norm(), cache(), {"angle": "cos_sin"}
SECTIONS = {"sections": (16, 16)}
CALLS = rows(
    # outputs and scales
    ("quantised q in place", Q8, lambda p: {}, (V, T), "q_out: required with q_out_dtype"),
    ("quantised k in place", K8, lambda p: {}, (V, T), "k_out: required with k_out_dtype"),
    ("q_out is q", Q8, lambda p: {"q_out": p.q}, V, "q_out: overlaps q"),
    ("k_out is k", K8, lambda p: {"k_out": p.k}, V, "k_out: overlaps k"),
    ("v without v_out", {}, lambda p: {"v": p.v}, (V, T), "v_out: required"),
    ("v_out without v", {}, lambda p: {"v_out": p.v_out}, V, "v_out: given without v"),
    ("v_out is v", {}, lambda p: {"v": p.v, "v_out": p.v + 4}, V, "v_out: overlaps v"),
    ("v_out is q", {}, lambda p: {"v": p.v, "v_out": p.q}, V, "v_out: overlaps q"),
    ("v_out is k_out", {}, lambda p: {"v": p.v, "v_out": p.k_out, "k_out": p.k_out}, V, "v_out: overlaps k_out"),
    ("q_out is v", {}, lambda p: {"v": p.v, "v_out": p.v_out, "q_out": p.v}, V, "q_out: overlaps v"),
    ("v misaligned", {}, lambda p: {"v": p.v + 2, "v_out": p.v_out}, V, "v: pointer .* misaligned"),
    ("q_nope without q_nope_dim", {}, lambda p: {"q_nope": p.v, "q_nope_out": p.v_out}, V, "q_nope: only allowed with"),
    ("q_nope without q_nope_out", {"q_nope_dim": 8}, lambda p: {"q_nope": p.v}, (V, T), "q_nope_out: required"),
    ("scales missing", Q8 | {"q_scale_kind": "head"}, lambda p: {"q_out": p.q_out}, T, "q_scale: required with"),
    ("dynamic scales missing", K8 | {"k_scale_kind": "dynamic"}, lambda p: {"k_out": p.k_out}, T, "k_scale: required"),
    ("dynamic scale a number", K8 | {"k_scale_kind": "dynamic"}, lambda p: {"k_out": p.k_out, "k_scale": 1.0}, T,
     "k_scale: 1.0, must be memory"),
    ("scale without out_dtype", {}, lambda p: {"q_scale": 1.0}, V, "q_scale: only allowed with"),
    ("scale zero", Q8, lambda p: {"q_out": p.q_out, "q_scale": 0.0}, V, "q_scale: 0.0, must be above 0"),
    ("scale negative", Q8, lambda p: {"q_out": p.q_out, "q_scale": -1.0}, V, "q_scale: -1.0, must be above 0"),
    ("scale nan", Q8, lambda p: {"q_out": p.q_out, "q_scale": NAN}, V, "q_scale: nan, must be above 0"),
    ("scale inf", Q8, lambda p: {"q_out": p.q_out, "q_scale": INF}, V, "q_scale: inf, must be above 0"),
    ("scale without reciprocal", Q8, lambda p: {"q_out": p.q_out, "q_scale": 1e-40}, V,
     "q_scale: 1e-40, must be .* as must its reciprocal"),
    ("scale an int", Q8, lambda p: {"q_out": p.q_out, "q_scale": 1}, T, "q_scale: 1 is an integer"),
    ("scales misaligned", Q8, lambda p: {"q_out": p.q_out, "q_scale": p.scale + 2}, V,
     "q_quantize: pointer .* misaligned"),
    # norm
    ("norm without weights", NORM, lambda p: {}, T, "q_weight and k_weight: both None"),
    ("weight without norm", {}, lambda p: {"q_weight": p.weight}, V, "q_weight: only allowed with norm"),
    ("weight without k", NORM, lambda p: {"k": None, "k_weight": p.weight}, T, "k: required with k_weight"),
    ("weight misaligned", NORM, lambda p: {"q_weight": p.weight + 2}, V, "norm.q_weight: pointer .* misaligned"),
    # caches
    ("k_cache without a cache", {}, lambda p: {"k_cache": p.k_cache}, V, "k_cache: only allowed with cache="),
    ("slots without a cache", {}, lambda p: {"slots": p.ids}, V, "slots: only allowed with cache="),
    ("k_cache alone", CACHE, lambda p: {"k_cache": p.k_cache}, T, "slots and page_table: both None"),
    ("k_cache missing", CACHE, lambda p: {"slots": p.ids}, T, "k_cache: required with k"),
    ("v_cache missing", CACHE, lambda p: appended(p) | {"v": p.v}, T, "v_cache: required with v"),
    ("v_cache without v", CACHE, lambda p: appended(p) | {"v_cache": p.v_cache}, V, "v_cache: given without v"),
    ("k_out in the cache", CACHE, lambda p: appended(p) | {"k_out": p.k_cache}, V, "cache.k: overlaps k_out in memory"),
    ("k_out in q", CACHE, lambda p: appended(p) | {"k_out": p.q}, V, "k_out: overlaps q in memory"),
    ("k_out beside k", CACHE, lambda p: appended(p) | {"k_out": p.k + 4}, V, "k_out: overlaps k in memory"),
    ("v_out that is v", CACHE, lambda p: appended(p) | {"v": p.v, "v_cache": p.v_cache, "v_out": p.v}, V,
     "v_out: overlaps v in memory"),
    ("slots are k_out", CACHE, lambda p: appended(p) | {"k_out": p.k_out, "slots": p.k_out}, V,
     "cache.slots: overlaps k_out in memory"),
    # no rotation, other layouts, other dtypes
    ("nothing to do", STILL, lambda p: {}, V, "q_out: NULL, required for a tensor that is neither rotated nor"),
    ("nothing to do out of place", STILL, lambda p: {"q_out": p.q}, V, "q_out: is q, and nothing is left to do"),
    ("sets that turn nothing", STILL, lambda p: {"q_out": p.q_out} | sets(p), V, "frequency_sets: not allowed with"),
    ("origin of nothing", STILL, lambda p: {"q_out": p.q_out, "positions": p.ids, "positions_from": p.ids}, V,
     "positions_from: not allowed with ROPE_FLAG_NO_ROTATION"),
    ("out_layout in place", GPTJ, lambda p: {}, V, "q_out: NULL, required with another out_layout"),
    ("out_layout onto itself", GPTJ, lambda p: {"q_out": p.q}, V, "q_out: overlaps q in memory"),
    ("out_layout behind a norm", GPTJ | norm(after=True), lambda p: {"q_weight": p.weight, "q_out": p.q_out},
     pyrope.UnsupportedError, "out_layout: 2, must be that of layout with norm.after"),
    ("another dtype in place", {"q_out_dtype": "bfloat16"}, lambda p: {}, (V, T), "q_out: required with q_out_dtype"),
    ("another dtype with a scale", {"q_out_dtype": "bfloat16"}, lambda p: {"q_out": p.q_out, "q_scale": 1.0}, V,
     "q_scale: only allowed with q and a quantised q_out_dtype"),
    # the nope part of k
    ("k_nope without k_nope_dim", {}, lambda p: {"k_nope": p.v, "k_nope_out": p.v_out}, V, "k_nope: only allowed with"),
    ("k_nope without k_nope_out", {"k_nope_dim": 8}, lambda p: {"k_nope": p.v}, (V, T), "k_nope_out: required"),
    ("k_nope without k", {"k_nope_dim": 8}, lambda p: {"k": None, "k_nope": p.v, "k_nope_out": p.v_out}, (V, T),
     "k: required with k_nope"),
    ("k_nope without its cache", CACHE | {"k_nope_dim": 8}, lambda p: appended(p) | {"k_nope": p.v}, T,
     "k_nope_cache: required with k_nope and a cache"),
    ("k_nope_cache without k_nope", CACHE | {"k_nope_dim": 8}, lambda p: appended(p) | {"k_nope_cache": p.v_cache}, V,
     "k_nope_cache: given without k_nope"),
    ("k_nope in k's rows", CACHE | {"k_nope_dim": 8},
     lambda p: appended(p) | {"k_nope": p.v, "k_nope_cache": p.k_cache + 4 * (DIM - 4)}, V,
     "cache_k_nope: overlaps cache.k"),
    ("both nope parts", {"k_nope_dim": 8, "q_nope_dim": 8},
     lambda p: {"k_nope": p.v, "k_nope_out": p.v_out, "q_nope": p.v, "q_nope_out": p.q_out},
     pyrope.UnsupportedError, "k_nope: not with q_nope"),
    ("slots and page_table", CACHE, lambda p: {"k_cache": p.k_cache, "slots": p.ids} | pages(p), V,
     "page_table: not allowed together with slots"),
    ("slots and request_ids", CACHE, lambda p: appended(p) | {"request_ids": p.ids32}, V, "request_ids: not allowed"),
    ("request_ids missing", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"request_ids": None}, T,
     "request_ids: required"),
    ("cache_positions missing", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"cache_positions": None}, T,
     "cache_positions: required"),
    ("page_table_stride missing", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_table_stride": None}, T,
     "page_table_stride: required"),
    ("page_table_stride zero", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_table_stride": 0}, V,
     "page_table_stride: 0, must be"),
    ("page_table_stride negative", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_table_stride": -2}, V,
     "page_table_stride: -2, must be"),
    ("indptr and stride", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_indptr": p.ids32}, V,
     "page_table_stride: not allowed together with page_indptr"),
    ("k_cache misaligned", CACHE, lambda p: appended(p) | {"k_cache": p.k_cache + 2}, V,
     "cache.k: pointer .* misaligned"),
    ("slots misaligned", CACHE, lambda p: appended(p) | {"slots": p.ids + 4}, V, "cache.slots: pointer .* misaligned"),
    ("page_table misaligned", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_table": p.page_table + 2}, V,
     "cache.page_table: pointer .* misaligned"),
    ("cache_skipped misaligned", CACHE, lambda p: appended(p) | {"cache_skipped": p.count + 4}, V,
     "cache.num_skipped: pointer .* misaligned"),
    ("k_cache is k", CACHE, lambda p: appended(p) | {"k_cache": p.k}, V, "cache.k: overlaps k in memory"),
    ("k_cache is q", CACHE, lambda p: appended(p) | {"k_cache": p.q}, V, "cache.k: overlaps q in memory"),
    ("v_cache is k_cache", CACHE, lambda p: appended(p) | {"v": p.v, "v_cache": p.k_cache}, V,
     "cache.v: overlaps cache.k"),
    ("v_cache in k's rows", CACHE, lambda p: appended(p) | {"v": p.v, "v_cache": p.k_cache + 4 * (DIM // 2)}, V,
     "cache.v: overlaps cache.k"),
    ("v_cache is q_out", CACHE, lambda p: appended(p) | {"v": p.v, "q_out": p.q_out, "v_cache": p.q_out}, V,
     "cache.v: overlaps q_out in memory"),
    # what is read beside the tensors, and scales that are computed
    ("positions are q", {}, lambda p: {"positions": p.q, "v": p.v, "v_out": p.v_out}, V, "positions: overlaps q"),
    ("positions_from are k", {}, lambda p: {"positions": p.ids, "positions_from": p.k}, V,
     "positions_from: overlaps k"),
    ("slots are k_cache", CACHE, lambda p: appended(p) | {"slots": p.k_cache}, V, "cache.slots: overlaps cache.k"),
    ("cache_positions are q", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"cache_positions": p.q}, V,
     "cache.cache_positions: overlaps q"),
    ("request_ids are q", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"request_ids": p.q}, V,
     "cache.request_ids: overlaps q"),
    ("page_table is q", CACHE, lambda p: {"k_cache": p.k_cache} | pages(p) | {"page_table": p.q}, V,
     "cache.page_table: overlaps q"),
    ("q_weight is q", NORM, lambda p: {"q_weight": p.q}, V, "norm.q_weight: overlaps q"),
    ("k_weight is q", NORM, lambda p: {"k_weight": p.q}, V, "norm.k_weight: overlaps q"),
    ("cos is q", TABLE, lambda p: {"positions": p.ids, "cos": p.q, "cos_sin_rows": 1}, V, "cos_sin.cos: overlaps q"),
    ("q_scales are k", Q8 | {"q_scale_kind": "token"}, lambda p: {"q_out": p.q_out, "q_scale": p.k}, V,
     "q_quantize: overlaps k"),
    ("q_scales are q", Q8 | {"q_scale_kind": "dynamic"}, lambda p: {"q_out": p.q_out, "q_scale": p.q}, V,
     "q_quantize: overlaps q"),
    # positions, tables, sets
    ("sections with offset", SECTIONS, lambda p: {"offset": 5}, V, "offset: 5, not allowed with sections"),
    ("sections with indptr", SECTIONS, lambda p: {"indptr": p.ids, "num_requests": 2}, V, "indptr: not allowed with"),
    ("sections without positions", SECTIONS, lambda p: {}, T, "positions: required with sections"),
    ("positions_stride", {}, lambda p: {"positions": p.ids, "positions_stride": 3}, V, "positions_stride: only"),
    ("sections with positions_from", SECTIONS, lambda p: {"positions": p.ids, "positions_from": p.ids}, V,
     "positions_from: "),
    ("positions_from alone", {}, lambda p: {"positions_from": p.ids}, T, "positions: required with positions_from"),
    ("positions_from misaligned", {}, lambda p: {"positions": p.ids, "positions_from": p.ids + 4}, V,
     "positions_from: pointer .* misaligned"),
    ("positions_from with a table", TABLE, lambda p: {"positions": p.ids, "positions_from": p.ids, "cos": p.weight,
     "cos_sin_rows": 1}, (V, pyrope.UnsupportedError), "positions_from: not "),
    ("cos missing", TABLE, lambda p: {"sin": p.weight, "cos_sin_rows": 1}, T, "cos: required with angle='cos_sin'"),
    ("cos without table", {}, lambda p: {"cos": p.weight}, V, "cos: only allowed with angle='cos_sin'"),
    ("cos_sin_rows missing", TABLE, lambda p: {"cos": p.weight}, T, "cos_sin_rows: required"),
    ("cos_sin_rows zero", TABLE, lambda p: {"cos": p.weight, "cos_sin_rows": 0}, V, "cos_sin_rows: 0, must be"),
    ("cos_sin_stride short", TABLE, lambda p: {"cos": p.weight, "cos_sin_rows": 1, "cos_sin_stride": 63}, V,
     "cos_sin.row_stride: 63, must be"),
    ("cos_sin_stride negative", TABLE, lambda p: {"cos": p.weight, "cos_sin_rows": 1, "cos_sin_stride": -64}, V,
     "cos_sin_stride: -64, must be"),
    ("cos misaligned", TABLE, lambda p: {"cos": p.weight + 2, "cos_sin_rows": 1}, V,
     "cos_sin.cos: pointer .* misaligned"),
    ("sin misaligned", TABLE, lambda p: {"cos": p.weight, "sin": p.weight + 1, "cos_sin_rows": 1}, V,
     "cos_sin.sin: pointer .* misaligned"),
    ("frequency_sets with cos_sin", TABLE, lambda p: {"cos": p.weight, "cos_sin_rows": 1} | sets(p), V,
     "frequency_sets: not allowed with angle='cos_sin'"),
    ("set_ids alone", {}, lambda p: {"set_ids": p.ids32}, V, "set_ids: only allowed with frequency_sets"),
    ("set_ids missing", {}, lambda p: sets(p) | {"set_ids": None}, T, "set_ids: required with frequency_sets"),
    ("num_sets missing", {}, lambda p: sets(p) | {"num_sets": None}, T, "num_sets: required"),
    ("num_sets zero", {}, lambda p: sets(p) | {"num_sets": 0}, V, "num_sets: 0, must be 1 to"),
    ("set_ids_from alone", {}, lambda p: sets(p) | {"set_ids_from": p.ids32}, V,
     "set_ids_from: only allowed with positions_from"),
    ("frequency_sets misaligned", {}, lambda p: sets(p) | {"frequency_sets": p.frequency_sets + 4, "num_sets": 1}, V,
     "frequency_sets.words: pointer .* misaligned"),
    ("set_factors misaligned", {}, lambda p: sets(p) | {"set_factors": p.scale + 2}, V,
     "frequency_sets.factors: pointer .* misaligned"),
)  # fmt: skip


def roomy_buffers(device):
    """Of every argument, each larger than what a call touches."""
    floats = {"q": 2 * DIM, "k": DIM, "v": DIM, "q_out": 2 * DIM, "k_out": DIM, "v_out": DIM}
    arrays = {name: np.arange(2 * TOKENS * size, dtype=np.float32) for name, size in floats.items()}
    for name in ("k_cache", "v_cache"):
        arrays[name] = np.arange(PAGES * PAGE_SIZE * DIM + 64, dtype=np.float32)
    arrays |= {"weight": np.ones(4 * DIM, np.float32), "scale": np.ones(64, np.float32), "count": np.array([5, 5])}
    arrays |= {"ids": np.arange(8), "ids32": np.zeros(8, np.int32), "page_table": np.arange(8, dtype=np.int32)}
    return Buffers(device, arrays | {"frequency_sets": np.ones(4 * DIM, np.uint64)})


@pytest.mark.parametrize("method", ["apply", "inverse"])
@pytest.mark.parametrize(("options", "change", "error", "text"), CALLS)
def test_calls(device, options, change, error, text, method):
    rope, buffers = small(device, fused=True, **options), roomy_buffers(device)
    p = buffers.at
    with refused(error, text):
        getattr(rope, method)(**{"q": p.q, "k": p.k, "num_tokens": TOKENS} | change(p))
    assert buffers.untouched()


@pytest.mark.parametrize("head_dim", [4100, 8192])
def test_heads_too_long_for_a_norm(device, head_dim):
    rope = pyrope.FusedRope(head_dim, 1, 0, rotary_dim=64, dtype="float32", device=device, **NORM)
    buffers = Buffers(device, {"q": np.arange(head_dim, dtype=np.float32), "weight": np.ones(head_dim, np.float32)})
    with refused(
        pyrope.UnsupportedError, f"head_dim: {head_dim}, must be at most 4096 with stages around the rotation"
    ):
        rope.apply(buffers.at.q, None, 1, q_weight=buffers.at.weight)
    assert buffers.untouched()


def test_too_many_heads_for_a_norm_across_them(device):
    """1024 are allowed; whatever their number, weights are an array with one for every element."""
    memory, rope = memory_of(device), {"dtype": "float32", "device": device, **norm(across_heads=True)}
    for heads, allowed in ((1025, False), (1024, True)):
        x, weight = np.ones(heads * 2, np.float32), np.full(heads * 2, 3, np.float32)
        buffers = memory.put(x), memory.put(weight)
        call = functools.partial(pyrope.FusedRope(2, heads, 0, **rope).apply, memory.pointer(buffers[0]), None, 1)
        if not allowed:
            with refused(pyrope.UnsupportedError, r"norm.across_heads: 1025 heads of q, at most 1024"):
                call(q_weight=memory.pointer(buffers[1]))
        else:
            call(q_weight=memory.pointer(buffers[1]))
        # eps takes 5e-7 from it.
        np.testing.assert_allclose(memory.get(buffers[0]), 3 if allowed else 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8,), (2, 4), (16, 2), (4, 8)])
def test_shape_of_weights_across_heads(shape):
    rope = pyrope.FusedRope(8, 2, 0, dtype="float32", device="cpu", **norm(across_heads=True))
    q = np.ones((1, 2, 8), np.float32)
    with refused(ValueError, r"q_weight: shape .*, must be contiguous \[(16|2, 8)\]"):
        rope.apply(q, None, q_weight=np.ones(shape, np.float32))
    assert (q == 1).all()
    rope.apply(q, None, q_weight=np.ones((2, 8), np.float32))
    rope.apply(q, None, q_weight=np.ones(16, np.float32))
