"""What RopeAttention refuses: the text names the argument, and nothing is written."""

import numpy as np
import pytest

import pyrope
from kit.attention import full

ROPE = pyrope.Rope(64, 4, 2, dtype="float32", device="cpu")


def tensors(tokens=10, k_tokens=None, sequences=2):
    k_tokens = tokens if k_tokens is None else k_tokens
    shapes = {"q": (tokens, 4), "k": (k_tokens, 2), "v": (k_tokens, 2), "out": (tokens, 4)}
    return {name: full(sequences, *shape, 64) for name, shape in shapes.items()}


def refused(text, error=ValueError, attention=None, **changed):
    attention = attention or pyrope.RopeAttention(ROPE, causal=True)
    arguments = tensors() | changed
    with pytest.raises(error, match=text):
        attention.apply(**arguments)
    for name in ("out", "lse", "q_out"):
        if isinstance(arguments.get(name), np.ndarray):
            assert (arguments[name] == 7).all(), name


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("rope: 3, must be a Rope", {"rope": 3}),
        ("rope: has norm=RMSNorm", {"rope": pyrope.FusedRope(64, 4, 2, device="cpu", norm=pyrope.RMSNorm())}),
        ("rope: has q_out_dtype='int8'", {"rope": pyrope.FusedRope(64, 4, 2, device="cpu", q_out_dtype="int8")}),
        ("rope: has rotary_dim=0", {"rope": pyrope.FusedRope(64, 4, 2, device="cpu", rotary_dim=0)}),
        ("head_dim: 512, must be 2 to 256", {"rope": pyrope.Rope(512, 4, 2, device="cpu")}),
        ("num_q_heads: 5, must be a multiple of num_k_heads .2.", {"rope": pyrope.Rope(64, 5, 2, device="cpu")}),
        ("num_k_heads: 0, must be 1 to", {"rope": pyrope.Rope(64, 5, 0, device="cpu")}),
        ("v_head_dim: 300, must be 2 to 256", {"v_head_dim": 300}),
        ("causal: 1 is not a bool", {"causal": 1}),
        ("window_size: 5, must be two numbers", {"window_size": 5}),
        ("window_size: -2, must be -1 to", {"window_size": (-2, 0)}),
        ("window_right: 3, must be 0 with ROPE_ATTENTION_CAUSAL", {"window_size": (-1, 3), "causal": True}),
        ("scale: 0, must be above 0", {"scale": 0}),
        ("scale: 'x', must be a real number", {"scale": "x"}),
        ("softcap: -1, must be 0 .the default. or above", {"softcap": -1}),
        ("softcap: inf, must be 0", {"softcap": float("inf")}),
    ],
)
def test_constructor(text, options):
    with pytest.raises((ValueError, TypeError), match=text):
        pyrope.RopeAttention(options.pop("rope", ROPE), **options)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        (r"q: shape \(2, 10, 3, 64\), must be \[sequences, tokens, 4, 64\]", {"q": full(2, 10, 3, 64)}),
        (r"v: shape \(2, 10, 2, 32\), must be", {"v": full(2, 10, 2, 32)}),
        ("k: 3 sequences, must be 2", {"k": full(3, 10, 2, 64)}),
        ("v: 9 tokens, must be 10", {"v": full(2, 9, 2, 64)}),
        ("out: 11 tokens, must be 10", {"out": full(2, 11, 4, 64)}),
        ("k: a stride of 2 along a head, must be 1", {"k": full(2, 10, 2, 128)[..., ::2]}),
        ("k: a broadcast array", {"k": np.broadcast_to(full(2, 10, 1, 64), (2, 10, 2, 64))}),
        ("lse: shape .*, must be contiguous .*, 80 elements", {"lse": full(2, 4, 9)}),
        (r"sinks: shape \(3,\), must be contiguous \[num_q_heads\], 4 elements", {"sinks": np.zeros(3, np.float32)}),
        ("^positions: shape", {"positions": np.arange(10)}),
        ("k_indptr: only allowed with q_indptr", {"k_indptr": np.zeros(3, np.int32)}),
        ("max_q_tokens: only allowed with q_indptr", {"max_q_tokens": 3}),
        ("q_strides: only allowed with pointers", {"q_strides": (1, 2)}),
        ("workspace_bytes: 5, must be at least", {"workspace": np.zeros(5, np.uint8)}),
        ("workspace_size: only allowed with workspace", {"workspace": np.zeros(5, np.uint8), "workspace_size": 5}),
        ("^offset: given", {"q_rotated": True, "k_rotated": True, "offset": 3}),
        ("q_out: given, but it is not rotated here", {"q_rotated": True, "q_out": full(2, 10, 4, 64)}),
        ("stream: only allowed with device='cuda'", {"stream": 5}),
    ],
)  # fmt: skip
def test_call(text, changed):
    refused(text, **changed)


