"""Keys turned where they lie in a cache: against float64, across backends, and against appending them anew."""

import ml_dtypes
import numpy as np
import pytest
import stages_reference as ref
from memory import HostMemory, memory_of
from pairwise import all_pairs, breaking, pairs_of, refused
from stages import K_HEADS, SCALES, Block, Case, Output, call

import pyrope

FACTORS = {
    "dtype": ["float32", "float16", "bfloat16"],
    "layout": ["neox", "gptj"],
    "angle": ["exact", "fp32", "cos_sin"],
    "positions": ["offset", "ids32", "ids64", "ragged32", "ragged64", "sections64", "sections32", "interleaved64"],
    "form": ["same", "float8_e4m3fn", "float8_e5m2", "int8"],
    "scale": ["host", "tensor", "head", "token", "dynamic"],
    "cache": ["slots32", "slots64", "indptr32", "indptr64", "stride32", "stride64"],
    "cache_layout": ["NHD", "HND"],
    "pages": [(11, 5), (11, 8), (13, 16)],
    "memory": ["dense", "padded", "odd"],
    "rotary": ["full", "partial"],
    "head_dim": [64, 128, 80, 20, 6],
    "tokens": [1, 3, 40],
    "inverse": [False, True],
    "origin": [False, True],
    "sets": ["none", "plain", "factors"],
    "xpos": ["none", "plain", "centered"],
}
REFUSED = [  # the argument that the refusal names, and what together is refused
    ("positions_from", {"angle": ["cos_sin"], "origin": [True]}),
    ("positions", {"positions": ["offset", "ragged32", "ragged64"], "origin": [True]}),
    ("positions_from", {"positions": ["sections64", "sections32", "interleaved64"], "origin": [True]}),
    ("frequency_sets", {"angle": ["cos_sin"], "sets": ["plain", "factors"]}),
]
# Refused by the constructor: see test_stages_refusals.py.
SHARED = {"angle": ["cos_sin"], "xpos": ["plain", "centered"]}
RULES = [*(rule for _, rule in REFUSED), SHARED]
ROWS, IMPOSSIBLE = all_pairs(FACTORS, RULES, np.random.default_rng(2))
FORMS = list(FACTORS["form"])
QUANTISED = FORMS[1:]


def finite_codes(form):
    codes = np.arange(256, dtype=np.uint8)
    return codes[np.isfinite(ref.decode(codes.view(ref.storage(form))))]


def key_block(form, pages, page_size, heads, d, layout="NHD", memory="dense"):
    """[page, entry, head, dim] and its strides: contiguous, padded to multiples of 8, or nowhere aligned."""
    pad, offset = {"dense": (0, 0), "padded": (8, 16), "odd": (1, 1)}[memory]
    if layout == "NHD":
        head = d + pad
        entry = heads * head + 3 * pad
        strides = page_size * entry, entry, head
    else:
        entry = d + pad
        head = page_size * entry + 5 * pad
        strides = heads * head, entry, head
    return Block(ref.storage(form), (pages, page_size, heads, d), (*strides, 1), offset), strides


