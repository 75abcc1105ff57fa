"""cos and sin as a rope has them."""

import numpy as np

from kit.blocks import call, rows_block
from kit.ropes import make

EDGES = [0, 1, 2, 1023, 2**16 - 1, 2**23 + 1, 2**24 + 1, 2**27 + 3, 2**30 + 7, 2**31 - 2, 2**31 - 1]


def one_head(device, **options):
    return make(device, **{"head_dim": 128, "num_q_heads": 1, "num_k_heads": 0} | options)


def cos_sin_by(rope, positions):
    """What the library makes of cos and sin, [tokens, pairs] each: read off by rotating (1, 0)."""
    positions = np.asarray(positions)
    positions = positions.astype(np.int64 if positions.dtype.kind == "i" else np.float32)
    x = rows_block("float32", (len(positions), 1, rope.rotary_dim), values=0)
    x.view()[..., : rope.rotary_dim // 2] = 1
    y = x.view(call(rope, {"q": x, "positions": positions})["q"])[:, 0]
    return np.split(y.astype(np.float64), 2, axis=1)


def largest_error(got, want):
    return max(np.abs(g - w).max() for g, w in zip(got, want, strict=True))
