"""The options of the whole pipeline, what is refused, and by which argument."""

from kit import cases
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
        "before across ranks",
        "after across q",
        "after across ranks q",
    ],
    "q_out": ["same", "other", *QUANTISED, *cases.GROUPED],
    "kv_out": ["same", "other", *QUANTISED, *cases.GROUPED],
    "cache": ["none", *cases.FACTORS["cache"]],
    "v": ["none", "as k", "own"],
    "q_nope": [False, "q", "k"],
    "memory": [*cases.FACTORS["memory"], "spread"],
    "rotary": [*cases.FACTORS["rotary"], "none"],
    "sequences": [False, True],
    "skipped": ["leave", "copy"],
    "skip_q": [False, True],
    "kept": [False, True],
    "out_layout": ["same", "other"],
    "k_dtype": ["same", "other"],
}
STORED = ["other", *QUANTISED, *cases.GROUPED]
STILL = {"rotary": ["none"]}
OF_Q = ["before bias q", "after across q", "after across ranks q"]
REFUSED = [
    ("q_out", {"place": ["in", "q in"], "q_out": STORED}),
    ("k_out", {"place": ["in"], "kv_out": STORED, "cache": ["none"]}),
    ("q_out", {"place": ["in", "q in"], "out_layout": ["other"]}),
    ("out_layout", {"positions": cases.BLOCKS, "out_layout": ["other"]}),
    ("out_layout", {"norm": ["after", "after f32 bias", *OF_Q[1:]], "out_layout": ["other"]}),
    ("q_out", STILL | {"place": ["in", "q in"], "norm": ["none"]}),
    ("k_out", STILL | {"place": ["in"], "norm": OF_Q, "cache": ["none"]}),
    ("k_out", STILL | {"place": ["in"], "norm": OF_Q, "cache": cases.FACTORS["cache"], "kept": [True]}),
    ("positions_from", STILL | {"origin": [True]}),
    ("frequency_sets", STILL | {"sets": ["plain", "factors"]}),
    *cases.REFUSED,
]
# One scale for the two parts of q or k, of which each operand knows one: see test_stages_values.py.
APART = [
    {"q_nope": ["q"], "q_out": QUANTISED, "scale": ["dynamic", "groups"]},
    {"q_nope": ["k"], "kv_out": QUANTISED, "scale": ["dynamic", "groups"]},
]
# v of 40 elements, the nope parts of 24; and what groups and blocks are not stored with: see test_stages_refusals.py.
UNEVEN = [
    *cases.not_grouped("q_out"),
    *cases.not_grouped("kv_out"),
    {"v": ["own"], "kv_out": cases.GROUPED},
    {"v": ["own"], "scale": ["groups"]},
    {"q_nope": ["q"], "q_out": cases.GROUPED},
    {"q_nope": ["k"], "kv_out": cases.GROUPED},
    *({out: cases.GROUPED, "memory": ["spread"]} for out in ("q_out", "kv_out")),
    *({out: cases.GROUPED, "out_layout": ["other"]} for out in ("q_out", "kv_out")),
    {"scale": ["groups"], "memory": ["spread"]},
    {"scale": ["groups"], "out_layout": ["other"]},
]
# Refused by the constructor: see test_stages_refusals.py.
TURNED = {"angle": ["cos_sin"], "positions": cases.SECTIONS, "xpos": ["plain", "centered"], "out_layout": ["other"]}
WIDE = {"dtype": ["float32"], "k_dtype": ["other"]}
CONSTRUCTOR = [cases.SHARED, WIDE, *(STILL | {name: values} for name, values in TURNED.items())]
RULES = [*(rule for _, rule in REFUSED), *APART, *CONSTRUCTOR, *UNEVEN]