class CacheCase(Case):
    """A row of options as a call of rotate_cache on a cache of keys."""

    def __init__(self, row, rng):
        super().__init__(row | {"norm": "none"}, rng)
        self.method = "rotate_cache"
        if row["inverse"]:
            self.scalars["inverse"] = True

    def make_tensors(self):
        row, d, form = self.row, self.head_dim, self.row["form"]
        o = self.outputs["k"] = Output("k_cache", "k", row["dtype"] if form == "same" else form)
        shape = self.num_pages, self.page_size, K_HEADS, d
        block, strides = key_block(o.format, *shape, row["cache_layout"], row["memory"])
        cache = self.options["cache"]
        self.options["cache"] = pyrope.PagedCache(
            self.page_size, self.num_pages, cache.layout, cache.index_dtype, strides
        )
        self.blocks["k_cache"] = block
        o.tokens = np.flatnonzero(self.slots >= 0)
        o.scale_rows = self.slots[o.tokens]
        o.rows = tuple(np.divmod(o.scale_rows, self.page_size))
        if form == "same":
            block.view()[...] = self.rng.standard_normal(shape).astype(block.dtype)
            value = ref.decode(block.view()[o.rows])
            value = value, np.zeros(value.shape)
        else:
            block.view().view(np.uint8)[...] = self.rng.choice(finite_codes(form), shape)
            self.make_scale(o, K_HEADS, self.num_pages * self.page_size)
            scale = o.scale
            if row["scale"] == "dynamic":
                scales = self.blocks["k_scale"]
                scales.view()[...] = SCALES[form] * self.rng.uniform(0.5, 2, scales.shape)
                scale = scales.view()[o.scale_rows].astype(np.float64)[..., None]
            value = ref.decode(block.view()[o.rows]) * scale
            value = value, ref.U * np.abs(value)  # one rounding of the product
        o.value = self.rotate(value, "k", o.tokens)

    def check_rest(self, flats):
        """Unless the scale changes, what is not rotated keeps its bits."""
        if self.row["form"] != "same" and self.row["scale"] == "dynamic":
            return
        block = self.blocks["k_cache"]
        before, after = (block.view(f).view(f"u{block.dtype.itemsize}") for f in (block.flat, flats["k_cache"]))
        for part in (slice(self.rotary_offset), slice(self.rotary_offset + self.rotary_dim, None)):
            np.testing.assert_array_equal(after[..., part], before[..., part])


def test_every_pair_is_covered():
    pairs = set().union(*map(pairs_of, ROWS))
    items = [(name, value) for name in FACTORS for value in FACTORS[name]]
    for i, a in enumerate(items):
        for b in items[i + 1 :]:
            if a[0] != b[0] and not refused(dict((a, b)), RULES):
                assert tuple(sorted((a, b))) in pairs
    assert not any(refused(row, RULES) for row in ROWS)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda i: "-".join(map(str, (i, *ROWS[i].values()))))
def test_pairs(device, number):
    case = CacheCase(ROWS[number], np.random.default_rng(number))
    case.check_rest(case.run(device))


