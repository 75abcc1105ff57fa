"""The rotation against float64, over shapes, layouts in memory and options. Whole buffers are compared: gaps between
rows, and everything that a call must leave alone, keep their canaries."""

import numpy as np
import pytest
import reference
from memory import Tensor, run

import pyrope

DTYPES = ["float32", "float16", "bfloat16"]
LAYOUTS = ["neox", "gptj"]
TOKENS = 3
POSITIONS = np.array([0, 70001, 2**31 - 1])

# Places of [tokens, heads, head_dim] in memory: strides and offset in elements, of (tokens, heads, head_dim).
PLACES = {
    "contiguous": lambda t, h, d: {},
    "padded": lambda t, h, d: {"head_stride": d + 8, "token_stride": h * (d + 8) + 24, "offset": 16},
    "misaligned": lambda t, h, d: {"head_stride": d + 1, "token_stride": h * (d + 1) + 3, "offset": 1},
    "heads first": lambda t, h, d: {"head_stride": t * d + 16, "token_stride": d},
}


def base(rope):
    return reference.base_frequencies(rope.rotary_dim, rope.theta)


def expected(x, rope, cos, sin):
    """float64 values of the rotated Tensor x, and how far from each a result may be (0: the same number)."""
    layout, r, offset = rope.layout, rope.rotary_dim, rope.rotary_offset
    y = reference.rotate(x.view(), cos, sin, layout, r, offset)
    return y, reference.error_bound(x.view(), y, rope.dtype, layout, r, offset)


def check_out(x, out, flat, rope, cos, sin, moved=None):
    """`flat` is the buffer of `out` after a call: values within the bound where tokens moved, canaries elsewhere."""
    y, bound = expected(x, rope, cos, sin)
    moved = np.ones(x.shape[0], bool) if moved is None else moved
    got = out.view(flat).astype(np.float64)
    with np.errstate(invalid="ignore"):
        assert (np.abs(got - y)[moved] <= bound[moved]).all()
    # Put back what the call was to write, and the buffer must be what it was.
    rest = flat.copy()
    out.view(rest)[moved] = out.view()[moved]
    np.testing.assert_array_equal(rest, out.flat)


def check_both_ways(rope, rng, place="contiguous", tokens=TOKENS, positions=POSITIONS, moved=None, **arguments):
    """In place and out of place, apply and inverse."""
    heads = rope.num_q_heads, rope.num_k_heads
    d = rope.head_dim
    tensors = [Tensor(rope.dtype, (tokens, h, d), rng=rng, **PLACES[place](tokens, h, d)) for h in heads]
    outs = [Tensor(rope.dtype, (tokens, h, d), **PLACES[place](tokens, h, d)) for h in heads]
    angles = reference.cos_sin if rope.angle == "exact" else reference.cos_sin_fp32
    cos, sin = (rope.attention_factor * x for x in angles(positions, base(rope)))
    arguments = arguments or {"positions": positions}
    q, k = tensors
    in_place = run(rope, {"q": q, "k": k}, **arguments)
    apart = run(rope, {"q": q, "k": k, "q_out": outs[0], "k_out": outs[1]}, **arguments)
    for name, x, out in (("q", q, outs[0]), ("k", k, outs[1])):
        check_out(x, x, in_place[name], rope, cos, sin, moved)
        check_out(x, out, apart[f"{name}_out"], rope, cos, sin, moved)
        np.testing.assert_array_equal(apart[name], x.flat)  # inputs are not written
    back = run(rope, {"q": q, "k": k}, method="inverse", **arguments)
    for name, x in (("q", q), ("k", k)):
        check_out(x, x, back[name], rope, cos, -sin, moved)


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
    rope = pyrope.Rope(64, 3, 2, attention_factor=1.2, dtype="float32", device=device)
    assert rope.attention_factor == 1.2
    rope32 = pyrope.Rope(64, 3, 2, attention_factor=float(np.float32(1.2)), dtype="float32", device=device)
    check_both_ways(rope32, rng)


