"""Keys moved in a cache, against appending them anew."""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, call, index, rows_block


def half_step(value, form):
    """How far a rounding to a format moves numbers that do not saturate."""
    y, error = value
    mantissa, least, _, _ = ref.FORMATS[form]
    if mantissa is None:
        return np.full(y.shape, 0.5)
    exponent = np.maximum(np.frexp(np.abs(y) + error)[1] - 1, least)
    return np.ldexp(0.5, exponent - mantissa)


@pytest.mark.parametrize("scale", ["host", "dynamic"])
@pytest.mark.parametrize("form", ["same", *ref.QUANTISED])
@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
def test_moved_keys_are_those_of_their_new_positions(device, layout, sets, form, scale, rng):
    """Append at old positions, move; or append at the new ones. Both are within their roundings of the truth, which for
    moved keys are the stored ones, turned, and another. `sets`: the frequencies change too."""
    tokens, heads, d, rotary, first, dtype = 30, 3, 64, 48, 8, "float16"
    stored = dtype if form == "same" else form
    x = rng.standard_normal((tokens, heads, d)).astype(ref.storage(dtype))
    old, new = rng.integers(0, 1 << 20, (2, tokens))
    shape = {"rotary_dim": rotary, "rotary_offset": first, "layout": layout, "dtype": dtype, "device": device}
    options = shape | {"cache": pyrope.PagedCache(8, 5)}
    dynamic, scalars = form != "same" and scale == "dynamic", {}
    if form != "same":
        options |= {"k_out_dtype": form, "k_scale_kind": scale if dynamic else "tensor"}
        scalars = {} if dynamic else {"k_scale": 8 / ref.FORMATS[form][2]}  # pairs are shorter than 8
    rope = pyrope.FusedRope(d, 0, heads, **options)
    slots = index(rng.permutation(40)[:tokens])
    thetas = (1e4, 1e6)

    def move(method, ids, cache, scales, set_number, **more):
        operands = {"k_cache": cache, "slots": slots, "positions": index(ids)} | scalars | more
        if dynamic:
            operands["k_scale"] = scales
        if sets:
            words = [pyrope.Rope(rotary, 0, 1, theta=theta, device="cpu").frequencies for theta in thetas]
            operands |= {"frequency_sets": np.stack(words), "num_sets": 2}
            operands["set_ids"] = np.full(tokens, set_number, np.int32)
        flats = call(rope, operands, tokens, method)
        cache.flat, scales.flat = flats["k_cache"], flats.get("k_scale", scales.flat)

    def keys():
        return rows_block("float16", x.shape, values=x)

    def empty():
        return Block(stored, (5, 8, heads, d)), Block(np.float32, (40, heads))

    def numbers(cache, scales):
        rows_of = np.divmod(slots.view(), 8)
        unit = scales.view()[slots.view()].astype(np.float64)[..., None] if dynamic else scalars.get("k_scale", 1.0)
        return cache.view()[rows_of], unit

    def turn(value, turns):
        return ref.rotate(value, *ref.cos_sin_of_phases(turns), layout, rotary, first)

    def store(value, unit):
        """With the error of its rounding, and of the product that it is read with."""
        scaled = ref.scaled(value, unit)
        error = (scaled[1] + half_step(scaled, stored)) * unit
        return value[0], error + ref.U * (np.abs(value[0]) + error)

    moved, appended = empty(), empty()
    move("apply", old, *moved, 0, k=keys())
    _, first_unit = numbers(*moved)
    origin = {"positions_from": old}
    if sets:
        origin["set_ids_from"] = np.zeros(tokens, np.int32)
    move("rotate_cache", new, *moved, int(sets), **origin)
    move("apply", new, *appended, int(sets), k=keys())

    turns_old, turns_new = (
        ref.phases(np.repeat(p[:, None], rotary // 2, axis=1), "exact", rotary, theta)
        for p, theta in ((old, thetas[0]), (new, thetas[sets]))
    )
    value = ref.exact(x)
    truth = turn(value, turns_new)
    for (cache, scales), (_, error) in (
        (moved, turn(store(turn(value, turns_old), first_unit), ref.minus(turns_new, turns_old))),
        (appended, truth),
    ):
        got, unit = numbers(cache, scales)
        assert (np.abs(ref.decode(got) * unit - truth[0]) <= store((truth[0], error), unit)[1]).all()


def test_prefix_is_unrotated_and_rotated(device, rng):
    """Without positions_from keys are turned to their positions, bit for bit as appended; inverse, back again."""
    tokens, d = 6, 64
    rope = pyrope.FusedRope(d, 0, 2, dtype="float32", device=device, cache=pyrope.PagedCache(4, 3))
    x = rng.standard_normal((tokens, 2, d)).astype(np.float32)
    ids = {"slots": index([7, 0, 11, 3, 4, 9]), "positions": index(rng.integers(0, 1 << 30, tokens))}
    cache = Block(np.float32, (3, 4, 2, d))
    appended = call(rope, ids | {"k": rows_block("float32", x.shape, values=x), "k_cache": cache}, tokens)["k_cache"]
    cache.view()[np.divmod(ids["slots"].view(), 4)] = x
    plain = cache.flat.copy()
    cache.flat = call(rope, ids | {"k_cache": cache}, tokens, "rotate_cache")["k_cache"]
    np.testing.assert_array_equal(cache.flat, appended)
    back = call(rope, ids | {"k_cache": cache, "inverse": True}, tokens, "rotate_cache")["k_cache"]
    # Two rotations, each within 3.5e-7 of a pair's length (kit/reference.py) and one more rounding.
    assert np.abs(cache.view(back) - cache.view(plain)).max() <= 8e-7 * np.abs(x).max() * 2**0.5


@pytest.mark.parametrize(
    ("form", "scale", "worn", "once"), [("int8", None, 1.1, 0.034), ("float8_e4m3fn", 1.0, 6.6, 0.42)]
)
def test_many_moves_wear_and_their_sum_does_not(device, form, scale, worn, once):
    """What the docstring of rotate_cache warns of: 64 moves of -8, and one of -512; the largest errors, to 10%."""
    tokens, heads, d = 256, 2, 128
    x = np.random.default_rng(0).standard_normal((tokens, heads, d)).astype(np.float32)
    kind = "dynamic" if scale is None else "tensor"
    rope = pyrope.FusedRope(d, 0, heads, dtype="float32", device=device, k_out_dtype=form, k_scale_kind=kind,
                            cache=pyrope.PagedCache(tokens, 1))  # fmt: skip
    slots, positions = index(np.arange(tokens)), 1000 + np.arange(tokens)
    turns = ref.phases(np.repeat(positions[:, None] - 512, d // 2, axis=1), "exact", d, 10000.0)
    truth = ref.rotate(ref.exact(x), *ref.cos_sin_of_phases(turns), "neox", d, 0)[0]
    for moves, largest in ((64, worn), (1, once)):
        blocks = {"slots": slots, "k_cache": Block(form, (1, tokens, heads, d))}
        scales = blocks["k_scale"] = Block(np.float32, (tokens, heads)) if scale is None else scale

        def keep(flats, blocks=blocks):
            for name in flats.keys() & {"k_cache", "k_scale"}:
                blocks[name].flat = flats[name]

        keep(
            call(rope, blocks | {"positions": index(positions), "k": rows_block("float32", x.shape, values=x)}, tokens)
        )
        for move in range(moves):
            at = [index(positions - 512 * n // moves) for n in (move, move + 1)]
            keep(call(rope, blocks | {"positions_from": at[0], "positions": at[1]}, tokens, "rotate_cache"))
        unit = scales.view()[..., None] if scale is None else scale
        error = np.abs(ref.decode(blocks["k_cache"].view()[0]) * unit - truth).max()
        assert abs(error - largest) <= 0.1 * largest
