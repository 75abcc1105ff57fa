"""What the tables of refusals share."""

import pytest

import pyrope

V, T = ValueError, TypeError
HAS_CUDA = any(row[0] == "cuda" for row in pyrope.supported())
TOKENS, Q_HEADS, K_HEADS, DIM = 3, 2, 1, 64


def make(device="cpu", **options):
    shape = {"head_dim": DIM, "num_q_heads": Q_HEADS, "num_k_heads": K_HEADS}
    return pyrope.Rope(**shape | {"dtype": "float32", "device": device} | options)


def rows(*table):
    """(id, ...) rows as pytest parameters."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]
