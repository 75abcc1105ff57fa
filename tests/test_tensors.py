"""Tensors in other forms than rows of one batch: sequences, elements apart, broadcast, stored twice or elsewhere."""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, bits_block, cache_block, call, equal, index, normal_block, rows_block, same_on_both
from kit.reference import DTYPES
from kit.ropes import DIM, K_HEADS, Q_HEADS, TOKENS, make

SLOTS = np.array([5, -1, 0, 7, 3, 2])
LAYOUTS = [("gptj", "neox"), ("neox", "gptj")]


def cache(**options):
    return pyrope.PagedCache(4, 2, **options)


def qk(rng, dtype="float32", tokens=TOKENS):
    return {x: normal_block(rng, dtype, (tokens, n, DIM)) for x, n in (("q", Q_HEADS), ("k", K_HEADS))}


def outs(dtype="float32", tokens=TOKENS):
    return {f"{x}_out": rows_block(dtype, (tokens, n, DIM)) for x, n in (("q", Q_HEADS), ("k", K_HEADS))}


def run(device, operands, **options):
    """What a FusedRope leaves in each block, on both devices the same; arrays."""
    options = {"dtype": "float32"} | options

    def rope(where):
        return make(where, fused=True, **options)

    tokens = options.pop("tokens", TOKENS)
    flats = same_on_both(rope, operands, tokens) if device == "cuda" else call(rope("cpu"), operands, tokens)
    return {name: np.ascontiguousarray(operands[name].view(flat)) for name, flat in flats.items()}


# ---- which position is skipped


