"""Arrays that are refused, and what looks alike and is allowed."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from kit.memory import HAS_CUDA
from kit.refusals import T, V, read_only, refused, rows, small

# ---- calls with arrays, which live in host memory


class Interface:
    """An object with nothing but one attribute."""

    def __init__(self, name, value):
        setattr(self, name, value)


class NoCapsule:
    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self):
        return "capsule"


def big_endian(x):
    return x.astype(x.dtype.newbyteorder(">"))


def no_address(x):
    return {**x.__array_interface__, "data": None}


def with_odd_strides(x):
    """x as a field of packed records: strides that are no multiple of the element size."""
    record = np.zeros(x.shape, np.dtype([("value", x.dtype), ("rest", "u1")]))
    return record["value"]


BF16 = {"dtype": "bfloat16"}
ARRAYS = rows(
    ("q float64", {}, lambda a: {"q": a.q.astype(np.float64)}, T, "q: dtype float64, must be float32"),
    ("q float16", {}, lambda a: {"q": a.q.astype(np.float16)}, T, "q: dtype float16, must be float32"),
    ("q int32", {}, lambda a: {"q": a.q.astype(np.int32)}, T, "q: dtype int32, must be float32"),
    ("k bytes", {}, lambda a: {"k": a.k.view("V4")}, T, "k: dtype .*V4.*, must be float32"),
    (
        "k_out bfloat16",
        {},
        lambda a: {"k_out": a.k.astype(ml_dtypes.bfloat16)},
        T,
        "k_out: dtype bfloat16, must be float32",
    ),
    ("q float16 for bfloat16", BF16, lambda a: {"q": a.q.astype(np.float16)}, T, "q: dtype float16, must be bfloat16"),
    ("q int16 for bfloat16", BF16, lambda a: {"q": a.q.astype(np.int16)}, T, "q: dtype int16, must be bfloat16"),
    ("q big-endian", {}, lambda a: {"q": big_endian(a.q)}, T, "q: dtype >f4, must be float32"),
    ("q read-only", {}, lambda a: {"q": read_only(a.q.copy())}, V, "q: the array is read-only"),
    ("q_out read-only", {}, lambda a: {"q_out": read_only(a.q.copy())}, V, "q_out: the array is read-only"),
    (
        "q of other heads",
        {},
        lambda a: {"q": a.q[:, :1]},
        V,
        r"q: shape \(3, 1, 64\), must be \[num_tokens, 2, 64\] or",
    ),
    (
        "q of other head_dim",
        {},
        lambda a: {"q": a.q[..., :32]},
        V,
        r"q: shape \(3, 2, 32\), must be \[num_tokens, 2, 64\]",
    ),
    ("q flat", {}, lambda a: {"q": a.q.reshape(-1)}, V, r"q: shape \(384,\), must be \[num_tokens, 2, 64\] or"),
    ("q one token without its dimension", {}, lambda a: {"q": a.q[0]}, V, r"q: shape \(2, 64\), must be \[num_tokens"),
    (
        "q sequences of another length",
        {},
        lambda a: {"q": np.zeros((2, 5, 2, 64), np.float32)[:, :3], "sequence_length": 2},
        V,
        "q: sequences of 3 tokens, must be of 2 as sequence_length or the other arguments",
    ),
    (
        "q leading dimensions of three strides",
        {},
        lambda a: {"q": np.zeros((2, 3, 5, 2, 64), np.float32)[:, :2, :3]},
        V,
        "q: the leading dimensions have more than two strides",
    ),
    (
        "q nine dimensions",
        {},
        lambda a: {"q": a.q.reshape(1, 1, 1, 1, 1, 1, 3, 2, 64)},
        V,
        "q: 9 dimensions, must be at most 8",
    ),
    (
        "q broadcast tokens",
        {},
        lambda a: {"q": np.lib.stride_tricks.as_strided(a.q, (3, 2, 64), (0, 256, 4))},
        V,
        r"q: a broadcast array \(stride 0\) cannot be written",
    ),
    (
        "q_out broadcast heads",
        {},
        lambda a: {"q_out": np.lib.stride_tricks.as_strided(a.q_out, (3, 2, 64), (512, 0, 4))},
        V,
        "q_out: a broadcast array",
    ),
    (
        "q broadcast elements",
        {},
        lambda a: {"q": np.lib.stride_tricks.as_strided(a.q, (3, 2, 64), (512, 256, 0))},
        V,
        "q: a broadcast array",
    ),
    (
        "q overlapping windows",
        {},
        lambda a: {"q": np.lib.stride_tricks.as_strided(a.q, (3, 2, 64), (256, 256, 4))},
        V,
        "q: strides overlap",
    ),
    (
        "q odd strides",
        {},
        lambda a: {"q": with_odd_strides(a.q)},
        V,
        "q: a stride of .* bytes is not a multiple of the element",
    ),
    (
        "q without an address",
        {},
        lambda a: {"q": Interface("__array_interface__", no_address(a.q))},
        T,
        "q: malformed array interface of Interface: TypeError",
    ),
    (
        "q without a capsule",
        {},
        lambda a: {"q": NoCapsule()},
        T,
        "q: __dlpack__ of NoCapsule did not return a 'dltensor'",
    ),
    (
        "q on a CUDA device",
        {},
        lambda a: {"q": Interface("__cuda_array_interface__", a.q.__array_interface__)},
        V,
        "q: the array is on a CUDA device, must be in host memory",
    ),
    ("q_strides with an array", {}, lambda a: {"q_strides": (128, 64)}, V, "q_strides: only allowed with pointers"),
    ("num_tokens of another length", {}, lambda a: {"num_tokens": 2}, V, "q: 3 tokens, must be 2 as num_tokens"),
    ("k of other tokens", {}, lambda a: {"k": a.k[:2]}, V, "k: 2 tokens, must be 3 as num_tokens or the other"),
    ("q_out of other tokens", {}, lambda a: {"q_out": a.q_out[:1]}, V, "q_out: 1 tokens, must be 3 as"),
    # positions
    (
        "positions short",
        {},
        lambda a: {"positions": a.positions[:2]},
        V,
        "positions: 3 are needed, one a token; got 2",
    ),
    (
        "positions long",
        {},
        lambda a: {"positions": np.arange(4)},
        V,
        "positions: 3 are needed, one a token; got 4",
    ),
    (
        "positions 2-D",
        {},
        lambda a: {"positions": np.zeros((2, 3), int)},
        V,
        r"positions: shape \(2, 3\), must be \[3\], with strides",
    ),
    (
        "positions reversed",
        {},
        lambda a: {"positions": a.positions[::-1]},
        V,
        r"positions: .* must be \[3\], with strides of 0 or more",
    ),
    (
        "positions float",
        {},
        lambda a: {"positions": a.positions.astype(float)},
        T,
        "positions: dtype float64, must be int32, int64 or float32",
    ),
    (
        "positions uint64",
        {},
        lambda a: {"positions": a.positions.astype("u8")},
        T,
        "positions: dtype uint64, must be int32, int64 or float32",
    ),
    (
        "positions int16",
        {},
        lambda a: {"positions": a.positions.astype("i2")},
        T,
        "positions: dtype int16, must be int32, int64 or float32",
    ),
    (
        "positions big-endian",
        {},
        lambda a: {"positions": big_endian(a.positions)},
        T,
        "positions: dtype >i8, must be int32",
    ),
    (
        "indptr empty",
        {},
        lambda a: {"indptr": a.indptr[:1]},
        V,
        "indptr: 1 values, must be num_requests . 1, at least 2",
    ),
    (
        "indptr and num_requests",
        {},
        lambda a: {"indptr": a.indptr, "num_requests": 3},
        V,
        r"indptr: 4 are needed, num_requests \+ 1; got 3",
    ),
    (
        "indptr 2-D",
        {},
        lambda a: {"indptr": a.indptr[None]},
        V,
        r"indptr: shape \(1, 3\), must be contiguous \[num_requests . 1\]",
    ),
    (
        "offsets long",
        {},
        lambda a: {"indptr": a.indptr, "offsets": a.indptr},
        V,
        "offsets: 2 are needed, one a request; got 3",
    ),
    (
        "offsets of another dtype",
        {},
        lambda a: {"indptr": a.indptr, "offsets": np.zeros(2, "i4")},
        T,
        "offsets: must have the dtype of indptr",
    ),
    # overlaps
    ("k inside q", {}, lambda a: {"k": a.q[:, :1]}, V, "k: overlaps q in memory"),
    (
        "k is q's last head, moved",
        {},
        lambda a: {"q": a.pool[:3, :2], "k": a.pool[1:4, 1:2]},
        V,
        "k: overlaps q in memory",
    ),
    (
        "q_out one token on",
        {},
        lambda a: {"q": a.pool[:3, :2], "q_out": a.pool[1:4, :2]},
        V,
        "q_out: overlaps q in memory",
    ),
    (
        "q_out one head on",
        {},
        lambda a: {"q": a.pool[:3, :2], "q_out": a.pool[:3, 1:3]},
        V,
        "q_out: overlaps q in memory",
    ),
    ("q_out reversed", {}, lambda a: {"q_out": a.q[::-1]}, V, "q_out: overlaps q in memory"),
    ("q_out is k", {}, lambda a: {"q_out": a.pool[:3, :2], "k": a.pool[:3, 1:2]}, V, "k: overlaps q_out in memory"),
)


def make_arrays():
    draw = np.random.default_rng(1).standard_normal
    shapes = {"q": (3, 2, 64), "k": (3, 1, 64), "q_out": (3, 2, 64), "k_out": (3, 1, 64), "pool": (5, 4, 64)}
    return SimpleNamespace(
        **{name: draw(shape).astype(np.float32) for name, shape in shapes.items()},
        positions=np.arange(3),
        indptr=np.array([0, 2, 3]),
        offsets=np.array([7, 8]),
    )


@pytest.mark.parametrize(("options", "change", "error", "text"), ARRAYS)
def test_arrays(options, change, error, text):
    a = make_arrays()
    call = {"q": a.q, "k": a.k} | change(a)
    if options:  # the others of the Rope's dtype
        call = {name: x.astype(ml_dtypes.bfloat16) if x.dtype == np.float32 else x for name, x in call.items()}
    seen = [x for x in [*vars(a).values(), *call.values()] if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in seen]
    with refused(error, text):
        small(**options).apply(**call)
    assert [x.tobytes() for x in seen] == before


ARRAYS_ALLOWED = rows(
    ("read-only input", lambda a: {"q": read_only(a.q.copy()), "q_out": a.q_out}),
    ("slices of one buffer", lambda a: {"q": a.pool[:3, :2], "k": a.pool[:3, 2:3]}),
    ("every second head", lambda a: {"q": a.pool[:3, ::2], "k": a.pool[:3, 1:2]}),
    ("padded heads of one buffer", lambda a: {"q": a.wide[:, :2, :64], "k": a.wide[:, 2:, :64]}),
    ("out beside in", lambda a: {"q": a.pool[:3, :2], "q_out": a.pool[:3, 2:]}),
    ("every second token", lambda a: {"q": a.pool[::2, :2], "k": a.pool[::2, 3:]}),
    ("no tokens", lambda a: {"q": a.q[:0], "k": a.k[:0], "positions": a.positions[:0]}),
    ("no tokens in two dimensions", lambda a: {"q": np.zeros((2, 0, 2, 64), "f4"), "k": np.zeros((0, 5, 1, 64), "f4")}),
)


@pytest.mark.parametrize("change", ARRAYS_ALLOWED)
def test_arrays_allowed(change):
    """They give what contiguous arrays give, and what lies beside them is not written."""
    a = make_arrays()
    a.wide = np.random.default_rng(2).standard_normal((3, 3, 80)).astype(np.float32)
    call = {"q": a.q, "k": a.k} | change(a)
    outs = {name: call.get(f"{name}_out", call[name]) for name in ("q", "k")}
    memory = [x if x.base is None else x.base for x in [*vars(a).values(), *call.values()]]
    before, old, want = [x.copy() for x in memory], {name: out.copy() for name, out in outs.items()}, {}
    for name in outs:
        dense = call[name].reshape(-1, *call[name].shape[-2:])
        want[name] = dense.copy()
        small().apply(**{"q": None, name: want[name]})
        assert (want[name] != dense).any() == bool(dense.size)
    small().apply(**call)
    for name, out in outs.items():
        np.testing.assert_array_equal(out.reshape(want[name].shape), want[name])
        out[...] = old[name]
    for x, y in zip(memory, before, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.skipif(not HAS_CUDA, reason="built without CUDA")
def test_host_array_on_cuda():
    a = make_arrays()
    for name in ("q", "k", "positions"):
        call = {"q": 1 << 20, "k": 1 << 30, "num_tokens": 3, name: getattr(a, name)}
        text = f"{name}: the array is in host memory, must be on the CUDA device .*; a Rope for host memory is made"
        with refused(ValueError, text):
            small("cuda").apply(**call)
