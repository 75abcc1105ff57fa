"""The pipeline norm -> rotate -> quantise -> append: every pair of its options, against float64 and across backends."""

import numpy as np
import pytest

from kit.cases import Case
from kit.pairwise import Rows
from kit.stages import FACTORS, REFUSED, RULES

ROWS = Rows(FACTORS, RULES, seed=1)


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
