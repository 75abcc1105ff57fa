"""Rope.from_hf_config against an installed transformers: every model type, every form of its configuration.

Each model is run at a small size; then its configuration is given as an object, as a dict and as saved, with each key
left out in turn, and with every scaling in the old and in the new form. What pyrope makes of it must be what the
model's own module does, or be refused. Prints what is counted, and ends with 1 if anything differs in silence.

    pip install torch transformers
    python tests/hf_sweep.py [model types]
"""

import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "data"))
import hf_probe
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import pyrope
from kit.rounding import rounding
from pyrope.hf import models

# Where transformers does otherwise than the model's publisher, whom pyrope follows: tests/test_hf_forms.py says why.
PUBLISHER = {
    # rope_theta and partial_rotary_factor outside of rope_parameters are read.
    "mimo_v2_flash": lambda form, layer_type, text: form in ("theta outside", "a share outside"),
    # rotary_dim is read.
    "minimax_m3_vl_text": lambda form, layer_type, text: text.startswith("pairs 32 from (0, 32), are 64"),
    # rope_theta is that of all layers.
    "olmo3": lambda form, layer_type, text: layer_type == "sliding_attention" and text.startswith("frequency"),
}
# Without one of the keys of their sizes, q has heads of head_dim and the frequencies are of hidden_size over the heads.
AT_ODDS = {"deepseek_ocr2_text", "unlimited_ocr_text"}
# And where rope_parameters are by type of layers: "truncate" in them, and "type" as a scaling's old name.
REFUSALS = (ValueError, TypeError, pyrope.UnsupportedError)
# Keys that decide which layers are rotated, or how they pair: for these the whole model is run again.
WHOLE = {
    "layer_rope_theta",
    "layer_types",
    "mla_use_nope",
    "no_rope_layer_interval",
    "no_rope_layers",
    "partial_rotary_factor",
    "position_embedding_type",
    "rope_interleave",
    "rope_scaling_layers",
    "sliding_window",
    "use_mem_rope",
}
# Keys without which a model of the class's own size would be built.
RELEVANT = (
    "rope",
    "rotary",
    "theta",
    "head",
    "hidden_size",
    "layer",
    "max_position",
    "n_positions",
    "partial",
    "n_embd",
    "d_model",
    "original_max",
    "multi_query",
    "new_decoder",
    "window",
    "lora_rank",
    "position_embedding",
    "mem_rope",
    "interleave",
    "k_eq_v",
    "nope",
)


def scalings(pairs):
    """Of every kind, for heads with that many pairs that turn."""
    factors = {"short_factor": [1.0 + i / 8 for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
    original = {"original_max_position_embeddings": 64}
    turns = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0} | original,
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False} | original,
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5} | original,
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25} | original,
        {"rope_type": "longrope", "factor": 4.0} | factors | original,
        {"rope_type": "llama3", "factor": 4.0} | turns | original,
        {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    ]


def forms(values, pairs):
    """(what it is, config.json, whether the whole model is to be run) of everything that is tried."""
    for key in values:
        if any(part in key for part in RELEVANT) and key not in ("rope_parameters", "layer_norm_epsilon"):
            rest = {name: value for name, value in values.items() if name != key}
            yield f"without {key}", rest, key in WHOLE
    bare = {key: value for key, value in values.items() if key not in ("rope_parameters", "rope_scaling", "rope_theta")}
    parameters = values.get("rope_parameters") or {}
    nested = [key for key, value in parameters.items() if isinstance(value, dict)]
    yield "without rope_parameters", bare, False
    yield "theta outside", bare | {"rope_theta": 54321.0}, False
    yield "theta inside", bare | {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}}, False
    yield "a share outside", bare | {"partial_rotary_factor": 0.5, "rope_theta": 54321.0}, True
    for key in nested:
        yield f"without {key}", bare | {"rope_parameters": {k: v for k, v in parameters.items() if k != key}}, False
    for scaling in scalings(pairs):
        kind = "yarn, truncate" if "truncate" in scaling else scaling["rope_type"]
        older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        yield f"{kind}, old", bare | {"rope_scaling": scaling, "rope_theta": 54321.0}, False
        yield (
            f"{kind}, older",
            bare | {"rope_scaling": older, "rope_theta": 54321.0},
            False,
        )
        yield f"{kind}, no theta", bare | {"rope_scaling": scaling}, False
        yield f"{kind}, new", bare | {"rope_parameters": scaling | {"rope_theta": 54321.0}}, False
        if nested:
            each = {key: scaling | {"rope_theta": 54321.0 + i} for i, key in enumerate(nested)}
            yield f"{kind}, nested", bare | {"rope_parameters": each}, False
        share = parameters.get("partial_rotary_factor")
        if share:
            both = scaling | {"rope_theta": 54321.0, "partial_rotary_factor": share}
            yield f"{kind}, with its share", bare | {"rope_parameters": both}, False


