"""Tensors somewhere in buffers of canaries, and calls with them on either device."""

import numpy as np
import pytest

import pyrope
from kit.memory import memory_of
from kit.places import PLACES, dense, place_of_cache, place_of_sequences
from kit.reference import storage, within

CANARY = 0xA5
OPERANDS = {"apply": ("q", "k"), "inverse": ("q", "k"), "rotate_cache": ("k_cache",)}  # what a method takes first
REFUSALS = (ValueError, TypeError, pyrope.UnsupportedError)


class Block:
    """An array of any shape and strides (in elements) somewhere in a buffer of canaries.

    flat : the buffer, of another block that this one shares it with
    """

    def __init__(self, dtype, shape, strides=None, offset=0, values=None, flat=None):
        self.dtype, self.shape, self.offset = storage(dtype), tuple(shape), offset
        self.strides = tuple(strides or dense(shape))
        reach = offset + sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True)) + 1
        self.flat = np.full((max(reach, 1) + 64) * self.dtype.itemsize, CANARY, np.uint8) if flat is None else flat
        if values is not None:
            self.view()[...] = values

    def view(self, flat=None):
        """The array; with `flat`, that of the same place in another buffer."""
        flat = self.flat if flat is None else flat
        strides = [s * self.dtype.itemsize for s in self.strides]
        bits = flat.view(f"u{self.dtype.itemsize}")[self.offset :]
        return np.lib.stride_tricks.as_strided(bits, self.shape, strides).view(self.dtype)

    def bytes(self, flat=None):
        """Its contents without gaps, as bytes."""
        return np.ascontiguousarray(self.view(flat)).view(np.uint8)


def rows_block(dtype, shape, place="dense", values=None):
    """[tokens, heads, dim] in one of PLACES."""
    return Block(dtype, shape, *PLACES[place](*shape), values)


def sequences_block(dtype, sequences, shape, place="dense", values=None):
    """[tokens, heads, dim] as [sequences, tokens of each, heads, dim], or as it is where it is one sequence."""
    if sequences == 1:
        return rows_block(dtype, shape, place, values)
    apart = (sequences, shape[0] // sequences, *shape[1:])
    values = None if values is None else values.reshape(apart)
    return Block(dtype, apart, *place_of_sequences(place, *apart), values)


def normal_block(rng, dtype, shape, place="dense"):
    """Of normal numbers."""
    return rows_block(dtype, shape, place, rng.standard_normal(shape).astype(storage(dtype)))


def bits_block(rng, dtype, shape, place="dense"):
    """Of any bits, the gaps too: infinities, NaNs and denormals."""
    block = rows_block(dtype, shape, place)
    block.flat[...] = rng.integers(0, 256, block.flat.size, np.uint8)
    return block


def cache_block(dtype, pages, page_size, heads, d, layout="NHD", place="dense"):
    return Block(dtype, (pages, page_size, heads, d), *place_of_cache(layout, page_size, heads, d, place))


def index(values, dtype=np.int64):
    """Integers, or numbers of another dtype, without gaps."""
    return Block(dtype, np.shape(values), values=values)


def call(rope, operands, tokens=None, method="apply", refused=None, error=REFUSALS):
    """Call a method with operands by name: blocks and arrays, moved to the rope's device, and what passes as it is.

    Returns the contents of every block's buffer afterwards; blocks of one buffer share memory.
    tokens : those of the first block, where they are not given
    refused : the text that the call is refused with, which writes nothing
    """
    memory, arguments, buffers = memory_of(rope.device), dict(operands), {}
    blocks = {name: x for name, x in operands.items() if isinstance(x, Block)}
    for name, x in operands.items():
        array = x.flat if name in blocks else x
        if not isinstance(array, np.ndarray):
            continue
        if id(array) not in buffers:
            buffers[id(array)] = memory.put(array)
        arguments[name] = memory.pointer(buffers[id(array)])
        if name in blocks:
            arguments[name] += x.offset * x.dtype.itemsize
            if len(x.shape) == 3 and not name.endswith("_scale"):
                arguments[f"{name}_strides"] = x.strides[:2] if x.strides[2] == 1 else (1, *x.strides)
            elif len(x.shape) == 4 and not name.endswith(("_cache", "_scale")):
                arguments[f"{name}_strides"] = x.strides
    function, first = getattr(rope, method), [arguments.pop(name, None) for name in OPERANDS[method]]
    if tokens is None:
        tokens = next(block.shape[0] for block in blocks.values())
    if refused:
        with pytest.raises(error, match=refused):
            function(*first, tokens, **arguments)
    else:
        function(*first, tokens, **arguments)
    flats = {name: memory.get(buffers[id(block.flat)]) for name, block in blocks.items()}
    for name, flat in flats.items() if refused else ():
        np.testing.assert_array_equal(flat, blocks[name].flat, err_msg=name)
    return flats


def same_on_both(make, operands, tokens=None, method="apply"):
    """What the CPU backend leaves in every buffer, which is what the CUDA backend does. make: a rope of a device."""
    cpu, cuda = (call(make(device), operands, tokens, method) for device in ("cpu", "cuda"))
    for name, flat in cpu.items():
        np.testing.assert_array_equal(cuda[name], flat, err_msg=name)
    return cpu


def check_rows(block, flat, value, name, rows):
    """Rows of a buffer hold a value, and the rest of it is what it was."""
    got = block.view(flat)[rows]
    good = within(got, value, name)
    assert good.all(), (name, got[~good][:4], value[0][~good][:4], value[1][~good][:4], np.argwhere(~good)[:4])
    rest = flat.copy()
    block.view(rest)[rows] = block.view()[rows]
    np.testing.assert_array_equal(rest, block.flat)


def equal(got, want):
    """Whether arrays have the same bits."""
    return np.array_equal(np.ascontiguousarray(got).view(np.uint8), np.ascontiguousarray(want).view(np.uint8))
