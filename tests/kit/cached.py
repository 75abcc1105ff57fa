"""Calls of rotate_cache from a row of options, which are those of the pipeline and how the keys are stored."""

import numpy as np

import pyrope
from kit import cases, groups
from kit import reference as ref
from kit.blocks import cache_block
from kit.cases import Case
from kit.checks import SCALES, Output

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
RULES = [*(rule for _, rule in REFUSED), cases.SHARED, *cases.not_grouped("form")]


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
        shape = self.num_pages, self.page_size, self.k_heads, self.choose_groups(o, d)
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
            self.make_scale(o, self.k_heads, self.num_pages * self.page_size)
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
        self.make_groups(o, self.k_heads, d)
        x = self.rng.standard_normal((self.num_pages, self.page_size, self.k_heads, d)).astype(np.float32)
        tensor_scale = self.scalars.get("k_tensor_scale", 1.0)
        codes, scales = groups.encode(x, o.groups, tensor_scale)
        block.view()[...] = codes
        if scales is not None:
            self.blocks["k_scale"].view()[...] = scales
        value = groups.decode(codes, scales, o.groups, tensor_scale)[o.rows]
        return value, 2 * ref.U * np.abs(value)

    def check(self, flats):
        """Besides: unless the scale changes, what is not rotated keeps its bits."""
        super().check(flats)
        if self.outputs["k"].groups or (self.row["form"] != "same" and self.row["scale"] == "dynamic"):
            return
        block = self.blocks["k_cache"]
        before, after = (block.view(f).view(f"u{block.dtype.itemsize}") for f in (block.flat, flats["k_cache"]))
        for part in (slice(self.rotary_offset), slice(self.rotary_offset + self.rotary_dim, None)):
            np.testing.assert_array_equal(after[..., part], before[..., part])
