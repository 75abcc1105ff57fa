"""A small Rope of any kind."""

import pyrope

TOKENS, Q_HEADS, K_HEADS, DIM = 6, 3, 2, 64


def make(device="cpu", dtype="float32", *, fused=False, **options):
    shape = {"head_dim": DIM, "num_q_heads": Q_HEADS, "num_k_heads": K_HEADS}
    return (pyrope.FusedRope if fused else pyrope.Rope)(**shape | {"dtype": dtype, "device": device} | options)