@pytest.mark.parametrize("name", ["q", "k"])
def test_one_operand(device, name, rng):
    rope = pyrope.Rope(64, 3, 2, dtype="bfloat16", device=device)
    heads = 3 if name == "q" else 2
    x = Tensor("bfloat16", (TOKENS, heads, 64), rng=rng)
    flat = run(rope, {"q": None, "k": None, name: x}, positions=POSITIONS)[name]
    check_out(x, x, flat, rope, *reference.cos_sin(POSITIONS, base(rope)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_qkv(device, layout, rng):
    """q and k inside one [tokens, (8 + 2 + 2) * 64] buffer, v beside them; also q in place with k out of place."""
    rope = pyrope.Rope(64, 8, 2, dtype="bfloat16", layout=layout, device=device)
    row = 12 * 64
    q = Tensor("bfloat16", (TOKENS, 8, 64), token_stride=row, rng=rng)
    q.flat = np.resize(q.flat, 2 * (TOKENS * row + 64))
    k = Tensor("bfloat16", (TOKENS, 2, 64), token_stride=row, offset=8 * 64, flat=q.flat, rng=rng)
    cos, sin = reference.cos_sin(POSITIONS, base(rope))
    both = run(rope, {"q": q, "k": k}, positions=POSITIONS)["q"]
    partly = both.copy()
    k.view(partly)[...] = k.view()
    check_out(q, q, partly, rope, cos, sin)
    partly = both.copy()
    q.view(partly)[...] = q.view()
    check_out(k, k, partly, rope, cos, sin)

    k_out = Tensor("bfloat16", (TOKENS, 2, 64))
    mixed = run(rope, {"q": q, "k": k, "k_out": k_out}, positions=POSITIONS)
    check_out(q, q, mixed["q"], rope, cos, sin)
    check_out(k, k_out, mixed["k_out"], rope, cos, sin)


def test_mixed_places_leave_the_rest_of_q_alone(device, rng):
    """Partial rotation, q in place and k out of place: q's unrotated elements may not even be read."""
    rope = pyrope.Rope(64, 2, 2, rotary_dim=32, rotary_offset=16, dtype="float16", device=device)
    q, k = (Tensor("float16", (TOKENS, 2, 64), rng=rng) for _ in range(2))
    k_out = Tensor("float16", (TOKENS, 2, 64))
    cos, sin = reference.cos_sin(POSITIONS, base(rope))
    result = run(rope, {"q": q, "k": k, "k_out": k_out}, positions=POSITIONS)
    check_out(q, q, result["q"], rope, cos, sin)
    check_out(k, k_out, result["k_out"], rope, cos, sin)


def test_negative_strides(device, rng):
    rope = pyrope.Rope(32, 3, 2, dtype="float32", device=device)
    q = Tensor("float32", (4, 3, 32), rng=rng)
    forward = q.view(run(rope, {"q": q}, positions=np.arange(4))["q"])
    mirrored = Tensor("float32", (4, 3, 32), token_stride=-96, head_stride=-32, offset=11 * 32, flat=q.flat)
    backward = mirrored.view(run(rope, {"q": mirrored}, positions=np.arange(4)[::-1].copy())["q"])
    np.testing.assert_array_equal(backward[::-1, ::-1], forward)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(device, dtype):
    """Infinities and NaNs go through as IEEE arithmetic has it; denormals are kept."""
    rope = pyrope.Rope(4, 1, 1, dtype=dtype, device=device)
    tiny = float(reference.ml_dtypes.finfo(reference.DTYPES[dtype]).smallest_subnormal)
    x = Tensor(dtype, (2, 1, 4))
    x.view()[...] = np.array([[np.inf, tiny, 1, 3 * tiny], [np.nan, -np.inf, 1, np.inf]])[:, None]
    y = x.view(run(rope, {"q": x}, positions=np.array([1, 0]))["q"]).astype(np.float64)[:, 0]
    assert y[0, 0] == np.inf and y[0, 2] == np.inf
    cos, sin = np.cos(0.01), np.sin(0.01)
    assert y[0, 1] == float(np.array(tiny * cos - 3 * tiny * sin).astype(reference.DTYPES[dtype])) != 0
    assert y[0, 3] == float(np.array(3 * tiny * cos + tiny * sin).astype(reference.DTYPES[dtype])) != 0
    assert np.isnan(y[1]).all()  # inf * sin(0)


def test_zero_tokens(device):
    """Null pointers, as of an empty tensor of torch, or such as have memory, of which nothing is written."""
    rope = pyrope.Rope(64, 2, 1, device=device)
    assert rope.apply(None, 0, 0) is None
    assert rope.apply(0, 0, 0, positions=0, q_out=0, k_out=1 << 16) is None
    names = {"q": 2, "k": 1, "q_out": 2, "k_out": 1}
    tensors = {name: Tensor("bfloat16", (0, heads, 64), flat=Tensor("bfloat16", (1, heads, 64)).flat)
               for name, heads in names.items()}  # fmt: skip
    for operands in ({name: tensors[name] for name in "qk"}, tensors):
        for name, flat in run(rope, operands, offset=5).items():
            np.testing.assert_array_equal(flat, tensors[name].flat)
