"""Where a case's operands go, and the comparison of what is there after the call."""

import numpy as np

from kit import reference as ref
from kit.blocks import check_rows

SCALES = {"float8_e4m3fn": 0.008, "float8_e5m2": 0.00007, "int8": 0.023}  # the largest of normal numbers saturate


class Output:
    """Where an operand goes: the block's name and rows of it, for which tokens, in which format, with what scale."""

    def __init__(self, where, operand, form):
        self.where, self.operand, self.format, self.scale = where, operand, form, None
        self.copies = False  # a token that is left alone is there as it came


class Checked:
    """The comparison of a Case (kit.cases), which has the row, the blocks, the counters and the outputs."""

    def check(self, flats):
        """The buffers after a call hold what they must, and nothing else of them has changed."""
        rest = dict(flats)
        for name, count in self.counters.items():
            assert rest.pop(name).view(np.int64)[0] == count, name
        for name, o in self.outputs.items():
            scale, value = o.scale, o.value
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
