"""Mistakes that are easy to make: an offset or an array in the wrong place, a dimension too few, memory used twice."""

from types import SimpleNamespace

import numpy as np
import pytest

from kit.memory import HAS_CUDA, Buffers
from kit.refusals import ROW, T, V, refused, rows, small

# ---- numbers, arrays and types in each other's place

NO_ADDRESS = "is not the address of any memory"
MISPLACED = rows(
    ("positions as an offset", {"positions": 1000}, V, f"positions: 0x3e8 {NO_ADDRESS}; .* passed as offset="),
    ("positions as a numpy int", {"positions": np.int64(1000)}, V, f"positions: 0x3e8 {NO_ADDRESS}"),
    ("positions 0-d", {"positions": np.array(1000)}, V, r"positions: shape \(\), must be \[3\]"),
    ("positions 0-d in the place of a pointer", {"positions": np.array(1 << 40)}, V, r"positions: shape \(\)"),
    ("indptr low", {"indptr": 8, "num_requests": 1}, V, f"indptr: 0x8 {NO_ADDRESS}"),
    ("q low", {"q": 1024, "num_tokens": 3}, V, f"q: 0x400 {NO_ADDRESS}"),
    ("q 0-d", {"q": np.array(1024)}, T, "q: dtype int64, must be float32"),
    ("q 0-d float32", {"q": np.array(1, "f4")}, V, r"q: shape \(\), must be \[num_tokens, 2, 64\] or two-dimensional"),
    ("q_out low", {"q_out": 65535}, V, f"q_out: 0xffff {NO_ADDRESS}"),
    ("positions as num_tokens", {"num_tokens": np.arange(3)}, T, "num_tokens: ndarray .* passed as positions="),
    ("positions as offset", {"offset": np.arange(3)}, T, "offset: ndarray is not an integer; .* as positions="),
    ("a list as offset", {"offset": [0, 1]}, T, r"offset: \[0, 1\] is not an integer; .* as positions="),
    ("q objects", {"q": np.full((3, 2, 64), None)}, T, "q: dtype object, must be float32"),
    ("q times", {"q": np.zeros((3, 2, 64), "M8[ns]")}, T, r"q: dtype datetime64\[ns\], must be float32"),
    ("q strings", {"q": np.zeros((3, 2, 64), "U4")}, T, "q: dtype <U4, must be float32"),
    ("positions objects", {"positions": np.array([0, 1, None])}, T, "positions: dtype object, must be int32, int64 or"),
    ("positions times", {"positions": np.zeros(3, "m8[s]")}, T, r"positions: dtype timedelta64\[s\], must be int32"),
    ("q a class", {"q": np.ndarray}, T, "q: type is not a pointer"),
    ("positions a class", {"positions": np.int64}, T, "positions: type is not a pointer"),
    ("stream a class", {"stream": np.int64}, T, "stream: type is not a stream"),
    ("positions reversed", {"positions": np.arange(3)[::-1]}, V, r"positions: shape \(3,\), .* strides of 0 or more"),
    ("q batched and flat", {"q": np.zeros((1, 3, 128), "f4")}, V, r"q: shape \(1, 3, 128\), must be .* two-dim"),
    ("k with q's dimensions", {"k": np.zeros((3, 8, 64), "f4")}, V, r"k: shape \(3, 8, 64\), must be \[num_tokens, 1"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), MISPLACED)
def test_misplaced(change, error, text):
    q, k = np.ones((3, 2, 64), np.float32), np.ones((3, 1, 64), np.float32)
    with refused(error, text):
        small().apply(**{"q": q, "k": k} | change)
    assert (q == 1).all() and (k == 1).all()


@pytest.mark.skipif(not HAS_CUDA, reason="built without CUDA")
@pytest.mark.parametrize("name", ["q", "k", "q_out", "positions", "indptr"])
def test_low_addresses_on_cuda(name):
    call = {"q": 1 << 20, "k": 1 << 30, "num_tokens": 3} | ({"num_requests": 1} if name == "indptr" else {})
    with refused(ValueError, f"{name}: 0x1000 {NO_ADDRESS}"):
        small("cuda").apply(**call | {name: 4096})


# The last two dimensions, when there are three, are heads and head_dim and nothing else.
@pytest.mark.parametrize("shape", [(3, 2, 16), (2, 3, 16), (6, 1, 8), (3, 4, 4), (1, 6, 16), (2, 8), (48,)])
def test_other_dimensions(shape):
    q = np.ones(shape, np.float32)
    with refused(ValueError, r"q: shape .*, must be \[num_tokens, 2, 8\] or two-dimensional \[num_tokens"):
        small(head_dim=8, num_k_heads=0).apply(q)
    assert (q == 1).all()


