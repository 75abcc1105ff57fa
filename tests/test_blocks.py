"""Streams of positions in any order, and blocks of the rotated part that turn by themselves, in float64."""

import functools
import itertools
import pickle

import numpy as np
import pytest

import pyrope
from kit.blocks import call, index, normal_block, same_on_both
from kit.ropes import make

TOKENS = 12


ATOL = 2e-6  # of values up to 5: angles within 1e-7, and two products and a sum in float32


def turned(x, angles, first, second):
    """RoFormer, equation 34: the elements `first` and `second` of x by angles, [tokens, pairs], in float64."""
    y, cos, sin = x.astype(np.float64), np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = y[..., first].copy(), y[..., second].copy()
    y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
    return y


def run(rope_of, operands):
    """On the CPU; test_pairs of test_stages.py compares the backends."""
    return call(rope_of("cpu"), operands)


def test_ernie(rng):
    """Ernie-4.5-VL: of 64 pairs h and w alternate over 44, then t takes 20."""
    streams = [1 + i % 2 if i < 44 else 0 for i in range(64)]
    x, positions = normal_block(rng, "float32", (TOKENS, 2, 128)), rng.integers(0, 5000, (3, TOKENS))
    rope = make(fused=True, head_dim=128, num_q_heads=2, pair_streams=streams, theta=500000.0)
    got = x.view(call(rope, {"q": x, "positions": index(positions)}, TOKENS)["q"])
    i = np.arange(64)
    want = turned(x.view(), positions[streams].T * 500000.0 ** (-i / 64), i, i + 64)
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize(
    "options",
    [
        {"sections": (8, 12, 12)},
        {"sections": (12, 10, 10), "sections_interleaved": True},
        {"sections": (8, 8, 8, 8), "sections_interleaved": True},
    ],
)
def test_sections_are_streams(device, layout, options, rng):
    """The three forms are ways to write a stream for each pair."""
    sizes = options["sections"]
    streams = [s for s, n in enumerate(sizes) for _ in range(n)]
    if "sections_interleaved" in options:
        streams = [i % len(sizes) for i in range(32)]
        streams = [s if i < len(sizes) * sizes[s] else 0 for i, s in enumerate(streams)]
    operands = {"q": normal_block(rng, "float16", (TOKENS, 3, 64))}
    operands["positions"] = index(rng.integers(-1, 5000, (len(sizes), TOKENS)))
    got, want = (
        call(make(device, "float16", fused=True, layout=layout, **form), operands, TOKENS)["q"]
        for form in ({"pair_streams": np.array(streams)}, options)
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("sizes", [(4, 7, 7, 7, 7), (4, 4, 4, 4, 4, 4, 4, 4), (1, 31, 0, 0, 0)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_more_sections(sizes, interleaved, rng):
    x, positions = normal_block(rng, "float32", (TOKENS, 3, 64)), rng.integers(0, 5000, (len(sizes), TOKENS))
    rope = make(fused=True, sections=sizes, sections_interleaved=interleaved)
    got = x.view(call(rope, {"q": x, "positions": index(positions)}, TOKENS)["q"])
    streams, i = np.repeat(np.arange(len(sizes)), sizes), np.arange(32)
    if interleaved:
        streams = i % len(sizes)
        streams = np.where(i < len(sizes) * np.array(sizes)[streams], streams, 0)
    want = turned(x.view(), positions[streams].T * 10000.0 ** (-i / 32), i, i + 32)
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


SHAPES = [(64, 64, 0, 2), (96, 96, 0, 3), (80, 48, 7, 4), (128, 128, 0, 8), (20, 12, 8, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize(("head_dim", "rotary_dim", "offset", "blocks"), SHAPES)
def test_blocks_are_rotations_of_their_own(device, head_dim, rotary_dim, offset, blocks, layout, dtype, rng):
    """One launch has the bits of a Rope for each block (Gemma 4's vision, 2-D of ggml)."""
    x, positions = normal_block(rng, dtype, (TOKENS, 3, head_dim)), rng.integers(0, 5000, (blocks, TOKENS))
    shape, size = {"head_dim": head_dim, "layout": layout, "theta": 100.0}, rotary_dim // blocks
    rope = make(device, dtype, fused=True, rotary_dim=rotary_dim, rotary_offset=offset, num_blocks=blocks, **shape)
    got = call(rope, {"q": x, "positions": index(positions)}, TOKENS)["q"]
    want = x
    for block in range(blocks):
        one = make(device, dtype, rotary_dim=size, rotary_offset=offset + block * size, **shape)
        want.flat[...] = call(one, {"q": want, "positions": index(positions[block])})["q"]
    np.testing.assert_array_equal(got, want.flat)
    np.testing.assert_array_equal(rope.inv_freq, np.tile(one.inv_freq, blocks))
    assert rope.num_streams == rope.num_blocks == blocks


def test_blocks_in_float64(rng):
    x, positions = normal_block(rng, "float32", (TOKENS, 3, 64)), rng.integers(0, 500, (2, TOKENS))
    rope = make(fused=True, num_blocks=2, theta=100.0)
    got = x.view(call(rope, {"q": x, "positions": index(positions)}, TOKENS)["q"])
    i = np.arange(16)
    first, frequencies = np.concatenate([i, 32 + i]), 100.0 ** (-i / 16)
    angles = np.concatenate([positions[b][:, None] * frequencies for b in range(2)], axis=1)
    np.testing.assert_allclose(got, turned(x.view(), angles, first, first + 16), rtol=0, atol=ATOL)


def test_blocks_have_frequencies_of_their_own(rng):
    x, positions = normal_block(rng, "float32", (TOKENS, 3, 8)), rng.integers(0, 500, (2, TOKENS))
    given = (1.0, 0.5, 0.25, 0.125)
    rope = make(fused=True, head_dim=8, num_blocks=2, inv_freq=given)
    got = x.view(call(rope, {"q": x, "positions": index(positions)}, TOKENS)["q"])
    angles = np.stack([positions[i // 2] * f for i, f in enumerate(given)], axis=1)
    first = np.array([0, 1, 4, 5])
    np.testing.assert_allclose(got, turned(x.view(), angles, first, first + 2), rtol=0, atol=ATOL)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", [{}, {"after": True}, {"across_heads": True}])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(128, 128), (64, 48), (40, 20)])
def test_blocks_between_stages(head_dim, rotary_dim, norm, rng):
    """Equal bits on both backends where heads are added up, of every access width."""
    for blocks, dtype in itertools.product((2, 5), ("float16", "float32")):
        if rotary_dim // 2 % blocks:
            continue
        options = {"head_dim": head_dim, "rotary_dim": rotary_dim, "num_blocks": blocks, "norm": pyrope.RMSNorm(**norm)}
        weight = index(rng.standard_normal(3 * head_dim if "across_heads" in norm else head_dim), dtype)
        operands = {"q": normal_block(rng, dtype, (TOKENS, 3, head_dim)), "q_weight": weight}
        operands["positions"] = index(rng.integers(0, 5000, (blocks, TOKENS)))
        same_on_both(functools.partial(make, dtype=dtype, fused=True, **options), operands, TOKENS)


@pytest.mark.parametrize("options", [{"num_blocks": 2}, {"pair_streams": (1, 0) * 16}, {"sections": (4, 7, 7, 7, 7)}])
def test_pickles(options, rng):
    rope = make(fused=True, **options)
    copy = pickle.loads(pickle.dumps(rope))
    assert repr(copy) == repr(rope) and next(iter(options)) in repr(rope)
    operands = {"q": normal_block(rng, "float32", (TOKENS, 3, 64))}
    operands["positions"] = index(rng.integers(0, 5000, (rope.num_streams, TOKENS)))
    np.testing.assert_array_equal(call(copy, operands, TOKENS)["q"], call(rope, operands, TOKENS)["q"])
