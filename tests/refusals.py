"""What the tables of refusals share."""

import re

import pytest

import pyrope

V, T = ValueError, TypeError
HAS_CUDA = any(row[0] == "cuda" for row in pyrope.supported())
TOKENS, Q_HEADS, K_HEADS, DIM = 3, 2, 1, 64


def make(device="cpu", **options):
    shape = {"head_dim": DIM, "num_q_heads": Q_HEADS, "num_k_heads": K_HEADS}
    return pyrope.Rope(**shape | {"dtype": "float32", "device": device} | options)


# An argument or a field of one, or two arguments.
NAME = re.compile(r"[a-z]\w*(\\?\.\w+)*( of \w+| and \w+| \\\(default: head_dim\\\))?: ")


def refused(error, text):
    """The context of a call that is refused with a text which begins with the name of an argument, as all must."""
    assert NAME.match(text) and "|" not in re.sub(r"\([^()]*\)", "", text), text
    return pytest.raises(error, match=f"^{text}")


def rows(*table):
    """(id, ...) rows as pytest parameters."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]
