"""Where a case's operands go, and the comparison of what is there after the call."""

import numpy as np

import pyrope
from kit import groups
from kit import reference as ref
from kit.blocks import Block, cache_block, check_rows

SCALES = {"float8_e4m3fn": 0.008, "float8_e5m2": 0.00007, "int8": 0.023}  # the largest of normal numbers saturate


# Stored types that have groups or blocks whatever the scale.
GROUPED = ["mx", "nvfp4", "q8_0"]


class Output:
    """Where an operand goes: the block's name and rows of it, for which tokens, in which format, with what scale."""

    def __init__(self, where, operand, form):
        self.where, self.operand, self.format, self.scale, self.groups = where, operand, form, None, None
        self.copies = False  # a token that is left alone is there as it came


class Checked:
    """The comparison of a Case (kit.cases), which has the row, the blocks, the counters and the outputs."""

    def choose_groups(self, o, d):
        """Whether the output has groups or blocks; elements, or bytes, of a row."""
        if o.format in GROUPED:
            o.groups = groups.PAIRED[o.format]
        elif o.format in SCALES and self.row["scale"] == "groups":
            o.groups = (o.format, *groups.PAIRED["groups"][1:])
        if not o.groups:
            return d
        o.format = np.uint8
        return groups.row_bytes(o.groups[0], d)

    def make_groups(self, o, heads, d):
        """Their scales, laid out as what is stored."""
        (form, size, dtype), x = o.groups, o.operand
        self.options[f"{x}_out_dtype"] = form
        if not dtype:
            return
        self.options[f"{x}_scale_kind"] = pyrope.GroupScales(size, dtype)
        storage = groups.SCALE_STORAGE[dtype]
        if o.where.endswith("_cache"):
            shape = self.num_pages, self.page_size, heads, d // size
            self.blocks[f"{x}_scale"] = cache_block(storage, *shape, self.row["cache_layout"])
        else:
            self.blocks[f"{x}_scale"] = Block(storage, (self.tokens, heads, d // size))
        if dtype == "float8_e4m3fn":
            self.scalars[f"{x}_tensor_scale"] = 1 / 256

    def check(self, flats):
        """The buffers after a call hold what they must, and nothing else of them has changed."""
        rest = dict(flats)
        for name, count in self.counters.items():
            assert rest.pop(name).view(np.int64)[0] == count, name
        for name, o in self.outputs.items():
            scale, value = o.scale, o.value
            if o.groups:
                self.check_groups(name, o, rest)
                continue
            if name in ("q_nope", "k_nope"):
                scale = self.outputs[name[0]].scale
            elif o.format in SCALES and self.row["scale"] == "dynamic":
                scale = o.scale = self.check_dynamic(name, o, rest.pop(f"{name}_scale"))
            value = value if scale is None else ref.scaled(value, scale)
            block, flat = self.blocks[o.where], rest.pop(o.where).copy()
            if block is self.blocks.get(o.operand):
                rest.pop(o.operand, None)
            if o.copies:
                rows = self.rows_of(np.flatnonzero(~self.live))
                source, got = self.blocks[o.operand].view()[rows], block.view(flat)
                np.testing.assert_array_equal(got[rows].view(np.uint8), source.view(np.uint8), err_msg=name)
                got[rows] = block.view()[rows]  # as it was, for the rest of the comparison
            check_rows(block, flat, value, o.format, o.rows)
        for name, flat in rest.items():
            np.testing.assert_array_equal(flat, self.blocks[name].flat, err_msg=name)

    def check_groups(self, name, o, rest):
        """What is stored, with its scales, is the value; the rest of both is what it was."""
        stored = {x: rest.pop(x) for x in (o.where, f"{name}_scale") if x in rest}
        parts = [self.blocks[x].view(flat)[o.rows] for x, flat in stored.items()]
        groups.check_value(parts[0], parts[1] if len(parts) > 1 else None, o.groups, o.value,
                           self.scalars.get(f"{name}_tensor_scale", 1.0))  # fmt: skip
        for x, flat in stored.items():
            block, others = self.blocks[x], flat.copy()
            block.view(others)[o.rows] = block.view()[o.rows]
            np.testing.assert_array_equal(others, block.flat, err_msg=x)

    def check_dynamic(self, name, o, flat):
        """The scales written: [rows, heads, 1]."""
        least, greatest = ref.dynamic_scale(o.value, o.format)
        block = self.blocks[f"{name}_scale"]
        got = block.view(flat)[o.scale_rows].astype(np.float64)
        good = (least <= got) & (got <= greatest)
        assert good.all(), (name, (got / least)[~good][:4])
        rest = flat.copy()
        block.view(rest)[o.scale_rows] = block.view()[o.scale_rows]
        np.testing.assert_array_equal(rest, block.flat)
        return got[..., None]
