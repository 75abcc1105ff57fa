"""Rope.from_hf_config against an installed transformers: every model type, every form of its configuration.

Each model is run at a small size; then its configuration is given as an object, as a dict and as saved, with each key
left out in turn, and with every scaling in the old and in the new form. What pyrope makes of it must be what the
model's own module does, or be refused. Prints what is counted, and ends with 1 if anything differs in silence.

    pip install torch transformers
    python tests/hf_sweep.py [model types]
"""

import json
import math
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "data"))
import hf_probe

import pyrope
from pyrope.hf import models

# Where a model's publisher says otherwise than transformers, and pyrope goes with the publisher.
PUBLISHER = {}
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")
REFUSALS = (ValueError, TypeError, pyrope.UnsupportedError)


def scalings(pairs):
    """Of every kind, for heads whose rotated part has that many pairs."""
    factors = {"short_factor": [1.0 + i / 8 for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
    original = {"original_max_position_embeddings": 64}
    turns = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "yarn": {"factor": 4.0} | original,
        "yarn, all of it": {"factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False} | original,
        "yarn, mscale": {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5} | original,
        "yarn, magnitude": {"factor": 4.0, "attention_factor": 1.25} | original,
        "longrope": {"factor": 4.0} | factors | original,
        "llama3": {"factor": 4.0} | turns | original,
        "proportional": {"partial_rotary_factor": 0.5},
        "ntk": {"factor": 4.0},
    }


def forms(values):
    """(what it is, config.json) of everything that is tried."""
    yield "saved", values
    for key in values:
        if key != "model_type":
            yield f"without {key}", {name: value for name, value in values.items() if name != key}
    bare = {key: value for key, value in values.items() if key not in ("rope_parameters", "rope_scaling")}
    parameters = values.get("rope_parameters") or {}
    nested = [key for key, value in parameters.items() if isinstance(value, dict)]
    theta = next((parameters[key] for key in nested), parameters).get("rope_theta") or 10000.0
    yield "theta outside", bare | {"rope_theta": 54321.0}
    yield "theta inside", bare | {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}}
    for key, share in (("partial_rotary_factor", 0.5), ("rotary_pct", 0.5)):
        yield f"{key} outside", bare | {key: share, "rope_theta": theta}
    return


def pairs_of(rope):
    """As hf_probe's: (i, j, angle)."""
    n, first = rope.rotary_dim // 2, rope.rotary_offset
    places = [(i, i + n) if rope.layout == "neox" else (2 * i, 2 * i + 1) for i in range(n)]
    return [(first + i, first + j, f) for (i, j), f in zip(places, rope.inv_freq, strict=True)]
