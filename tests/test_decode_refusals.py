"""What DecodeAttention refuses: the text names the argument, and nothing is written."""

import numpy as np
import pytest

import pyrope
from kit.attention import full

CACHE = pyrope.PagedCache(8, 6)


def fused(*shape, **options):
    return pyrope.FusedRope(*(shape or (64, 4, 2)), **{"dtype": "float32", "device": "cpu", "cache": CACHE} | options)


def arguments(requests=2, tokens=1):
    caches = {name: full(6, 8, 2, 64) for name in ("k_cache", "v_cache")}
    table = np.arange(6, dtype=np.int32)[: 2 * requests].reshape(requests, 2)
    return caches | {"q": full(requests * tokens, 4, 64), "out": full(requests * tokens, 4, 64), "page_table": table,
                     "lengths": np.full(requests, 9, np.int32)}  # fmt: skip


def refused(text, error=ValueError, rope=None, **changed):
    attention = pyrope.DecodeAttention(rope or fused())
    given = arguments() | changed
    with pytest.raises(error, match=f"^{text}"):
        attention.apply(**given)
    for name in ("out", "lse"):
        if isinstance(given.get(name), np.ndarray):
            assert (given[name] == 7).all(), name


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("rope: 3, must be a FusedRope with cache", {"rope": 3}),
        ("rope: .*, must be a FusedRope with cache", {"rope": pyrope.Rope(64, 4, 2, device="cpu")}),
        ("rope: .*, must be a FusedRope with cache", {"rope": pyrope.FusedRope(64, 4, 2, device="cpu")}),
        ("rope: has q_out_dtype='int8'", {"rope": fused(q_out_dtype="int8")}),
        ("rope: has q_nope_dim=8", {"rope": fused(q_nope_dim=8)}),
        ("rope: num_v_heads and v_head_dim must be", {"rope": fused(v_head_dim=32)}),
        ("rope: has k_scale_kind='head', must be 'tensor'", {"rope": fused(k_out_dtype="int8", k_scale_kind="head")}),
        ("k_quantize.out_dtype: 8, must be ROPE_OUT_SAME", {"rope": fused(k_out_dtype="q8_0", v_out_dtype="q8_0")}),
        ("v_quantize.out_dtype: 0, must be that of k_quantize", {"rope": fused(k_out_dtype="float8_e4m3fn")}),
        ("head_dim: 512, must be 2 to 256", {"rope": fused(512, 4, 2)}),
        ("num_q_heads: 5, must be a multiple of num_k_heads .2.", {"rope": fused(64, 5, 2)}),
        ("window_left: -2, must be -1 to", {"window_left": -2}),
        ("scale: 0, must be above 0", {"scale": 0}),
        ("scale: 'x', must be a real number", {"scale": "x"}),
        ("softcap: -1, must be 0 .the default. or above", {"softcap": -1}),
        ("softcap: inf, must be 0", {"softcap": float("inf")}),
        ("split: 100, must be a multiple of 256", {"split": 100}),
        ("split: -256, must be 0 to", {"split": -256}),
    ],
)
def test_constructor(text, options):
    rope = options.pop("rope", None)
    with pytest.raises((ValueError, TypeError, pyrope.UnsupportedError), match=f"^{text}"):
        pyrope.DecodeAttention(rope or fused(), **options)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        (r"q: shape \(2, 3, 64\), must be \[num_tokens, 4, 64\]", {"q": full(2, 3, 64)}),
        (r"q: 3 tokens, must be 2", {"q": full(3, 4, 64)}),
        (r"out: 4 tokens, must be 2", {"out": full(4, 4, 64)}),
        ("q: dtype float64, must be float32", {"q": np.ones((2, 4, 64))}),
        ("q: strides of tokens must be one", {"q": full(2, 4, 128)[..., ::2]}),
        ("num_q_tokens: 17, must be 1 to 16", {"num_q_tokens": 17}),
        ("num_q_tokens: 17, must be 1 to 16", {"q": full(34, 4, 64), "out": full(34, 4, 64)}),
        (r"k_cache: shape \(6, 8, 1, 64\), must be \[6, 8, 2, 64\]", {"k_cache": full(6, 8, 1, 64)}),
        ("v_cache: required", {"v_cache": None}),
        ("v_cache: dtype uint8, must be float32", {"v_cache": np.zeros((6, 8, 2, 64), np.uint8)}),
        ("page_table: dtype int64, must be int32", {"page_table": np.zeros((2, 2), np.int64)}),
        ("page_table: shape .2,., must be", {"page_table": np.zeros(2, np.int32)}),
        ("lengths: dtype int64, must be int32", {"lengths": np.full(2, 9)}),
        ("num_requests: required with lengths as a pointer", {"lengths": 4096}),
        (r"lengths: shape \(2,\), must be contiguous \[num_requests\]", {"num_requests": 3}),
        (r"lengths\[1\]: 17, must be 0 to max_length \(16\)", {"lengths": np.array([9, 17], np.int32)}),
        (r"lengths\[0\]: -1, must be 0 to max_length", {"lengths": np.array([-1, 9], np.int32)}),
        (r"max_length: 17, must be at most page_table_stride \* page_size \(16\)", {"max_length": 17}),
        ("max_length: required with page_indptr", {"page_indptr": np.array([0, 2, 4], np.int32),
                                                   "page_table": np.arange(4, dtype=np.int32)}),
        ("page_table: key 8 of request 0 has no page", {"page_indptr": np.array([0, 1, 3], np.int32), "max_length": 16,
                                                       "page_table": np.arange(4, dtype=np.int32)}),
        ("page_table: key 0 of request 1 has no page of the 6",
         {"page_table": np.array([[0, 1], [6, 2]], np.int32)}),
        (r"lse: shape \(3, 4\), must be contiguous \[num_requests", {"lse": full(3, 4)}),
        (r"sinks: shape \(2,\), must be contiguous \[num_q_heads\], 4", {"sinks": full(2)}),
        ("positions: ", {"positions": np.arange(3)}),
        ("offset: given, but q is rotated already", {"q_rotated": True, "offset": 3}),
        ("positions: given, but q is rotated already", {"q_rotated": True, "positions": np.arange(2)}),
        ("k_scale: only allowed with k and a quantised k_out_dtype", {"k_scale": 0.5}),
        ("page_table_stride: only allowed with pointers", {"page_table_stride": 2}),
        ("q_strides: only allowed with pointers", {"q_strides": (256, 64)}),
        ("workspace_size: given without workspace", {"workspace_size": 4096}),
        ("stream: only allowed with device='cuda'", {"stream": 77}),
    ],
)  # fmt: skip
def test_call(text, changed):
    refused(text, (ValueError, TypeError), **changed)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("q_rotated: must be True where the Rope has norm", {"norm": pyrope.RMSNorm()}),
        ("q_rotated: must be True where the Rope has out_layout", {"out_layout": "gptj"}),
        ("rotation.xpos: not in a rotation of rope_decode", {"xpos": pyrope.XPos()}),
        ("rotation.angle: not in a rotation of rope_decode", {"angle": "cos_sin"}),
        ("rotation.sections: not in a rotation", {"num_blocks": 2}),
        ("rotation.skip_kind: not in a rotation of rope_decode", {"skip": None}),
    ],
)
def test_rotations_that_are_not_fused(text, options):
    """And with q_rotated they serve."""
    rope = fused(**options)
    extra = {"positions": np.zeros((2, 2), np.int64)} if "num_blocks" in options else {}
    refused(text, (ValueError, pyrope.UnsupportedError), rope, **extra)
    given = arguments()
    pyrope.DecodeAttention(rope).apply(**given, q_rotated=True)
    assert (given["out"] == 7).all()  # values are all 7, and their mean too


def test_memory_that_overlaps():
    given = arguments()
    refused("o: overlaps q in memory", **(given | {"out": given["q"]}))
    refused("o: overlaps cache.v in memory", **(given | {"out": given["v_cache"].reshape(-1)[:512].reshape(2, 4, 64)}))


def test_not_initialised():
    attention = pyrope.DecodeAttention.__new__(pyrope.DecodeAttention)
    with pytest.raises(pyrope.RopeError, match="never initialised"):
        attention.apply(**arguments())
    attention = pyrope.DecodeAttention(fused())
    with pytest.raises(pyrope.RopeError, match="cannot be initialised again"):
        attention.__init__(fused())