@pytest.mark.parametrize("unordered", [set, frozenset, dict.fromkeys, lambda x: dict.fromkeys(x).keys(), iter])
def test_unordered_frequencies(unordered):
    with refused(TypeError, r"inv_freq: .* is not a sequence of numbers"):
        small(inv_freq=unordered([1.0 / (1 + i) for i in range(32)]))


# ---- objects that describe their memory wrongly

MALFORMED = rows(
    ("not a dict", lambda a: a["data"], "q: malformed array interface"),
    ("no shape", lambda a: {k: v for k, v in a.items() if k != "shape"}, "q: malformed array interface .*'shape'"),
    ("no typestr", lambda a: {k: v for k, v in a.items() if k != "typestr"},
     "q: malformed array interface .*'typestr'"),
    ("no data", lambda a: {k: v for k, v in a.items() if k != "data"}, "q: malformed array interface .*'data'"),
    ("shape a number", lambda a: a | {"shape": 384}, "q: malformed array interface"),
    ("shape of floats", lambda a: a | {"shape": (3.0, 2, 64)}, "q: malformed array interface"),
    ("shape beyond 64 bits", lambda a: a | {"shape": (2**64, 2, 64)}, "q: malformed array interface"),
    ("shape negative", lambda a: a | {"shape": (-3, 2, 64)}, "q: shape .* is that of no array"),
    ("shape beyond memory", lambda a: a | {"shape": (2**40, 2**40, 2, 64)}, "q: shape .* is that of no array"),
    ("data of one", lambda a: a | {"data": a["data"][:1]}, "q: malformed array interface"),
    ("data a number", lambda a: a | {"data": a["data"][0]}, "q: malformed array interface"),
    ("address negative", lambda a: a | {"data": (-4096, False)}, "q: malformed array interface"),
    ("address a float", lambda a: a | {"data": (float(1 << 40), False)}, "q: malformed array interface"),
    ("address null", lambda a: a | {"data": (0, False)}, "q: the array has no memory"),
    ("address low", lambda a: a | {"data": (1024, False)}, f"q: 0x400 {NO_ADDRESS}"),
    ("typestr empty", lambda a: a | {"typestr": ""}, "q: malformed array interface"),
    ("typestr bytes", lambda a: a | {"typestr": b"<f4"}, "q: malformed array interface"),
    ("typestr without a size", lambda a: a | {"typestr": "<f"}, "q: dtype unknown, must be float32"),
    ("typestr of size 0", lambda a: a | {"typestr": "<f0"}, "q: dtype unknown, must be float32"),
    ("typestr of a great size", lambda a: a | {"typestr": "<f4294967300"}, "q: dtype unknown, must be float32"),
    ("strides short", lambda a: a | {"strides": (256, 4)}, "q: malformed array interface .*2 strides for 3 dimensions"),
    ("strides long", lambda a: a | {"strides": (512, 256, 4, 4)}, "q: malformed array interface .*4 strides for 3"),
    ("strides of floats", lambda a: a | {"strides": (512.0, 256, 4)}, "q: malformed array interface"),
    ("strides beyond 64 bits", lambda a: a | {"strides": (2**70, 256, 4)}, "q: malformed array interface"),
)  # fmt: skip


@pytest.mark.parametrize("attribute", ["__array_interface__", "__cuda_array_interface__"])
@pytest.mark.parametrize(("change", "text"), MALFORMED)
def test_malformed_interface(change, text, attribute):
    if attribute == "__cuda_array_interface__" and not HAS_CUDA:
        pytest.skip("built without CUDA")
    q = np.ones((3, 2, 64), np.float32)
    x = SimpleNamespace(**{attribute: change(q.__array_interface__)})
    with refused((TypeError, ValueError), text):
        small("cpu" if attribute == "__array_interface__" else "cuda").apply(x)
    assert (q == 1).all()


def test_lists_describe_memory_too():
    q, want = np.ones((3, 2, 64), np.float32), np.ones((3, 2, 64), np.float32)
    small().apply(want, offset=5)
    a = q.__array_interface__
    lists = {"shape": list(a["shape"]), "strides": [512, 256, 4], "data": list(a["data"])}
    small().apply(SimpleNamespace(__array_interface__=a | lists), offset=5)
    assert (q == want).all()


