"""What the tables of refusals share."""

import re

import pytest

from kit.ropes import make

V, T = ValueError, TypeError
TOKENS, Q_HEADS, K_HEADS, DIM = 3, 2, 1, 64  # of the calls, which texts name
ROW = DIM * 4  # bytes of a head


def small(device="cpu", **options):
    return make(device, **{"num_q_heads": Q_HEADS, "num_k_heads": K_HEADS} | options)


# An argument or a field of one, or two arguments.
NAME = re.compile(r"[a-z]\w*(\\?\.\w+)*( of \w+| and \w+| \\\(default: head_dim\\\))?: ")


def refused(error, text):
    """The context of a call that is refused with a text which begins with the name of an argument, as all must."""
    assert NAME.match(text) and "|" not in re.sub(r"\([^()]*\)", "", text), text
    return pytest.raises(error, match=f"^{text}")


def rows(*table):
    """(id, ...) rows as pytest parameters."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def read_only(x):
    x.flags.writeable = False
    return x
