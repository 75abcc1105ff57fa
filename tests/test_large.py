"""More than 2^31 elements: far rows, and many of them."""

import numpy as np
import pytest

from kit.blocks import call, equal, normal_block, rows_block
from kit.memory import Room, memory_of, real_device
from kit.ropes import make

FAR = 2**31 + 64


@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize(
    ("shape", "token_stride", "head_stride"),
    [((2, 3, 64), FAR, 64), ((2, 3, 64), -FAR, 64), ((3, 2, 64), 64, FAR), ((2, 3, 64), FAR, 80)],
    ids=["far tokens", "far tokens backwards", "far heads", "far tokens, padded"],
)
def test_beyond_32_bits(device, shape, token_stride, head_stride, layout, rng):
    rope = make(device, "bfloat16", num_q_heads=shape[1], layout=layout)
    x = normal_block(rng, "bfloat16", shape)
    want = x.view(call(rope, {"q": x, "offset": 5})["q"])
    room = Room(device, 2 * FAR + (1 << 20))
    base = 2 * FAR if token_stride < 0 else 0
    places = [(t, h, base + 2 * (t * token_stride + h * head_stride)) for t in range(shape[0]) for h in range(shape[1])]
    for t, h, at in places:
        room.put(at, np.ascontiguousarray(x.view()[t, h]))
    rope.apply(room.address + base, None, shape[0], q_strides=(token_stride, head_stride), offset=5)
    for t, h, at in places:
        assert equal(room.get(at, want[t, h]), want[t, h])
    out, memory = rows_block("bfloat16", shape), memory_of(device)
    back, strides = memory.put(out.flat), (token_stride, head_stride)
    rope.inverse(room.address + base, None, shape[0], q_strides=strides, offset=5, q_out=memory.pointer(back))
    again = rows_block("bfloat16", shape, values=want)
    assert equal(out.view(memory.get(back)), again.view(call(rope, {"q": again, "offset": 5}, method="inverse")["q"]))


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("in_place", [True, False])
def test_many_elements(in_place, rng):
    """2^31 elements and more in one call, contiguous."""
    heads, dim = 16, 128
    tokens = 2**31 // (heads * dim) + 5
    rope = make("cuda", "bfloat16", head_dim=dim, num_q_heads=heads)
    row = heads * dim * 2
    room = Room("cuda", tokens * row)
    out = room if in_place else Room("cuda", tokens * row)
    x = normal_block(rng, "bfloat16", (8, heads, dim))
    starts = [0, tokens // 2, tokens - 8]
    for start in starts:
        room.put(start * row, np.ascontiguousarray(x.view()))
    rope.apply(room.address, None, tokens, offset=3, q_out=out.address)
    for start in starts:
        want = x.view(call(rope, {"q": x, "offset": 3 + start})["q"])
        assert equal(out.get(start * row, want), want)
