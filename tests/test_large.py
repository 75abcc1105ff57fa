"""More than 2^31 elements: far rows, and many of them."""

import mmap

import numpy as np
import pytest
from memory import EMULATED, Tensor, memory_of, run
from objects import equal, real_device

import pyrope


class Room:
    """Much memory, of which little is touched; addresses count bytes from its start."""

    def __init__(self, device, size):
        self.memory = None if device == "cpu" or EMULATED else memory_of(device)
        if self.memory:
            self.address = self.memory.call("cudaMalloc", size)
        else:
            no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
            self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
            self.bytes = np.frombuffer(self.map, np.uint8)
            self.address = self.bytes.ctypes.data

    def put(self, at, array):
        if self.memory:
            kind = self.memory.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            self.memory.call("cudaMemcpy", self.address + at, array.ctypes.data, array.nbytes, kind)
        else:
            self.bytes[at : at + array.nbytes] = array.view(np.uint8).ravel()

    def get(self, at, like):
        result = np.empty_like(like)
        if self.memory:
            kind = self.memory.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.memory.call("cudaMemcpy", result.ctypes.data, self.address + at, result.nbytes, kind)
        else:
            result.view(np.uint8).ravel()[...] = self.bytes[at : at + result.nbytes]
        return result

    def __del__(self):
        if self.memory:
            self.memory.call("cudaFree", self.address)


FAR = 2**31 + 64


@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize(
    ("shape", "token_stride", "head_stride"),
    [((2, 3, 64), FAR, 64), ((2, 3, 64), -FAR, 64), ((3, 2, 64), 64, FAR), ((2, 3, 64), FAR, 80)],
    ids=["far tokens", "far tokens backwards", "far heads", "far tokens, padded"],
)
def test_beyond_32_bits(device, shape, token_stride, head_stride, layout, rng):
    rope = pyrope.Rope(64, shape[1], 0, dtype="bfloat16", layout=layout, device=device)
    x = Tensor("bfloat16", shape, rng=rng)
    want = x.view(run(rope, {"q": x}, offset=5)["q"])
    room = Room(device, 2 * FAR + (1 << 20))
    base = 2 * FAR if token_stride < 0 else 0
    places = [(t, h, base + 2 * (t * token_stride + h * head_stride)) for t in range(shape[0]) for h in range(shape[1])]
    for t, h, at in places:
        room.put(at, np.ascontiguousarray(x.view()[t, h]))
    rope.apply(room.address + base, None, shape[0], q_strides=(token_stride, head_stride), offset=5)
    for t, h, at in places:
        assert equal(room.get(at, want[t, h]), want[t, h])
    out = Tensor("bfloat16", shape)
    back = memory_of(device).put(out.flat)
    rope.inverse(
        room.address + base,
        None,
        shape[0],
        q_strides=(token_stride, head_stride),
        offset=5,
        q_out=memory_of(device).pointer(back),
    )
    again = Tensor("bfloat16", shape)
    again.view()[...] = want
    assert equal(out.view(memory_of(device).get(back)), again.view(run(rope, {"q": again}, "inverse", offset=5)["q"]))


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("in_place", [True, False])
def test_many_elements(in_place, rng):
    """2^31 elements and more in one call, contiguous."""
    heads, dim = 16, 128
    tokens = 2**31 // (heads * dim) + 5
    rope = pyrope.Rope(dim, heads, 0, dtype="bfloat16", device="cuda")
    row = heads * dim * 2
    room = Room("cuda", tokens * row)
    out = room if in_place else Room("cuda", tokens * row)
    x = Tensor("bfloat16", (8, heads, dim), rng=rng)
    starts = [0, tokens // 2, tokens - 8]
    for start in starts:
        room.put(start * row, np.ascontiguousarray(x.view()))
    rope.apply(room.address, None, tokens, offset=3, q_out=out.address)
    for start in starts:
        want = x.view(run(rope, {"q": x}, offset=3 + start)["q"])
        assert equal(out.get(start * row, want), want)