def difference(rope, layer, heads):
    """None if they are the same rotation."""
    n, first = rope.rotary_dim // 2, rope.rotary_offset
    if layer.dim != rope.head_dim:  # the function is given the part that turns
        if layer.dim != rope.rotary_dim:
            return f"rotary_dim {rope.rotary_dim}, is {layer.dim} of {rope.head_dim}"
        first = 0
    heads = (heads[0], heads[1] or rope.num_k_heads, heads[2])
    if (rope.num_q_heads, rope.num_k_heads, rope.head_dim) != heads:
        return f"heads {(rope.num_q_heads, rope.num_k_heads, rope.head_dim)}, are {heads}"
    places = [(i, i + n) if rope.layout == "neox" else (2 * i, 2 * i + 1) for i in range(n)]
    ours = {(first + i, first + j): f for (i, j), f in zip(places, rope.inv_freq, strict=True) if f}
    theirs = {(i, j): f for i, j, f in layer.pairs}
    if ours.keys() != theirs.keys():
        return f"pairs {len(ours)} from {min(ours)}, are {len(theirs)} from {min(theirs, default=None)}"
    got, want = (np.array([values[pair] for pair in sorted(ours)]) for values in (ours, theirs))
    # The bound is of the frequency; the sine and the cosine that it is found from are rounded, too: 4 more.
    whole = np.zeros(n)
    whole[: len(want)] = np.abs(want)
    bound = rounding(rope, whole)[: len(want)] + 4 * 2.0**-24 * np.abs(want)
    if not (np.abs(got - want) <= bound).all():
        worst = int(np.argmax(np.abs(got - want) / np.abs(want)))
        return f"frequency {worst} {got[worst]:.9g}, is {want[worst]:.9g}"
    if abs(rope.attention_factor - layer.magnitude) > 1e-6 * layer.magnitude:  # a few float32 roundings
        return f"magnitude {rope.attention_factor}, is {layer.magnitude}"
    return None


