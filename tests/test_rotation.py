"""The rotation against float64, over shapes, layouts in memory and options."""

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit.blocks import Block, call, normal_block, rows_block
from kit.places import PLACES
from kit.reference import DTYPES, storage
from kit.ropes import make
from kit.rotations import POSITIONS, TOKENS, check_both_ways, check_out, cos_sin_for

LAYOUTS = ["neox", "gptj"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 6, 40, 64, 80, 96, 112, 120, 128])
def test_every_even_rotary_dim(device, head_dim, dtype, layout, rng):
    for rotary_dim in range(2, head_dim + 1, 2):
        rope = pyrope.Rope(head_dim, 3, 2, rotary_dim=rotary_dim, dtype=dtype, layout=layout, device=device)
        check_both_ways(rope, rng)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64, 0), (128, 32, 64), (80, 20, 60), (7, 6, 1), (257, 256, 1), (576, 64, 512)])
def test_places_and_offsets(device, shape, dtype, layout, place, rng):
    head_dim, rotary_dim, offset = shape
    rope = pyrope.Rope(
        head_dim, 5, 1, rotary_dim=rotary_dim, rotary_offset=offset, dtype=dtype, layout=layout, device=device
    )
    check_both_ways(rope, rng, place)


@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_heads(device, dtype, layout, angle, rng):
    for head_dim in (192, 256, 512, 1024, 2048):
        check_both_ways(pyrope.Rope(head_dim, 2, 1, dtype=dtype, layout=layout, angle=angle, device=device), rng)
    check_both_ways(
        pyrope.Rope(
            4096, 2, 1, rotary_dim=2048, rotary_offset=1000, dtype=dtype, layout=layout, angle=angle, device=device
        ),
        rng,
    )


@pytest.mark.parametrize("heads", [(1, 1), (8, 1), (9, 3), (32, 8), (64, 8), (128, 128), (71, 71)])
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 33, 300])
def test_counts(device, tokens, heads, rng):
    rope = pyrope.Rope(64, *heads, dtype="bfloat16", device=device)
    check_both_ways(rope, rng, tokens=tokens, positions=rng.integers(0, 2**20, tokens))


def test_attention_factor(device, rng):
    assert make(device, attention_factor=1.2).attention_factor == 1.2
    check_both_ways(make(device, attention_factor=float(np.float32(1.2))), rng)


@pytest.mark.parametrize("name", ["q", "k"])
def test_one_operand(device, name, rng):
    rope = make(device, "bfloat16")
    x = normal_block(rng, "bfloat16", (TOKENS, 3 if name == "q" else 2, 64))
    flat = call(rope, {"q": None, "k": None, name: x, "positions": POSITIONS})[name]
    check_out(x, x, flat, rope, *cos_sin_for(rope, POSITIONS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_qkv(device, layout, rng):
    """q and k inside one [tokens, (8 + 2 + 2) * 64] buffer, v beside them; also q in place with k out of place."""
    rope = make(device, "bfloat16", num_q_heads=8, layout=layout)
    qkv = normal_block(rng, "bfloat16", (TOKENS, 12, 64))
    q = Block("bfloat16", (TOKENS, 8, 64), (12 * 64, 64, 1), flat=qkv.flat)
    k = Block("bfloat16", (TOKENS, 2, 64), (12 * 64, 64, 1), 8 * 64, flat=qkv.flat)
    operands, cos_sin = {"q": q, "k": k, "positions": POSITIONS}, cos_sin_for(rope, POSITIONS)
    both = call(rope, operands)["q"]
    partly = both.copy()
    k.view(partly)[...] = k.view()
    check_out(q, q, partly, rope, *cos_sin)
    partly = both.copy()
    q.view(partly)[...] = q.view()
    check_out(k, k, partly, rope, *cos_sin)

    k_out = rows_block("bfloat16", (TOKENS, 2, 64))
    mixed = call(rope, operands | {"k_out": k_out})
    check_out(q, q, mixed["q"], rope, *cos_sin)
    check_out(k, k_out, mixed["k_out"], rope, *cos_sin)


def test_mixed_places_leave_the_rest_of_q_alone(device, rng):
    """Partial rotation, q in place and k out of place: q's unrotated elements may not even be read."""
    rope = make(device, "float16", num_q_heads=2, rotary_dim=32, rotary_offset=16)
    q, k = (normal_block(rng, "float16", (TOKENS, 2, 64)) for _ in range(2))
    k_out, cos_sin = rows_block("float16", (TOKENS, 2, 64)), cos_sin_for(rope, POSITIONS)
    result = call(rope, {"q": q, "k": k, "k_out": k_out, "positions": POSITIONS})
    check_out(q, q, result["q"], rope, *cos_sin)
    check_out(k, k_out, result["k_out"], rope, *cos_sin)


def test_negative_strides(device, rng):
    rope = make(device, head_dim=32)
    q = normal_block(rng, "float32", (4, 3, 32))
    forward = q.view(call(rope, {"q": q, "positions": np.arange(4)})["q"])
    mirrored = Block("float32", (4, 3, 32), (-96, -32, 1), 11 * 32, flat=q.flat)
    backward = mirrored.view(call(rope, {"q": mirrored, "positions": np.arange(4)[::-1].copy()})["q"])
    np.testing.assert_array_equal(backward[::-1, ::-1], forward)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(device, dtype):
    """Infinities and NaNs go through as IEEE arithmetic has it; denormals are kept."""
    rope = make(device, dtype, head_dim=4, num_q_heads=1)
    tiny = float(ml_dtypes.finfo(storage(dtype)).smallest_subnormal)
    values = np.array([[np.inf, tiny, 1, 3 * tiny], [np.nan, -np.inf, 1, np.inf]])[:, None]
    x = rows_block(dtype, (2, 1, 4), values=values)
    y = x.view(call(rope, {"q": x, "positions": np.array([1, 0])})["q"]).astype(np.float64)[:, 0]
    assert y[0, 0] == np.inf and y[0, 2] == np.inf
    cos, sin = np.cos(0.01), np.sin(0.01)
    assert y[0, 1] == float(np.array(tiny * cos - 3 * tiny * sin).astype(storage(dtype))) != 0
    assert y[0, 3] == float(np.array(3 * tiny * cos + tiny * sin).astype(storage(dtype))) != 0
    assert np.isnan(y[1]).all()  # inf * sin(0)


def test_zero_tokens(device):
    """Null pointers, as of an empty tensor of torch, or such as have memory, of which nothing is written."""
    rope = make(device)
    assert rope.apply(None, 0, 0) is None
    assert rope.apply(0, 0, 0, positions=0, q_out=0, k_out=1 << 16) is None
    tensors = {
        name: rows_block("float32", (1, 2 if name[0] == "k" else 3, 64)) for name in ("q", "k", "q_out", "k_out")
    }
    for operands in ({name: tensors[name] for name in "qk"}, tensors):
        for name, flat in call(rope, operands | {"offset": 5}, tokens=0).items():
            np.testing.assert_array_equal(flat, tensors[name].flat)
