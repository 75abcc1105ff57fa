"""The pipeline norm -> rotate -> quantise -> append: every pair of its options, against float64 and across backends."""

import numpy as np
import pytest

from kit import cases
from kit.cases import Case
from kit.pairwise import Rows
from kit.reference import QUANTISED

FACTORS = cases.FACTORS | {
    "place": ["in", "q in", "out"],
    "norm": [
        "none",
        "before",
        "after",
        "before f32",
        "after f32 bias",
        "before bias q",
        "before across",
        "after across q",
    ],
    "q_out": ["same", *QUANTISED, *cases.GROUPED],
    "kv_out": ["same", *QUANTISED, *cases.GROUPED],
    "cache": ["none", *cases.FACTORS["cache"]],
    "v": ["none", "as k", "own"],
    "q_nope": [False, True],
}
REFUSED = [
    ("q_out", {"place": ["in", "q in"], "q_out": [*QUANTISED, *cases.GROUPED]}),
    ("k_out", {"place": ["in"], "kv_out": [*QUANTISED, *cases.GROUPED], "cache": ["none"]}),
    *cases.REFUSED,
]
# One scale for the two parts of q, of which each operand knows one: see test_stages_values.py.
APART = {"q_nope": [True], "q_out": QUANTISED, "scale": ["dynamic", "groups"]}
# v of 40 elements, the nope part of q of 24.
UNEVEN = [
    *cases.not_grouped("q_out"),
    *cases.not_grouped("kv_out"),
    {"v": ["own"], "kv_out": cases.GROUPED},
    {"v": ["own"], "scale": ["groups"]},
    {"q_nope": [True], "q_out": cases.GROUPED},
]
ROWS = Rows(FACTORS, [*(rule for _, rule in REFUSED), APART, cases.SHARED, *UNEVEN], seed=1)


def test_every_pair_is_covered():
    assert ROWS.uncovered() == []


@pytest.mark.parametrize("number", range(len(ROWS)), ids=ROWS.name)
def test_pairs(device, number):
    Case(ROWS[number], np.random.default_rng(number)).run(device)


@pytest.mark.parametrize("number", range(2 * len(REFUSED)))
def test_refused_pairs(device, number):
    """Two rows for each rule that break it and no other; nothing is written."""
    name, rule = REFUSED[number // 2]
    Case(ROWS.breaking(rule, number)[number % 2], np.random.default_rng(number)).is_refused(device, name)
