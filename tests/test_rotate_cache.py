"""Keys turned where they lie in a cache: every pair of the options, against float64 and across backends; and calls."""

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit import cases, groups
from kit import reference as ref
from kit.blocks import Block, cache_block, call
from kit.cases import K_HEADS, SCALES, Case, Output
from kit.memory import HostMemory, memory_of
from kit.pairwise import Rows

FACTORS = cases.FACTORS | {
    "table": ["pairs", "elements"],
    "form": ["same", *ref.QUANTISED, *cases.GROUPED],
    "pages": [(11, 5), (11, 8), (13, 16)],
}
REFUSED = [
    *cases.REFUSED,
    ("num_blocks", {"positions": cases.BLOCKS}),
    ("angle", {"angle": ["cos_sin"], "table": ["elements"]}),
]
ROWS = Rows(FACTORS, [*(rule for _, rule in REFUSED), cases.SHARED, *cases.not_grouped("form")], seed=2)


def finite_codes(form):
    codes = np.arange(256, dtype=np.uint8)
    return codes[np.isfinite(ref.decode(codes.view(ref.storage(form))))]


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
        shape = self.num_pages, self.page_size, K_HEADS, self.choose_groups(o, d)
        block = cache_block(o.format, *shape, row["cache_layout"], row["memory"])
        cache = self.options["cache"]
        self.options["cache"] = pyrope.PagedCache(
            self.page_size, self.num_pages, cache.layout, cache.index_dtype, block.strides[:3]
        )
        self.blocks["k_cache"] = block
        o.tokens = np.flatnonzero(self.slots >= 0)
        o.scale_rows = self.slots[o.tokens]
        o.rows = tuple(np.divmod(o.scale_rows, self.page_size))
        if form == "same":
            block.view()[...] = self.rng.standard_normal(shape).astype(block.dtype)
            value = ref.exact(block.view()[o.rows])
        elif o.groups:
            value = self.make_grouped_keys(o, block, d)
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

    def make_grouped_keys(self, o, block, d):
        """Keys of normal numbers; what they are once they are stored."""
        self.make_groups(o, K_HEADS, d)
        x = self.rng.standard_normal((self.num_pages, self.page_size, K_HEADS, d)).astype(np.float32)
        tensor_scale = self.scalars.get("k_tensor_scale", 1.0)
        codes, scales = groups.encode(x, o.groups, tensor_scale)
        block.view()[...] = codes
        if scales is not None:
            self.blocks["k_scale"].view()[...] = scales
        value = groups.decode(codes, scales, o.groups, tensor_scale)[o.rows]
        return value, 2 * ref.U * np.abs(value)

    def check_rest(self, flats):
        """Unless the scale changes, what is not rotated keeps its bits."""
        if self.outputs["k"].groups or (self.row["form"] != "same" and self.row["scale"] == "dynamic"):
            return
        block = self.blocks["k_cache"]
        before, after = (block.view(f).view(f"u{block.dtype.itemsize}") for f in (block.flat, flats["k_cache"]))
        for part in (slice(self.rotary_offset), slice(self.rotary_offset + self.rotary_dim, None)):
            np.testing.assert_array_equal(after[..., part], before[..., part])


def test_every_pair_is_covered():
    assert ROWS.uncovered() == []


@pytest.mark.parametrize("number", range(len(ROWS)), ids=ROWS.name)
def test_pairs(device, number):
    case = CacheCase(ROWS[number], np.random.default_rng(number))
    case.check_rest(case.run(device))


@pytest.mark.parametrize("number", range(2 * len(REFUSED)))
def test_refused_pairs(device, number):
    """Two rows for each rule that break it and no other; nothing is written."""
    name, rule = REFUSED[number // 2]
    CacheCase(ROWS.breaking(rule, number)[number % 2], np.random.default_rng(number)).is_refused(device, name)


# ---- calls


def test_rows_shared_with_values(device, rng):
    """Latent attention: the key's part of each row turns, the latent beside it is not touched."""
    tokens, latent, rope_dim = 5, 40, 16
    row = latent + rope_dim
    strides = (4 * row, row, row)
    for form in ("bfloat16", "float8_e4m3fn"):
        options = {"k_out_dtype": form} if form in ref.QUANTISED else {}
        rope = pyrope.FusedRope(rope_dim, 3, 1, dtype="bfloat16", device=device, **options,
                                cache=pyrope.PagedCache(4, 3, k_strides=strides, v_strides=strides))  # fmt: skip
        slots, ids = np.array([7, 0, -1, 11, 9]), np.arange(5) * 1000
        cache = rng.standard_normal((12, row)).astype(ref.storage(form))
        want = cache.copy()
        alone = pyrope.FusedRope(rope_dim, 0, 1, dtype="bfloat16", device="cpu", **options,
                                 cache=pyrope.PagedCache(12, 1))  # fmt: skip
        part = np.ascontiguousarray(cache[:, latent:]).reshape(1, 12, 1, rope_dim)
        alone.rotate_cache(part.ctypes.data, tokens, slots=slots, positions=ids)
        want[:, latent:] = part.reshape(12, rope_dim)
        keys = Block(form, (12, row), (row, 1), latent, flat=cache.view(np.uint8).ravel())
        flats = call(rope, {"k_cache": keys, "slots": slots, "positions": ids}, tokens, "rotate_cache")
        np.testing.assert_array_equal(flats["k_cache"], want.view(np.uint8).ravel())


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
