"""Tables of cos and sin that Rope.build_cos_sin makes."""

import numpy as np

from kit.blocks import Block, equal
from kit.memory import memory_of


def build(rope, num_rows, dtype="float32", *, merged=False, padding=0, lead=0, **arguments):
    """(cos, sin) as [num_rows, rotary_dim / 2]; the memory around the rows keeps its canaries."""
    memory, pairs = memory_of(rope.device), rope.rotary_dim // 2
    width = 2 * pairs if merged else pairs
    blocks = [Block(dtype, (num_rows, width), (width + padding, 1), lead) for _ in range(1 if merged else 2)]
    buffers = [memory.put(block.flat) for block in blocks]
    places = [
        memory.pointer(buffer) + lead * block.dtype.itemsize for buffer, block in zip(buffers, blocks, strict=True)
    ]
    if "positions" in arguments:
        ids = memory.put(arguments["positions"])
        arguments["positions"] = memory.pointer(ids)
    stride = width + padding if padding else None
    rope.build_cos_sin(*places, num_rows=num_rows, dtype=dtype, row_stride=stride, **arguments)
    tables = []
    for buffer, block in zip(buffers, blocks, strict=True):
        flat = memory.get(buffer)
        tables.append(block.view(flat).copy())
        block.view(flat)[...] = block.view()
        np.testing.assert_array_equal(flat, block.flat)
    return np.split(tables[0], 2, axis=1) if merged else tables


def same(tables, others):
    return all(equal(x, y) for x, y in zip(tables, others, strict=True))