class Sweep:
    def __init__(self):
        self.counts, self.different, self.refused, self.unrun = Counter(), [], {}, Counter()

    def note(self, result, *what):
        self.counts[result] += 1
        if result == "different":
            self.different.append(what)

    def compare(self, name, form, given, layer_type, layer, heads, by_type=False):
        try:
            rope = pyrope.Rope.from_hf_config(given, layer_type=layer_type, device="cpu")
        except REFUSALS as refusal:
            if form in ("object", "dict", "saved") and layer is not None:
                self.refused[name, layer_type] = str(refusal)
            return self.note("refused", name, form)
        if layer is None:
            return self.note("different", name, form, layer_type, "rotated, is not")
        try:
            text = difference(rope, layer, heads)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        if text is None:
            return self.note("agree")
        expected = (
            name in PUBLISHER
            or (name in AT_ODDS and form.startswith("without "))
            or (by_type and ("truncate" in form or "older" in form))
        )
        return self.note("publisher" if expected else "different", name, form, layer_type, text)

    def model(self, name):
        config = hf_probe.small(name)
        found, error = hf_probe.layers(config)
        types = list(getattr(config, "layer_types", None) or [])
        numbers = sorted(i for i in found if isinstance(i, int) and 0 <= i < max(len(types), 1)) if types else []
        saved = json.loads(config.to_json_string(use_diff=True))
        wholes = {"object": config, "dict": config.to_dict(), "saved": saved}
        for form, given in wholes.items():
            self.whole(name, form, given, config, found, error)
        at = {types[i]: i for i in numbers} or {None: next(iter(found))}
        pairs = max(len(layer.pairs) for layer in found.values())
        for form, values, whole in forms(saved, pairs):
            try:
                changed = CONFIG_MAPPING[name].from_dict(json.loads(json.dumps(values)))
            except Exception:
                self.note("transformers refuses")
                continue
            self.part(name, form, values, changed, at, found, whole or "layer_rope_theta" in values)

    def whole(self, name, form, given, config, found, error):
        """Every layer of the model as it was run."""
        types = list(getattr(config, "layer_types", None) or [])
        numbered = types and any(isinstance(i, int) and i >= 0 for i in found)
        if not numbered:
            layer = next(iter(found.values()))
            return self.compare(name, form, given, None, layer, self.heads(config, None, layer))
        for i, kind in enumerate(types):
            layer = found.get(i)
            if layer is not None or not error:
                self.compare(name, form, given, i, layer, layer and self.heads(config, kind, layer))
        return None

    @staticmethod
    def heads(config, kind, layer):
        if config.is_heterogeneous and kind not in getattr(config, "layer_types", ()):
            return layer.q_heads, layer.k_heads, layer.dim
        return layer.q_heads, layer.k_heads, hf_probe.heads_of(config, kind)[2]

    def part(self, name, form, values, config, at, found, whole):
        """One layer of each type, of the module for cos and sin alone if that is all that may have changed."""
        for kind, number in at.items():
            base = found[number]
            try:
                layer, heads = self.again(name, config, kind, number, base, whole)
            except Exception:
                self.note("not run")
                self.unrun[name] += 1
                continue
            parameters = getattr(config, "rope_parameters", None) or {}
            by_type = any(isinstance(value, dict) for value in parameters.values())
            self.compare(name, form, values, kind, layer, heads, by_type)

    def again(self, name, config, kind, number, base, whole):
        """The layer of a changed configuration."""
        if not whole:
            try:
                layer = hf_probe.alone(config, self.label(config, kind), base.function)
                return layer, hf_probe.heads_of(config, kind)
            except Exception:
                pass  # its functions need the model around them
        found, error = hf_probe.layers(config)
        layer = found.get(number)
        if layer is None and (error or kind != self.kind(config, number)):
            raise ValueError("not understood")
        return layer, layer and self.heads(config, kind, layer)

    @staticmethod
    def kind(config, number):
        types = getattr(config, "layer_types", None)
        return types[number] if types and isinstance(number, int) and number < len(types) else None

    @staticmethod
    def label(config, kind):
        labels = getattr(config, "rope_parameters", None) or {}
        if "main" in labels:  # DeepSeek V4's
            return "main" if kind == "sliding_attention" else "compress"
        return kind


def main():
    warnings.filterwarnings("ignore")
    sweep, began = Sweep(), time.time()
    names = sys.argv[1:] or [name for name, entry in models()["models"].items() if "refused" not in entry]
    for name in names:
        try:
            sweep.model(name)
        except Exception as error:
            sweep.note("model not run")
            print(f"not run: {name}: {type(error).__name__}: {str(error)[:100]}")
    for (name, layer_type), text in sorted(sweep.refused.items(), key=str):
        print(f"refused: {name}, layer {layer_type}: {text}")
    for name, count in sweep.unrun.most_common(40):
        print(f"not run: {name}: {count} forms")
    for what in sweep.different:
        print("DIFFERENT:", *what)
    print(f"{len(names)} model types in {time.time() - began:.0f} s:", dict(sweep.counts))
    return bool(sweep.different)


if __name__ == "__main__":
    sys.exit(main())
