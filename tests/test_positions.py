"""Where positions come from, and tokens that are left alone."""

import functools
import itertools

import numpy as np
import pytest

from kit.blocks import call, equal, normal_block
from kit.memory import memory_of
from kit.objects import Producer, on
from kit.refusals import refused
from kit.ropes import DIM, Q_HEADS, make
from kit.rotations import check_both_ways

EARLY = {"enable_pdl": True, "positions_ready": True}  # positions are read before the previous kernel has ended


@pytest.fixture(
    params=[
        pytest.param({"device": "cpu"}, id="cpu"),
        pytest.param({"device": "cuda"}, id="cuda", marks=pytest.mark.gpu),
        pytest.param({"device": "cuda"} | EARLY, id="cuda-early", marks=pytest.mark.gpu),
    ]
)
def rope_with(request):
    return functools.partial(make, dtype="bfloat16", **request.param)


@pytest.mark.parametrize("offset", [0, 1, 100_000, 2**31 - 4, 2**40, -2])
def test_offset(rope_with, offset, rng):
    check_both_ways(rope_with(), rng, positions=offset + np.arange(3), offset=offset)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("tokens", [4, 40, 300])
def test_ids_with_padding(rope_with, dtype, tokens, rng):
    positions = rng.integers(0, 2**31, tokens).astype(dtype)
    positions[[1, 3, tokens - 1]] = -1
    check_both_ways(rope_with(position_dtype=dtype), rng, tokens=tokens, positions=positions, moved=positions != -1)


def test_other_negative_ids_turn_backwards(rope_with, rng):
    positions = np.array([-2, -3, -(2**31)])
    check_both_ways(rope_with(), rng, positions=positions)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("with_offsets", [True, False])
@pytest.mark.parametrize(
    ("tokens", "indptr"),
    [
        (5, [0, 5]),
        (9, [0, 0, 2, 2, 2, 7, 7]),  # empty requests; two tokens behind the last one
        (6, [2, 3, 3, 5]),  # two tokens before the first one, one behind the last
        (700, [0, 1, 2, *range(10, 700, 13)]),
    ],
)
def test_ragged(rope_with, tokens, indptr, with_offsets, dtype, rng):
    indptr = np.array(indptr, dtype)
    offsets = rng.integers(0, 2**20, len(indptr) - 1).astype(dtype)
    positions, moved = np.zeros(tokens, np.int64), np.zeros(tokens, bool)
    for request, (begin, end) in enumerate(itertools.pairwise(indptr)):
        positions[begin:end] = np.arange(end - begin) + (offsets[request] if with_offsets else 0)
        moved[begin:end] = True
    arguments = {"offsets": offsets} if with_offsets else {}
    check_both_ways(
        rope_with(position_dtype=dtype),
        rng,
        tokens=tokens,
        positions=positions,
        moved=moved,
        indptr=indptr,
        num_requests=len(indptr) - 1,
        **arguments,
    )


def test_ragged_equals_ids(rope_with, rng):
    rope, q = rope_with(), normal_block(rng, "bfloat16", (7, 3, 64))
    requests = {"indptr": np.array([0, 4, 7]), "offsets": np.array([10, 0]), "num_requests": 2}
    ragged = call(rope, {"q": q} | requests)["q"]
    ids = call(rope, {"q": q, "positions": np.array([10, 11, 12, 13, 0, 1, 2])})["q"]
    np.testing.assert_array_equal(ragged, ids)
    assert (ids != q.flat).any()


# ---- arrays of several dimensions, of q [2, 5, heads, head_dim]

PLACES = {  # first element, shape, strides
    "contiguous": (0, (2, 5), (5, 1)),
    "one dimension": (3, (10,), (1,)),
    "one dimension with gaps": (1, (10,), (3,)),
    "[1, tokens]": (2, (1, 5), (1, 1)),
    "[batch, 1]": (2, (2, 1), (7, 1)),
    "[1, 1]": (2, (1, 1), (1, 1)),
    "a slice": (4, (2, 5), (9, 1)),
    "with gaps": (0, (2, 5), (13, 2)),
    "transposed": (0, (2, 5), (1, 2)),
    "interleaved with others": (0, (2, 5), (1, 3)),
    "expanded": (6, (2, 5), (0, 1)),
    "expanded along tokens": (6, (2, 5), (4, 0)),
    "one for all": (6, (10,), (0,)),
}