def test_a_position_before_zero(device):
    """At frequency 1, position -1 turns (1, 0) to (cos 1, -sin 1)."""
    q = rows_block("float32", (2, 1, 2), values=np.array([[[1, 0]], [[1, 0]]], np.float32))
    rope = make(device, head_dim=2, num_q_heads=1, num_k_heads=0, skip=None)
    got = q.view(call(rope, {"q": q, "positions": index([-1, 1])}, 2)["q"]).ravel()
    np.testing.assert_allclose(got, [0.54030231, -0.84147098, 0.54030231, 0.84147098], atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("skip", [-1, None, 3, -(2**31), 0])
def test_skip(device, skip, dtype, fused, rng):
    """The token of that position alone keeps its bits; out of place its output is not written, or copied."""
    ids = np.array([-1, 3, -(2**31), 0, 5, 3], dtype)
    left = np.flatnonzero(ids == skip) if skip is not None else []
    blocks = qk(rng) | {"positions": index(ids, dtype)}
    rope = make(device, fused=fused, skip=skip, position_dtype=dtype)
    moved = make("cpu", skip=6, position_dtype=dtype)  # a position that there is not
    want = call(moved, blocks, TOKENS)
    for copies in (None, "leave", "copy"):
        operands = dict(blocks) if copies is None else blocks | outs() | {"skipped": copies}
        flats = call(rope, operands, TOKENS)
        for x in "qk":
            out = operands[x if copies is None else f"{x}_out"]
            expected = blocks[x].view(want[x]).copy()
            expected[left] = out.view()[left] if copies == "leave" else blocks[x].view()[left]
            assert equal(out.view(flats[x if copies is None else f"{x}_out"]), expected)


def test_a_skip_that_no_id_of_32_bits_can_be(device, rng):
    """It is compared as it is, not its low half."""
    blocks = qk(rng) | {"positions": index([5] * TOKENS, np.int32)}
    ropes = [make(device, skip=skip, position_dtype="int32") for skip in (-1, 5 + 2**32)]
    plain, other = (call(rope, blocks, TOKENS)["q"] for rope in ropes)
    assert equal(plain, other)


def test_first_stream_decides(device, rng):
    positions = np.array([[7, 1, 2, 7, 4, 5], [0, 7, 7, 7, 7, 3]])
    blocks = qk(rng) | {"positions": index(positions)}
    got = run(device, blocks, sections=(16, 16), skip=7)["q"]
    alone = (got == blocks["q"].view()).all((1, 2))
    assert list(alone) == [True, False, False, True, False, False]


def test_negative_slots_leave_q_alone(device, rng):
    blocks = qk(rng) | {"slots": index(SLOTS), "k_cache": cache_block("float32", 2, 4, K_HEADS, DIM)}
    usual = run(device, blocks, cache=cache())
    got = run(device, blocks, cache=cache(skip_q=True))
    assert equal(got["k_cache"], usual["k_cache"])
    held = SLOTS >= 0
    assert equal(got["q"][held], usual["q"][held]) and equal(got["q"][~held], blocks["q"].view()[~held])
    assert not equal(usual["q"][~held], blocks["q"].view()[~held])


# ---- sequences and strides


ORDERS = {
    "bthd": (0, 1, 2, 3),
    "bhtd": (0, 2, 1, 3),
    "tbhd": (1, 0, 2, 3),
    "htbd": (2, 1, 0, 3),
    "bthd apart": (0, 1, 2, 3),
}
SEQUENCES, LENGTH = 3, 4


def batch(rng, order, heads):
    """[sequences, length, heads, dim] in another order in memory, or with elements apart."""
    shape = (SEQUENCES, LENGTH, heads, DIM)
    step = 2 if order.endswith("apart") else 1
    strides = [0] * 4
    for axis in reversed(ORDERS[order]):
        strides[axis], step = step, step * shape[axis]
    return Block("float32", shape, strides, 1, rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("places", ["offset", "ids"])
@pytest.mark.parametrize("k_order", ORDERS)
@pytest.mark.parametrize("q_order", ORDERS)
def test_batches_in_any_order(device, q_order, k_order, places, rng):
    """One call has the bits of a call for each sequence, in place and out of place, by pointers and by arrays."""
    rope, plain = make(device), make("cpu")
    blocks = {"q": batch(rng, q_order, Q_HEADS), "k": batch(rng, k_order, K_HEADS)}
    new = {f"{x}_out": Block("float32", b.shape, b.strides, 1) for x, b in blocks.items()}
    ids = rng.integers(0, 2**20, (SEQUENCES, LENGTH))
    want = {x: b.view().copy() for x, b in blocks.items()}
    for i in range(SEQUENCES):
        where = {"offset": 9} if places == "offset" else {"positions": ids[i]}
        plain.apply(want["q"][i], want["k"][i], **where)
    where = {"offset": 9} if places == "offset" else {"positions": index(ids.ravel())}
    where["sequence_length"] = LENGTH
    for rest in ({}, new):
        flats = call(rope, blocks | rest | where, SEQUENCES * LENGTH)
        for x in "qk":
            name = f"{x}_out" if rest else x
            block = rest.get(name, blocks[x])
            assert equal(block.view(flats[name]), want[x])
            block.view(flats[name])[...] = block.view()
            assert equal(flats[name], block.flat)
    if device == "cpu":
        arrays = [b.view().copy(order="K") for b in blocks.values()]
        plain.apply(
            *arrays, **({"offset": 9, "sequence_length": LENGTH} if places == "offset" else {"positions": ids.ravel()})
        )
        assert all(equal(x, want[name]) for name, x in zip("qk", arrays, strict=True))


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast(device, dtype, axes, rng):
    """What is only read may have strides of 0: a k for all heads, the gradient of a sum."""
    shape = [1 if i in axes else n for i, n in enumerate((TOKENS, Q_HEADS, DIM))]
    small = normal_block(rng, dtype, shape)
    strides = [0 if i in axes else s for i, s in enumerate(small.strides)]
    wide = Block(dtype, (TOKENS, Q_HEADS, DIM), strides, flat=small.flat)
    dense = rows_block(dtype, wide.shape, values=wide.view())
    out = rows_block(dtype, wide.shape)
    got, want = (
        run(device, {"q": x, "q_out": out, "offset": 5}, dtype=dtype, num_k_heads=0)["q_out"] for x in (wide, dense)
    )
    assert equal(got, want)


def test_broadcast_arrays(rng):
    k, out, want = rng.standard_normal((TOKENS, 1, DIM)).astype(np.float32), *np.zeros((2, TOKENS, Q_HEADS, DIM), "f4")
    rope = make("cpu")
    rope.apply(np.broadcast_to(k, out.shape), None, q_out=out, offset=3)
    rope.apply(np.repeat(k, Q_HEADS, 1), None, q_out=want, offset=3)
    assert equal(out, want)


# ---- stored twice, not turned, turned and laid out otherwise


@pytest.mark.parametrize("kind", [None, "float8_e4m3fn", "int8", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("in_place", [False, True])
def test_kept_beside_the_cache(device, in_place, dtype, kind, rng):
    """Where k is also stored has a rotation's bits, whatever the cache holds; that has the bits of an append alone."""
    form = kind or dtype
    blocks = qk(rng, dtype)
    blocks |= {"v": normal_block(rng, dtype, (TOKENS, K_HEADS, DIM)), "slots": index(SLOTS), "offset": 11}
    caches = {f"{x}_cache": cache_block(form, 2, 4, K_HEADS, DIM) for x in "kv"}
    scales = {} if kind in (None, "bfloat16") else {"k_scale": 0.03, "v_scale": 0.03}
    kept = {"k_out": blocks["k"]} if in_place else {"k_out": rows_block(dtype, (TOKENS, K_HEADS, DIM))}
    kept["v_out"] = rows_block(dtype, (TOKENS, K_HEADS, DIM))
    options = {"dtype": dtype, "cache": cache(), "k_out_dtype": kind, "v_out_dtype": kind}
    alone = run(device, blocks | caches | scales, **options)
    both = run(device, blocks | caches | scales | kept, **options)
    turned = run(device, {x: blocks[x] for x in ("q", "k", "offset")}, dtype=dtype)
    assert equal(both["q"], alone["q"])
    assert equal(both["k_out"], turned["k"]) and equal(both["v_out"], blocks["v"].view())
    for name in caches:
        assert equal(both[name], alone[name])
    if kind is None:
        held = SLOTS >= 0
        rows = np.divmod(SLOTS[held], 4)
        assert equal(both["k_cache"][rows], both["k_out"][held])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_turns(device, dtype, rng):
    """Appended without a rotation: every bit of any number stays."""
    blocks = {x: bits_block(rng, dtype, (TOKENS, K_HEADS, DIM)) for x in ("k", "v")} | {"slots": index(SLOTS)}
    caches = {f"{x}_cache": cache_block(dtype, 2, 4, K_HEADS, DIM) for x in "kv"}
    got = run(device, blocks | caches, dtype=dtype, cache=cache(), rotary_dim=0)
    held = SLOTS >= 0
    for x in "kv":
        assert equal(got[f"{x}_cache"][np.divmod(SLOTS[held], 4)], blocks[x].view()[held])


def test_normalised_without_a_rotation(device, rng):
    """As at position 0, where a rotation leaves numbers as they are."""
    weights = {f"{x}_weight": index(rng.standard_normal(DIM), np.float32) for x in "qk"}
    blocks = qk(rng) | weights
    norm = pyrope.RMSNorm(eps=1e-5)
    got = run(device, blocks, norm=norm, rotary_dim=0)
    want = run(device, blocks | {"positions": index([0] * TOKENS)}, norm=norm)
    for x in "qk":
        np.testing.assert_array_equal(got[x], want[x])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "out_layout"), LAYOUTS)
@pytest.mark.parametrize("part", [{}, {"rotary_dim": 24, "rotary_offset": 5}])
def test_out_layout(device, part, layout, out_layout, dtype, rng):
    """The bits of a rotation, its pairs elsewhere; and back."""
    blocks = qk(rng, dtype) | outs(dtype) | {"offset": 1000}
    plain = run(device, blocks, dtype=dtype, layout=layout, **part)
    got = run(device, blocks, dtype=dtype, layout=layout, out_layout=out_layout, **part)
    where = part.get("rotary_dim", DIM), part.get("rotary_offset", 0)
    for name in ("q_out", "k_out"):
        assert equal(got[name], ref.relaid(plain[name], layout, out_layout, *where))


# ---- multi-head latent attention


def test_a_nope_part_of_k(device, rng):
    """Prefill: k is [k_nope | k_rope] for each head, of one rope part for all."""
    heads, nope, rope_dim, dtype = 3, 40, 16, "bfloat16"
    rope_part = normal_block(rng, dtype, (TOKENS, 1, rope_dim))
    k = Block(dtype, (TOKENS, heads, rope_dim), (rope_dim, 0, 1), flat=rope_part.flat)
    kv = normal_block(rng, dtype, (TOKENS, heads, nope + 24))
    parts = {
        name: Block(dtype, (TOKENS, heads, n), kv.strides, at, flat=kv.flat)
        for name, at, n in (("k_nope", 0, nope), ("v", nope, 24))
    }
    whole = rows_block(dtype, (TOKENS, heads, nope + rope_dim))
    out = {
        name: Block(dtype, (TOKENS, heads, n), whole.strides, at, flat=whole.flat)
        for name, at, n in (("k_nope_out", 0, nope), ("k_out", nope, rope_dim))
    }
    options = {"head_dim": rope_dim, "num_q_heads": 0, "num_k_heads": heads, "v_head_dim": 24, "k_nope_dim": nope}
    blocks = {"k": k, **parts, **out, "v_out": rows_block(dtype, (TOKENS, heads, 24)), "offset": 7}
    got = run(device, blocks, dtype=dtype, **options)
    want = rope_part.view().copy()
    make("cpu", dtype, head_dim=rope_dim, num_q_heads=0, num_k_heads=1).apply(None, want, offset=7)
    assert equal(got["k_out"], np.repeat(want, heads, 1))
    assert equal(got["k_nope_out"], parts["k_nope"].view()) and equal(got["v_out"], parts["v"].view())


def test_a_nope_part_of_k_in_the_cache(device, rng):
    """A row of a cache is [latent | rope], as the parts are given."""
    latent, rope_dim, dtype, form = 40, 16, "bfloat16", "float8_e4m3fn"
    row = latent + rope_dim
    shape = cache(k_strides=(4 * row, row, row), k_nope_strides=(4 * row, row, row))
    rows = Block(form, (2, 4, 1, row))
    caches = {
        name: Block(form, (2, 4, 1, n), rows.strides, at, flat=rows.flat)
        for name, at, n in (("k_nope_cache", 0, latent), ("k_cache", latent, rope_dim))
    }
    blocks = {
        "k": normal_block(rng, dtype, (TOKENS, 1, rope_dim)),
        "k_nope": normal_block(rng, dtype, (TOKENS, 1, latent)),
    }
    options = {"head_dim": rope_dim, "num_q_heads": 0, "num_k_heads": 1, "k_nope_dim": latent, "cache": shape}
    got = run(
        device, blocks | caches | {"slots": index(SLOTS), "k_scale": 0.02}, dtype=dtype, k_out_dtype=form, **options
    )
    held = SLOTS >= 0
    stored = ref.decode(got["k_nope_cache"][np.divmod(SLOTS[held], 4)])
    scale = float(np.float32(0.02))
    value = ref.scaled(ref.exact(blocks["k_nope"].view()[held]), scale)
    assert ref.within(stored, value, form).all()


# ---- other dtypes


@pytest.mark.parametrize("form", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_of_another_dtype(device, dtype, form, rng):
    """One rounding of the float32 that float32 in and out gives."""
    blocks = qk(rng, dtype) | {"v": normal_block(rng, dtype, (TOKENS, K_HEADS, DIM))}
    wide = {x: rows_block("float32", b.shape, values=b.view().astype(np.float32)) for x, b in blocks.items()}
    rest = {"slots": index(SLOTS), "offset": 3}
    got, want = (
        run(
            device,
            tensors | rest | {f"{x}_cache": cache_block(stored, 2, 4, K_HEADS, DIM) for x in "kv"},
            **{"dtype": own, "cache": cache(), "k_out_dtype": stored, "v_out_dtype": stored},
        )
        for tensors, own, stored in ((blocks, dtype, form), (wide, "float32", "float32"))
    )
    rows = np.divmod(SLOTS[SLOTS >= 0], 4)
    for x in "kv":
        assert equal(got[f"{x}_cache"][rows], want[f"{x}_cache"][rows].astype(ref.storage(form)))


# ---- k of another dtype than q

TWINS = [("float16", "bfloat16"), ("bfloat16", "float16")]


@pytest.mark.parametrize(("dtype", "k_dtype"), TWINS)
@pytest.mark.parametrize("place", ["in", "out", "cache"])
def test_k_of_another_dtype(device, dtype, k_dtype, place, rng):
    """The bits of two calls, one for q and one for k and v, each of a dtype of its own."""
    kv = {x: normal_block(rng, k_dtype, (TOKENS, K_HEADS, DIM)) for x in "kv"}
    q = {"q": normal_block(rng, dtype, (TOKENS, Q_HEADS, DIM)), "q_weight": index(rng.standard_normal(DIM), dtype)}
    kv |= {"k_weight": index(rng.standard_normal(DIM), k_dtype), "v_out": rows_block(k_dtype, (TOKENS, K_HEADS, DIM))}
    options = {"norm": pyrope.RMSNorm()}
    if place != "in":
        q["q_out"] = rows_block(dtype, (TOKENS, Q_HEADS, DIM))
        kv["k_out"] = rows_block(k_dtype, (TOKENS, K_HEADS, DIM))
    if place == "cache":
        options["cache"] = cache()
        kv |= {"slots": index(SLOTS)}
        kv |= {f"{x}_cache": cache_block(k_dtype, 2, 4, K_HEADS, DIM) for x in "kv"}
    got = run(device, q | kv, dtype=dtype, k_dtype=k_dtype, **options)
    want = run(device, q, dtype=dtype, **options) | run(device, kv, dtype=k_dtype, **options)
    for name, x in want.items():
        assert equal(got[name], x), name


@pytest.mark.parametrize(("dtype", "k_dtype"), TWINS)
def test_keys_of_another_dtype_move(device, dtype, k_dtype, rng):
    """Where they lie in a cache, as those of a Rope of their dtype."""
    block = cache_block(k_dtype, 2, 4, K_HEADS, DIM)
    block.view()[...] = rng.standard_normal(block.shape).astype(block.dtype)
    operands = {"k_cache": block, "slots": index(SLOTS), "offset": 3}
    ropes = [make(device, k_dtype, fused=True, cache=cache()),
             make(device, dtype, fused=True, k_dtype=k_dtype, cache=cache())]  # fmt: skip
    want, got = (call(rope, operands, TOKENS, "rotate_cache")["k_cache"] for rope in ropes)
    assert equal(got, want)


def test_k_dtypes_that_are_refused():
    for dtype, k_dtype, allowed in (("float32", "float16", "'float32'"), ("bfloat16", "float32", "'float16' or 'bf")):
        with pytest.raises(ValueError, match=f"^k_dtype: '{k_dtype}', must be {allowed}"):
            make("cpu", dtype, fused=True, k_dtype=k_dtype)
    q, k = np.ones((2, Q_HEADS, DIM), np.float16), np.ones((2, K_HEADS, DIM), np.float16)
    with pytest.raises(TypeError, match=r"^k: dtype float16, must be bfloat16"):
        make("cpu", "float16", fused=True, k_dtype="bfloat16").apply(q, k)
    assert (q == 1).all() and (k == 1).all()
