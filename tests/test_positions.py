"""Where positions come from, and tokens that are left alone."""

import functools
import itertools

import numpy as np
import pytest

from kit.blocks import call, equal, normal_block
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
