"""Every scaling, with the frequencies and the magnitude that the papers give."""

import numpy as np

import pyrope
from kit import reference
from kit.refusals import rows

DIM, PAIRS = 128, 64
SHORT = [1 + i / 100 for i in range(PAIRS)]
LONG = [1.05 * 1.07**i for i in range(PAIRS)]

# (id, Rope's arguments, reference frequencies, magnitude)
SCALINGS = rows(
    ("none", {"theta": 5e5}, lambda: reference.base_frequencies(DIM, 5e5), 1.0),
    (
        "linear",
        {"theta": 5e5, "scaling": pyrope.Linear(factor=3.0)},
        lambda: reference.linear_frequencies(DIM, 5e5, 3),
        1.0,
    ),
    (
        "llama3",
        {"theta": 5e5, "scaling": pyrope.Llama3()},
        lambda: reference.llama3_frequencies(DIM, 5e5, 8, 1, 4, 8192),
        1.0,
    ),
    (
        "llama3 32",
        {"theta": 5e5, "scaling": pyrope.Llama3(32.0, 2.0, 5.0, 4096)},
        lambda: reference.llama3_frequencies(DIM, 5e5, 32, 2, 5, 4096),
        1.0,
    ),
    (
        "llama3 without a ramp",  # as Llama 4 has it
        {"theta": 5e5, "scaling": pyrope.Llama3(16.0, 1.0, 1.0, 8192)},
        lambda: reference.llama3_frequencies(DIM, 5e5, 16, 1, 1, 8192),
        1.0,
    ),
    ("ntk", {"scaling": pyrope.NTK(8.0)}, lambda: reference.ntk_frequencies(DIM, 1e4, 8), 1.0),
    ("ntk shrinks", {"scaling": pyrope.NTK(0.3)}, lambda: reference.ntk_frequencies(DIM, 1e4, 0.3), 1.0),
    ("ntk 4", {"head_dim": 4, "scaling": pyrope.NTK(8)}, lambda: reference.ntk_frequencies(4, 1e4, 8), 1.0),
    ("ntk 2", {"head_dim": 2, "scaling": pyrope.NTK(8)}, lambda: [1.0], 1.0),
    ("dynamic", {"scaling": pyrope.DynamicNTK(4.0, 2048)}, lambda: reference.base_frequencies(DIM, 1e4), 1.0),
    (
        "dynamic short",
        {"scaling": pyrope.DynamicNTK(4.0, 2048, seq_len=2048)},
        lambda: reference.base_frequencies(DIM, 1e4),
        1.0,
    ),
    (
        "dynamic long",
        {"scaling": pyrope.DynamicNTK(4.0, 2048, seq_len=7000)},
        lambda: reference.dynamic_ntk_frequencies(DIM, 1e4, 4, 2048, 7000),
        1.0,
    ),
    (
        "yarn",
        {"scaling": pyrope.YaRN(16.0, 4096)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 16, 4096),
        reference.yarn_magnitude(16),
    ),
    (
        "yarn without truncation",
        {"head_dim": 64, "theta": 1.5e5, "scaling": pyrope.YaRN(32.0, 4096, truncate=False)},
        lambda: reference.yarn_frequencies(64, 1.5e5, 32, 4096, truncate=False),
        reference.yarn_magnitude(32),
    ),
    (
        "yarn betas",
        {"theta": 1e6, "scaling": pyrope.YaRN(4.0, 32768, beta_fast=24.5, beta_slow=2)},
        lambda: reference.yarn_frequencies(DIM, 1e6, 4, 32768, 24.5, 2),
        reference.yarn_magnitude(4),
    ),
    (
        "yarn from pair 0",  # the ramp would begin before the fastest pair
        {"scaling": pyrope.YaRN(4.0, 100)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 4, 100),
        reference.yarn_magnitude(4),
    ),
    (
        "yarn mscale",
        {"head_dim": 64, "scaling": pyrope.YaRN(40.0, 4096, mscale=0.707, mscale_all_dim=1.3)},
        lambda: reference.yarn_frequencies(64, 1e4, 40, 4096),
        reference.yarn_magnitude(40, 0.707, 1.3),
    ),
    (
        "yarn that shrinks",
        {"scaling": pyrope.YaRN(0.5, 4096)},
        lambda: reference.yarn_frequencies(DIM, 1e4, 0.5, 4096),
        1.0,
    ),
    (
        "longrope short",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope at the border",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096, seq_len=4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope long",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 32.0, 4096, seq_len=4097)},
        lambda: reference.divided_frequencies(DIM, 1e4, LONG),
        reference.longrope_magnitude(32, 4096),
    ),
    (
        "longrope that does not grow",
        {"scaling": pyrope.LongRoPE(SHORT, LONG, 0.5, 4096)},
        lambda: reference.divided_frequencies(DIM, 1e4, SHORT),
        1.0,
    ),
    (
        "pair factors",
        {"scaling": pyrope.PairFactors(np.array(LONG))},
        lambda: reference.divided_frequencies(DIM, 1e4, LONG),
        1.0,
    ),
    (
        "proportional",
        {"theta": 1e6, "scaling": pyrope.Proportional(0.26)},
        lambda: reference.proportional_frequencies(DIM, 1e6, 0.26),
        1.0,
    ),
    (
        "proportional and linear",
        {"theta": 1e6, "scaling": pyrope.Proportional(0.5, factor=8.0)},
        lambda: reference.proportional_frequencies(DIM, 1e6, 0.5, 8),
        1.0,
    ),
    (
        "proportional to all",
        {"theta": 1e6, "scaling": pyrope.Proportional(1)},
        lambda: reference.base_frequencies(DIM, 1e6),
        1.0,
    ),
)