@pytest.mark.parametrize("dtype", ["int64", "float32"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_places(device, place, dtype, rng):
    """And of positions_from, which lie in the same places."""
    first, shape, strides = place
    memory, size = memory_of(device), np.dtype(dtype).itemsize
    flats = rng.integers(0, 2**20, (2, 40)).astype(dtype)
    views = [np.lib.stride_tricks.as_strided(f[first:], shape, [size * s for s in strides]) for f in flats]
    full = [np.array(np.broadcast_to(v, (2, 5) if v.ndim == 2 else (10,))).ravel() for v in views]
    buffers = [memory.put(f) for f in flats]
    passed = [
        Producer(int(memory.pointer(b)) + first * size, shape, dtype, 2 if device == "cuda" else 1, strides=strides)
        for b in buffers
    ]
    x = rng.standard_normal((2, 5, 3, 64)).astype(np.float32)
    for fused in (False, True):
        wanted, rope = x.reshape(10, 3, 64).copy(), make(device, fused=fused)
        origin = [{}, {}] if not fused else [{"positions_from": p[1]} for p in (full, passed)]
        make(fused=fused).apply(wanted, positions=full[0], **origin[0])
        q, buffer = on(device, x, "float32")
        rope.apply(q, positions=passed[0], **origin[1])
        np.testing.assert_array_equal(memory.get(buffer).reshape(wanted.shape), wanted)
        x = x.copy()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((3, 4, 5), (20, 5, 1)), ((3, 4, 5), (30, 7, 1)), ((3, 1, 5), (5, 5, 1)), ((3, 4, 5), (20, 1, 4))],
)
def test_places_of_sections(device, shape, strides, rng):
    """[streams, batch, tokens], also of one batch for all."""
    memory, flat = memory_of(device), rng.integers(0, 2**20, 100)
    view = np.lib.stride_tricks.as_strided(flat, shape, [8 * s for s in strides])
    x = rng.standard_normal((4, 5, 3, 64)).astype(np.float32)
    wanted, options = x.reshape(20, 3, 64).copy(), {"fused": True, "sections": (10, 10, 12)}
    make(**options).apply(wanted, positions=np.array(np.broadcast_to(view, (3, 4, 5))).reshape(3, 20))
    (q, buffer), at = on(device, x, "float32"), memory.put(flat)
    passed = Producer(int(memory.pointer(at)), shape, "int64", 2 if device == "cuda" else 1, strides=strides)
    make(device, **options).apply(q, positions=passed)
    np.testing.assert_array_equal(memory.get(buffer).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (np.zeros((5, 2), int), r"positions: shape \(5, 2\), must be \[10\] or \[2 or 1, 5 or 1\], with strides of 0"),
        (np.zeros(5, int), r"positions: shape \(5,\), must be \[10\] or"),
        (np.zeros((1, 4), int), r"positions: shape \(1, 4\), must be"),
        (np.zeros((2, 5), int)[:, ::-1], r"positions: shape \(2, 5\), must be .* strides of 0 or more"),
        (np.zeros((4, 5), int)[np.newaxis, ::2, ::2], r"positions: shape \(1, 2, 3\), must be"),
    ],
)
def test_places_that_are_refused(positions, text):
    q = np.ones((2, 5, 3, 64), np.float32)
    with refused(ValueError, text):
        make().apply(q, positions=positions)
    with refused(ValueError, text.replace("positions", "positions_from")):
        make(fused=True).apply(q, positions=np.arange(10), positions_from=positions)
    assert (q == 1).all()


def test_positions_from_lie_as_positions():
    q = np.ones((10, 3, 64), np.float32)
    for positions, others in ((np.arange(10), np.arange(20)[::2]), (np.zeros((2, 9), int)[:, :5], np.arange(10))):
        with refused(ValueError, "positions_from: must have the strides of positions"):
            make(fused=True).apply(q, positions=positions, positions_from=others)


@pytest.mark.parametrize("shape", [(2, 5), (3, 1), (2, 2, 3), (1, 6), (1, 1, 6)])
@pytest.mark.parametrize("inverse", [False, True])
def test_leading_dimensions_are_sequences(shape, inverse, rng):
    """Each starts at the offset; what has three dimensions is one."""
    rope, tokens = make(num_k_heads=1), shape[-1]
    q, k = (rng.standard_normal((*shape, heads, DIM)).astype(np.float32) for heads in (Q_HEADS, 1))
    got_q, got_k, out = q.copy(), k.copy(), np.empty_like(q)
    rope.apply(got_q, got_k, offset=7, inverse=inverse)
    rope.apply(q, offset=7, q_out=out, inverse=inverse)
    for i in np.ndindex(shape[:-1]):
        one_q, one_k = q[i].copy(), k[i].copy()
        rope.apply(one_q, one_k, positions=np.arange(7, 7 + tokens), inverse=inverse)
        assert equal(got_q[i], one_q) and equal(got_k[i], one_k) and equal(out[i], one_q)


def test_sequences_need_not_fold(rng):
    """Some of the tokens of each, where they lie; and a batch that positions place is what they say."""
    room = rng.standard_normal((2, 5, Q_HEADS, DIM)).astype(np.float32)
    want, some = room.copy(), room[:, :3]
    make().apply(some, offset=2)
    for x in want:
        make().apply(x[:3], offset=2)
    assert equal(room, want)
    placed, flat = want.copy(), want.reshape(10, Q_HEADS, DIM).copy()
    make().apply(placed, positions=np.arange(10))
    make().apply(flat)
    assert equal(placed.reshape(flat.shape), flat)
    with refused(ValueError, "k: sequences of 2 tokens, must be of 5 as sequence_length or the other arguments"):
        make(num_k_heads=Q_HEADS).apply(want, np.empty((5, 2, Q_HEADS, DIM), np.float32))
