"""A plain rotation against float64. Whole buffers are compared: gaps between rows, and everything that a call must
leave alone, keep their canaries."""

import numpy as np

from kit import reference
from kit.blocks import call, check_rows, normal_block, rows_block

TOKENS = 3
POSITIONS = np.array([0, 70001, 2**31 - 1])


def cos_sin_for(rope, positions):
    """What cos and sin must be."""
    angles = reference.cos_sin if rope.angle == "exact" else reference.cos_sin_fp32
    cos_sin = angles(positions, reference.base_frequencies(rope.rotary_dim, rope.theta))
    return [rope.attention_factor * x for x in cos_sin]


def check_out(x, out, flat, rope, cos, sin, moved=None):
    """`flat` is the buffer of `out` after a call: x rotated where tokens moved, what it was elsewhere."""
    moved = np.ones(x.shape[0], bool) if moved is None else moved
    # Of a pair's length: 1e-7 for cos and sin and 3 * 2^-24 for float32 arithmetic, with the cross terms.
    relative = 3e-7 / rope.attention_factor
    value = reference.rotate(
        reference.exact(x.view()), cos, sin, rope.layout, rope.rotary_dim, rope.rotary_offset, relative
    )
    check_rows(out, flat, tuple(part[moved] for part in value), rope.dtype, (moved,))


def check_both_ways(rope, rng, place="dense", tokens=TOKENS, positions=POSITIONS, moved=None, **arguments):
    """In place and out of place, apply and inverse."""
    heads = rope.num_q_heads, rope.num_k_heads
    d = rope.head_dim
    q, k = (normal_block(rng, rope.dtype, (tokens, h, d), place) for h in heads)
    outs = [rows_block(rope.dtype, (tokens, h, d), place) for h in heads]
    cos, sin = cos_sin_for(rope, positions)
    operands = {"q": q, "k": k} | (arguments or {"positions": positions})
    in_place = call(rope, operands)
    apart = call(rope, operands | {"q_out": outs[0], "k_out": outs[1]})
    for name, x, out in (("q", q, outs[0]), ("k", k, outs[1])):
        check_out(x, x, in_place[name], rope, cos, sin, moved)
        check_out(x, out, apart[f"{name}_out"], rope, cos, sin, moved)
        np.testing.assert_array_equal(apart[name], x.flat)  # inputs are not written
    back = call(rope, operands, method="inverse")
    for name, x in (("q", q), ("k", k)):
        check_out(x, x, back[name], rope, cos, -sin, moved)
