"""The pipeline norm -> rotate -> quantise -> append: every pair of its options, against float64 and across backends."""

import numpy as np
import pytest
from pairwise import all_pairs, breaking, pairs_of, refused
from stages import Case, call

FACTORS = {
    "dtype": ["float32", "float16", "bfloat16"],
    "layout": ["neox", "gptj"],
    "angle": ["exact", "fp32", "cos_sin"],
    "positions": ["offset", "ids32", "ids64", "ragged32", "ragged64", "sections64", "sections32", "interleaved64"],
    "place": ["in", "q in", "out"],
    "memory": ["dense", "padded", "odd"],
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
    "q_out": ["same", "float8_e4m3fn", "float8_e5m2", "int8"],
    "kv_out": ["same", "float8_e4m3fn", "float8_e5m2", "int8"],
    "scale": ["host", "tensor", "head", "token", "dynamic"],
    "cache": ["none", "slots32", "slots64", "indptr32", "indptr64", "stride32", "stride64"],
    "cache_layout": ["NHD", "HND"],
    "v": ["none", "as k", "own"],
    "q_nope": [False, True],
    "rotary": ["full", "partial"],
    "head_dim": [64, 128, 80, 20, 6],
    "tokens": [1, 3, 40],
    "inverse": [False, True],
    "origin": [False, True],
    "sets": ["none", "plain", "factors"],
    "xpos": ["none", "plain", "centered"],
}
QUANTISED = ["float8_e4m3fn", "float8_e5m2", "int8"]
SECTIONS = ["sections64", "sections32", "interleaved64"]
REFUSED = [  # the argument that the refusal names, and what together is refused
    ("q_out", {"place": ["in", "q in"], "q_out": QUANTISED}),
    ("k_out", {"place": ["in"], "kv_out": QUANTISED, "cache": ["none"]}),
    ("positions_from", {"angle": ["cos_sin"], "origin": [True]}),
    ("positions", {"positions": ["offset", "ragged32", "ragged64"], "origin": [True]}),
    ("positions_from", {"positions": SECTIONS, "origin": [True]}),
    ("frequency_sets", {"angle": ["cos_sin"], "sets": ["plain", "factors"]}),
]
# One scale for the two parts of q, of which each operand knows one: see test_stages_values.py.
APART = {"q_nope": [True], "q_out": QUANTISED, "scale": ["dynamic"]}
# Refused by the constructor: see test_stages_refusals.py.
SHARED = {"angle": ["cos_sin"], "xpos": ["plain", "centered"]}
RULES = [*(rule for _, rule in REFUSED), APART, SHARED]
ROWS, IMPOSSIBLE = all_pairs(FACTORS, RULES, np.random.default_rng(1))


def name_of(row):
    return "-".join(str(row[name]) for name in FACTORS)


def test_every_pair_is_covered():
    pairs = set().union(*map(pairs_of, ROWS))
    items = [(name, value) for name in FACTORS for value in FACTORS[name]]
    for i, a in enumerate(items):
        for b in items[i + 1 :]:
            if a[0] != b[0] and not refused(dict((a, b)), RULES):
                assert tuple(sorted((a, b))) in pairs
    assert not any(refused(row, RULES) for row in ROWS)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda i: f"{i}-{name_of(ROWS[i])}")
def test_pairs(device, number):
    case = Case(ROWS[number], np.random.default_rng(number))
    case.run(device)


@pytest.mark.parametrize("number", range(2 * len(REFUSED)))
def test_refused_pairs(device, number):
    """Two rows for each rule that break it and no other; nothing is written."""
    text, rule = REFUSED[number // 2]
    row = breaking(rule, FACTORS, RULES, np.random.default_rng(number))[number % 2]
    case = Case(row, np.random.default_rng(number))
    call(case.rope(device), case.blocks, case.scalars, case.tokens, case.method, refused=f"^{text}: ")