def test_jax_arrays_are_not_written():
    """Without JAX: what counts is where the type comes from."""

    class ArrayImpl(SimpleNamespace):
        pass

    ArrayImpl.__module__ = "jaxlib._jax"
    q, k, out = np.ones((3, 2, 64), np.float32), np.ones((3, 1, 64), np.float32), np.zeros((3, 2, 64), np.float32)
    frozen = ArrayImpl(__array_interface__=q.__array_interface__)
    for call, name in (
        ({"q": frozen}, "q"),
        ({"q": None, "k": ArrayImpl(__array_interface__=k.__array_interface__)}, "k"),
        ({"q": out.copy(), "q_out": frozen}, "q_out"),
    ):
        with refused(TypeError, f"{name}: a jax.Array is immutable and cannot be written; pass [qk]_out="):
            small().apply(**call, offset=5)
    assert (q == 1).all() and (k == 1).all()
    small().apply(frozen, offset=5, q_out=out)
    small().apply(q, offset=5)
    assert (out == q).all()


# ---- positions in memory that is written

# Each row: what differs from apply(q=, k=, num_tokens=3), where p has the addresses, and the error.
OVERLAPS = rows(
    ("positions on q", lambda p: {"positions": p.q}, "positions: overlaps q"),
    ("positions on q's last bytes", lambda p: {"positions": p.q + 6 * ROW - 4}, "positions: overlaps q"),
    ("positions into q's first bytes", lambda p: {"positions": p.q - 8}, "positions: overlaps q"),
    ("positions on k", lambda p: {"positions": p.k + ROW}, "positions: overlaps k"),
    ("positions on q_out", lambda p: {"q_out": p.out, "positions": p.out + ROW}, "positions: overlaps q_out"),
    ("indptr on q", lambda p: {"indptr": p.q + ROW, "num_requests": 1}, "indptr: overlaps q"),
    ("offsets on k", lambda p: {"indptr": p.ids, "offsets": p.k, "num_requests": 2}, "offsets: overlaps k"),
    (
        "out of a gap between tokens",
        lambda p: {"q_strides": (192, 64), "positions": p.q + 3 * ROW - 8},
        "positions: overlaps q",
    ),
    (
        "out of a gap between heads",
        lambda p: {"q_strides": (192, 68), "positions": p.q + ROW + 8},
        "positions: overlaps q",
    ),
    (
        "out of a gap, heads outside",
        lambda p: {"q_strides": (68, 240), "positions": p.q + 960 + 272 - 8},
        "positions: overlaps q",
    ),
    (
        "on rows that run backwards",
        lambda p: {"q": p.q + 5 * ROW, "q_strides": (-128, -64), "positions": p.q},
        "positions: overlaps q",
    ),
)  # fmt: skip
APART = rows(
    ("before q", lambda p: {"positions": p.q - 12}),
    ("behind q", lambda p: {"positions": p.q + 6 * ROW}),
    ("in a gap between tokens", lambda p: {"q_strides": (192, 64), "positions": p.q + 3 * ROW - 12}),
    ("in a gap between heads", lambda p: {"q_strides": (192, 67), "positions": p.q + ROW}),
    ("in a gap, heads outside", lambda p: {"q_strides": (68, 240), "positions": p.q + 960 + 272 - 16}),
    ("in a gap, backwards", lambda p: {"q": p.q + 8 * ROW, "q_strides": (-192, -64), "positions": p.q + 6 * ROW}),
    ("on an input", lambda p: {"q_out": p.out, "positions": p.q}),
)


def buffers_with_room(device):
    """And addresses in the middle of them."""
    buffers = Buffers(device, {name: np.arange(3000, dtype=np.int32) for name in ("q", "k", "out", "ids")})
    return buffers, SimpleNamespace(**{name: at + 1024 for name, at in vars(buffers.at).items()})


def rotate_beside(device, p, change):
    small(device, position_dtype="int32").apply(**{"q": p.q, "k": p.k, "num_tokens": 3} | change(p))


@pytest.mark.parametrize(("change", "text"), OVERLAPS)
def test_positions_that_are_written(device, change, text):
    buffers, p = buffers_with_room(device)
    with refused(ValueError, f"{text} in memory, which is written"):
        rotate_beside(device, p, change)
    assert buffers.untouched()


@pytest.mark.parametrize("change", APART)
def test_positions_beside(device, change):
    buffers, p = buffers_with_room(device)
    rotate_beside(device, p, change)
    assert not buffers.untouched()


def test_ragged_positions_wrap():
    top = 2**63 - 1
    q, want = np.ones((4, 2, 64), np.float32), np.ones((4, 2, 64), np.float32)
    small().apply(q, indptr=np.array([0, 1, 4]), offsets=np.array([-(2**63), top - 1]))
    small().apply(want, positions=np.array([-(2**63), top - 1, top, -(2**63)]))
    assert (q == want).all()
    small().apply(q, indptr=np.array([-(2**63), 4]), offsets=np.array([0]))
    small().apply(want, offset=-(2**63))
    assert (q == want).all()