def test_dtype_and_missing():
    refused("q: dtype float64, must be float32", TypeError, q=np.zeros((2, 10, 4, 64)))
    refused("num_q_tokens: required with pointers", TypeError, q=tensors()["q"].ctypes.data)


def test_other_tokens_must_be_rotated():
    refused(r"flags: ROPE_ATTENTION_K_ROTATED \(8\) is required", **tensors(10, 30))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_out_overlaps(name):
    attention = pyrope.RopeAttention(pyrope.Rope(64, 4, 4, dtype="float32", device="cpu"))
    arguments = {x: full(1, 10, 4, 64) for x in ("q", "k", "v")}
    with pytest.raises(ValueError, match=f"^o: overlaps {name} in memory"):
        attention.apply(**arguments, out=arguments[name])
    assert (arguments[name] == 7).all()


def test_lse_overlaps():
    out = full(2, 10, 4, 64)
    refused("lse: overlaps o in memory", out=out, lse=out.reshape(-1)[:80])


@pytest.mark.parametrize(
    ("text", "q_indptr", "longest"),
    [
        (r"q_indptr\[2\]: 4, must be 6 to 10", [0, 6, 4], 6),
        (r"q_indptr\[2\]: 12, must be 6 to 10", [0, 6, 12], 6),
        (r"q_indptr\[1\]: 6, makes a sequence of 6 tokens, more than its max_q_tokens \(5\)", [0, 6, 10], 5),
        ("q_indptr: empty", [], 5),
        ("max_q_tokens: 11, must be 0 to 10", [0, 6, 10], 11),
    ],
)
def test_indptr(text, q_indptr, longest):
    one = {name: x[0] for name, x in tensors().items()}
    refused(text, q_indptr=np.array(q_indptr, np.int32), max_q_tokens=longest, **one)


def test_indptr_of_its_own():
    one = {name: x[0] for name, x in tensors(10, 12).items()}
    indptr = {"q_indptr": np.array([0, 10], np.int32), "max_q_tokens": 10}
    refused("k_indptr: NULL, required where", k_rotated=True, **one, **indptr)
    of_k = {"k_indptr": np.array([0, 12], np.int32), "max_k_tokens": 12, "k_rotated": True}
    refused("rotation.positions: NULL", **one, **indptr, **of_k)
    refused("max_k_tokens: required with k_indptr", TypeError, **one, **indptr, k_indptr=of_k["k_indptr"])
    refused("q_indptr: dtype int64, must be int32", TypeError, **one, **indptr | {"q_indptr": np.array([0, 10])})


def test_immutable():
    attention = pyrope.RopeAttention(ROPE)
    with pytest.raises(pyrope.RopeError, match="cannot be initialised again"):
        attention.__init__(ROPE)
    with pytest.raises(pyrope.RopeError, match="was never initialised"):
        pyrope.RopeAttention.__new__(pyrope.RopeAttention).apply(**tensors())