@pytest.mark.parametrize("number", range(2 * len(REFUSED)))
def test_refused_pairs(device, number):
    """Two rows for each rule that break it and no other; nothing is written."""
    text, rule = REFUSED[number // 2]
    row = breaking(rule, FACTORS, RULES, np.random.default_rng(number))[number % 2]
    case = CacheCase(row, np.random.default_rng(number))
    call(case.rope(device), case.blocks, case.scalars, case.tokens, case.method, refused=f"^{text}: ")


# ---- any bits


def any_bits(rng, form, scale, heads, d, memory, tokens=5, page_size=4, layout="NHD"):
    """Options, blocks and scalars of a call on a cache of random bits, its scales among them."""
    block, strides = key_block(form, 3, page_size, heads, d, layout, memory)
    block.flat[...] = rng.integers(0, 256, block.flat.size, np.uint8)
    blocks = {
        "k_cache": block,
        "slots": Block(np.int64, (tokens,), values=rng.permutation(3 * page_size)[:tokens]),
        "positions": Block(np.int64, (tokens,), values=rng.integers(-(2**62), 2**62, tokens)),
        "positions_from": Block(np.int64, (tokens,), values=rng.integers(-(2**62), 2**62, tokens)),
    }
    options, scalars = {"cache": pyrope.PagedCache(page_size, 3, layout, k_strides=strides)}, {}
    if form in QUANTISED:
        options |= {"k_out_dtype": form, "k_scale_kind": "tensor" if scale == "host" else scale}
        shape = {"tensor": (1,), "head": (heads,), "token": (tokens,), "dynamic": (3 * page_size, heads)}
        if scale == "host":
            scalars["k_scale"] = 0.37
        else:
            blocks["k_scale"] = Block(np.float32, shape[scale])
            scales = np.ldexp(rng.uniform(1, 2, shape[scale]), rng.integers(-20, 20, shape[scale]))
            blocks["k_scale"].view()[...] = scales
            blocks["k_scale"].view().ravel()[::5] = rng.integers(0, 2**32, np.size(scales), np.uint32).view(np.float32)[
                ::5
            ]
    return options, blocks, scalars, tokens


def same_on_both(options, blocks, scalars, tokens, heads, d):
    cpu, cuda = (
        call(pyrope.FusedRope(d, 0, heads, device=device, **options), blocks, scalars, tokens, "rotate_cache")
        for device in ("cpu", "cuda")
    )
    assert (cpu["k_cache"] != blocks["k_cache"].flat).any()
    for name, flat in cpu.items():
        np.testing.assert_array_equal(cuda[name], flat, err_msg=f"{name} {d} {options}")


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["dense", "odd"])
@pytest.mark.parametrize(
    ("form", "scale"),
    [(form, "host") for form in FACTORS["dtype"]] + [(form, scale) for form in QUANTISED for scale in FACTORS["scale"]],
)
def test_cuda_equals_cpu_in_every_head_dim(form, scale, memory, rng):
    """NaNs, infinities and every code, with scales that are anything."""
    longer = () if scale == "dynamic" and memory == "odd" else (576, 1024, 2048)
    for d in (*range(2, 132, 2), 160, 256, *longer):
        half = max(2, d // 4 * 2)
        for number, (rotary_dim, offset) in enumerate([(d, 0), (half, 0), (half, (d - half) // 2)]):
            options, *rest = any_bits(rng, form, scale, 1 + 2 * number, d, memory)
            options |= {
                "rotary_dim": rotary_dim,
                "rotary_offset": offset,
                "layout": ("neox", "gptj")[(d // 2 + number) % 2],
            }
            options["dtype"] = "bfloat16" if form in QUANTISED else form
            same_on_both(options, *rest, 1 + 2 * number, d)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 700])
@pytest.mark.parametrize(("form", "scale"), [("bfloat16", None), ("float32", None), ("float8_e4m3fn", "head"),
                                             ("int8", "dynamic")])  # fmt: skip
def test_cuda_equals_cpu_at_many_sizes(form, scale, tokens, rng):
    for heads in (1, 8, 40):
        options, *rest = any_bits(rng, form, scale, heads, 128, "dense", tokens, 256)
        same_on_both(options | {"dtype": "float32" if scale else form}, *rest, heads, 128)


@pytest.mark.gpu
def test_more_heads_than_a_grid_is_high(rng):
    heads, d = 65535 + 7, 256
    options, *rest = any_bits(rng, "int8", "head", heads, d, "odd", 1, 1)
    same_on_both(options, *rest, heads, d)


@pytest.mark.parametrize("form", QUANTISED)
def test_every_code_keeps_its_place(device, form):
    """Turned by nothing, each number is itself again, whatever the scale; a NaN is the NaN that quantising gives."""
    codes = np.arange(256, dtype=np.uint8)
    number = ref.decode(codes.view(ref.storage(form)))
    finite = np.isfinite(number)
    pairs = np.zeros((256, 2), np.uint8)
    pairs[:, 0] = codes
    for scale in (1.0, 0.0123, 3e-6, 7e4):
        block = Block(ref.storage(form), (1, 256, 1, 2))
        block.view().view(np.uint8)[0, :, 0] = pairs
        slots, ids = (Block(np.int64, (256,), values=x) for x in (np.arange(256), 1 << 40))
        rope = pyrope.FusedRope(2, 0, 1, device=device, k_out_dtype=form, cache=pyrope.PagedCache(256, 1))
        blocks = {"k_cache": block, "slots": slots, "positions": ids, "positions_from": ids}
        flats = call(rope, blocks, {"k_scale": scale}, 256, "rotate_cache")
        got = block.view(flats["k_cache"])[0, :, 0]
        np.testing.assert_array_equal(ref.decode(got[finite, 0]), number[finite])
        np.testing.assert_array_equal(got.view(np.uint8)[finite, 1], 0)
        assert (got.view(np.uint8)[np.isnan(number), 0] == 0x7F).all()


@pytest.mark.parametrize("form", QUANTISED)
def test_dynamic_scales_of_zeros_and_nans(device, form):
    """As when they were appended: a row of zeros has scale 1; NaNs are passed over."""
    nan = 0x7F if form != "int8" else 0
    block, scales = (
        Block(ref.storage(form), (1, 4, 1, 8)),
        Block(np.float32, (4, 1), values=[[3], [3], [0.5], [np.nan]]),
    )
    codes = block.view().view(np.uint8)[0, :, 0]
    codes[...] = 0
    codes[1], codes[2, 5], codes[2, 7], codes[3] = nan, np.float32(7).astype(block.dtype).view(np.uint8), nan, 1
    rope = pyrope.FusedRope(8, 0, 1, rotary_dim=2, device=device, k_out_dtype=form, k_scale_kind="dynamic",
                            cache=pyrope.PagedCache(4, 1))  # fmt: skip
    blocks = {"k_cache": block, "k_scale": scales, "slots": Block(np.int64, (4,), values=np.arange(4))}
    flats = call(rope, blocks, {}, 4, "rotate_cache")
    got, top = block.view(flats["k_cache"])[0, :, 0], np.float32(ref.FORMATS[form][2])
    np.testing.assert_array_equal(scales.view(flats["k_scale"]).ravel(), np.float32([1, 1, 3.5 / top, 1]))
    want = np.zeros((4, 8), np.uint8)
    want[1], want[2, 5], want[2, 7], want[3] = nan, top.astype(block.dtype).view(np.uint8), nan, nan
    np.testing.assert_array_equal(ref.decode(got), ref.decode(want.view(got.dtype)))
    np.testing.assert_array_equal(got.view(np.uint8)[1], want[1])


# ---- against appending


def half_step(value, form):
    """How far a rounding to a format moves numbers that do not saturate."""
    y, error = value
    mantissa, least, _, _ = ref.FORMATS[form]
    if mantissa is None:
        return np.full(y.shape, 0.5)
    exponent = np.maximum(np.frexp(np.abs(y) + error)[1] - 1, least)
    return np.ldexp(0.5, exponent - mantissa)


@pytest.mark.parametrize("scale", ["host", "dynamic"])
@pytest.mark.parametrize("form", FORMS)
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
    slots = Block(np.int64, (tokens,), values=rng.permutation(40)[:tokens])
    thetas = (1e4, 1e6)

    def run(method, ids, cache, scales, set_number, **more):
        blocks = {"k_cache": cache, "slots": slots, "positions": Block(np.int64, (tokens,), values=ids)} | more
        if dynamic:
            blocks["k_scale"] = scales
        if sets:
            words = [pyrope.Rope(rotary, 0, 1, theta=theta, device="cpu").frequencies for theta in thetas]
            blocks["frequency_sets"] = Block(np.uint64, (2, rotary // 2), values=np.stack(words))
            blocks["set_ids"] = Block(np.int32, (tokens,), values=set_number)
            scalars["num_sets"] = 2
        flats = call(rope, blocks, scalars, tokens, method)
        cache.flat, scales.flat = flats["k_cache"], flats.get("k_scale", scales.flat)

    def keys():
        return Block(np.float16, x.shape, values=x)

    def empty():
        return Block(ref.storage(stored), (5, 8, heads, d)), Block(np.float32, (40, heads))

    def numbers(cache, scales):
        rows_of = np.divmod(slots.view(), 8)
        unit = scales.view()[slots.view()].astype(np.float64)[..., None] if dynamic else scalars.get("k_scale", 1.0)
        return cache.view()[rows_of], unit

    def turn(value, turns):
        return ref.rotate(value, *ref.cos_sin(turns), layout, rotary, first)

    def store(value, unit):
        """With the error of its rounding, and of the product that it is read with."""
        scaled = ref.scaled(value, unit)
        error = (scaled[1] + half_step(scaled, stored)) * unit
        return value[0], error + ref.U * (np.abs(value[0]) + error)

    moved, appended = empty(), empty()
    run("apply", old, *moved, 0, k=keys())
    _, first_unit = numbers(*moved)
    origin = {"positions_from": Block(np.int64, (tokens,), values=old)}
    if sets:
        origin["set_ids_from"] = Block(np.int32, (tokens,), values=0)
    run("rotate_cache", new, *moved, int(sets), **origin)
    run("apply", new, *appended, int(sets), k=keys())

    turns_old, turns_new = (
        ref.phases(np.repeat(p[:, None], rotary // 2, axis=1), "exact", rotary, theta)
        for p, theta in ((old, thetas[0]), (new, thetas[sets]))
    )
    value = ref.decode(x), np.zeros(x.shape)
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
    ids = {"slots": Block(np.int64, (tokens,), values=[7, 0, 11, 3, 4, 9])}
    ids["positions"] = Block(np.int64, (tokens,), values=rng.integers(0, 1 << 30, tokens))
    cache = Block(np.float32, (3, 4, 2, d))
    appended = call(rope, ids | {"k": Block(np.float32, x.shape, values=x), "k_cache": cache}, {}, tokens)["k_cache"]
    cache.view()[np.divmod(ids["slots"].view(), 4)] = x
    plain = cache.flat.copy()
    cache.flat = call(rope, ids | {"k_cache": cache}, {}, tokens, "rotate_cache")["k_cache"]
    np.testing.assert_array_equal(cache.flat, appended)
    back = call(rope, ids | {"k_cache": cache}, {"inverse": True}, tokens, "rotate_cache")["k_cache"]
    # Two rotations, each within 3.5e-7 of a pair's length (stages_reference.py) and one more rounding.
    assert np.abs(cache.view(back) - cache.view(plain)).max() <= 8e-7 * np.abs(x).max() * 2**0.5


def test_rows_shared_with_values(device, rng):
    """Latent attention: the key's part of each row turns, the latent beside it is not touched."""
    tokens, latent, rope_dim = 5, 40, 16
    row = latent + rope_dim
    strides = (4 * row, row, row)
    for form in ("bfloat16", "float8_e4m3fn"):
        options = {"k_out_dtype": form} if form in QUANTISED else {}
        rope = pyrope.FusedRope(rope_dim, 3, 1, dtype="bfloat16", device=device, **options,
                                cache=pyrope.PagedCache(4, 3, k_strides=strides, v_strides=strides))  # fmt: skip
        slots, ids = np.array([7, 0, -1, 11, 9]), np.arange(5) * 1000
        cache = rng.standard_normal((12, row)).astype(ref.storage(form))
        want = cache.copy()
        alone = pyrope.FusedRope(rope_dim, 0, 1, dtype="bfloat16", device="cpu", **options,
                                 cache=pyrope.PagedCache(12, 1))  # fmt: skip
        part = np.ascontiguousarray(cache[:, latent:]).reshape(1, 12, 1, rope_dim)
        bytes_of = part.view(f"u{part.itemsize}")
        alone.rotate_cache(part.ctypes.data, tokens, slots=slots, positions=ids)
        want[:, latent:] = bytes_of.view(part.dtype).reshape(12, rope_dim)
        memory = memory_of(device)
        buffers = [memory.put(x) for x in (cache.view(np.uint8), slots, ids)]
        at = [memory.pointer(b) for b in buffers]
        rope.rotate_cache(at[0] + latent * part.itemsize, tokens, slots=at[1], positions=at[2])
        np.testing.assert_array_equal(memory.get(buffers[0]).view(np.uint8), want.view(np.uint8))


def test_caches_beyond_2_31_elements(device, rng):
    if not isinstance(memory_of(device), HostMemory):
        pytest.skip("would need that much of the device's memory")
    stride, d = 2**30, 16
    cache = np.zeros(3 * stride, np.int8)
    pages = pyrope.PagedCache(4, 3, k_strides=(stride, 2 * d, d))
    rope = pyrope.FusedRope(d, 0, 2, device=device, k_out_dtype="int8", cache=pages)
    begin = 2 * stride + 3 * 2 * d
    cache[begin : begin + d] = 100
    slots, positions = np.array([11]), np.array([5])
    rope.rotate_cache(cache.ctypes.data, 1, slots=slots.ctypes.data, positions=positions.ctypes.data)
    want = np.full((1, 1, 1, d), 100, np.int8)
    pyrope.FusedRope(d, 0, 1, device="cpu", k_out_dtype="int8", cache=pyrope.PagedCache(1, 1)).rotate_cache(
        want, slots=np.array([0]), positions=np.array([5])
    )
    np.testing.assert_array_equal(cache[begin : begin + d], want.ravel())
    assert not cache[begin - 4096 : begin].any() and not cache[begin + d : begin + 4096].any()


# ---- calls


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_arrays(layout, rng):
    """Arrays bring num_tokens and strides; a float8 array of any one-byte dtype."""
    shape = (3, 4, 2, 32) if layout == "NHD" else (3, 2, 4, 32)
    cache = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    rope = pyrope.FusedRope(32, 0, 2, device="cpu", k_out_dtype="float8_e4m3fn", k_scale_kind="dynamic",
                            cache=pyrope.PagedCache(4, 3, layout))  # fmt: skip
    scales, skipped = np.ones((12, 2), np.float32), np.zeros(1, np.int64)
    call = {"positions": np.array([9, 8, 7]), "k_scale": scales, "cache_skipped": skipped}
    results = []
    for where in (
        {"slots": np.array([0, 5, 12])},
        {"page_table": np.array([[0, 1, 3]], np.int32), "request_ids": np.zeros(3, np.int32),
         "cache_positions": np.array([0, 5, 8])},
    ):  # fmt: skip
        got = cache.view(np.uint8).copy()
        scales[...] = 1
        rope.rotate_cache(got, **call, **where)
        results.append((got, scales.copy()))
    assert (results[0][0] == results[1][0]).all() and (results[0][1] == results[1][1]).all() and skipped == 2
    moved = np.moveaxis(results[0][0] != cache.view(np.uint8), 1 if layout == "NHD" else 2, 1).any((2, 3)).ravel()
    assert list(np.flatnonzero(moved)) == [0, 5]
    assert rope.rotate_cache(results[0][0], 0, slots=np.zeros(0, int), k_scale=scales) is None


def test_launches_and_threads(device, rng):
    """The same bits however it is run."""
    cache, slots = rng.standard_normal((3, 256, 2, 32)).astype(np.float32), rng.permutation(768)
    memory = memory_of(device)
    ways = {
        "cpu": ({}, {"num_threads": 1}, {"num_threads": 5}),
        "cuda": ({}, {"enable_pdl": True}, {"enable_pdl": True, "positions_ready": True}),
    }
    results = []
    for options in ways[device]:
        buffers = memory.put(cache), memory.put(slots)
        rope = pyrope.FusedRope(32, 0, 2, dtype="float32", device=device, cache=pyrope.PagedCache(256, 3), **options)
        rope.rotate_cache(memory.pointer(buffers[0]), 768, slots=memory.pointer(buffers[1]))
        results.append(memory.get(buffers[0]))
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert (results[0] != cache).any()
