"""Write pyrope/hf_models.json: what transformers' classes know that a model's config.json may leave out.

Every model type of an installed transformers whose configuration has something to do with rotation is built at a small
size and run; what is written is what it did, and what its configuration class makes of what it is given.

    pip install torch transformers
    python tests/data/make_hf_models.py
"""

import argparse
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import hf_probe
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

OUT = Path(__file__).parents[2] / "pyrope" / "hf_models.json"
# Keys that size the heads, and keys that say whether and how they are rotated.
KEYS = (
    "attention_k_eq_v",
    "head_dim",
    "hidden_size",
    "kv_lora_rank",
    "max_position_embeddings",
    "mla_use_nope",
    "multi_query",
    "new_decoder_architecture",
    "no_rope_layer_interval",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_heads",
    "original_max_position_embeddings",
    "position_embedding_type",
    "qk_rope_head_dim",
    "rope_interleave",
    "rotary_dim",
    "sliding_window",
    "use_mem_rope",
)
# Keys outside of rope_parameters that say something which belongs there.
THETA = (
    "rope_theta",
    "rope_local_base_freq",
    "rotary_emb_base",
    "global_rope_theta",
    "local_rope_theta",
    "swa_rope_theta",
    "theta",
)
PARTIAL = ("partial_rotary_factor", "rotary_pct")
# Keys for the heads of one type of layers.
OWN = {
    "head_dim": ("global_head_dim", "swa_head_dim"),
    "num_attention_heads": ("swa_num_attention_heads", "num_sliding_attention_heads"),
    "num_key_value_heads": ("num_global_key_value_heads", "swa_num_key_value_heads"),
    "qk_rope_head_dim": ("swa_qk_rope_head_dim",),
}
# Where transformers does otherwise than the model's publisher.
PUBLISHER = {
    # rope_theta is that of all layers; transformers takes its default for those of sliding attention.
    "olmo3": {"layers": {"sliding_attention": {"theta_key": "rope_theta", "unread": ["rope_parameters"]}}},
    # The sections are of the pairs, as in Tencent's code and vLLM; transformers splits the elements by them.
    "hunyuan_vl_text": {"sections": {"default": None}},
    # transformers has no other heads for these layers.
    "mimo_v2_flash": {
        "layers": {
            "full_attention": {"partial_rotary_factor": 0.334},
            "sliding_attention": {
                "partial_rotary_factor": 0.334,
                "own": {
                    "head_dim": ["swa_head_dim", None],
                    "num_attention_heads": ["swa_num_attention_heads", None],
                    "num_key_value_heads": ["swa_num_key_value_heads", None],
                },
            },
        }
    },
}
TWO_DIMENSIONS = {
    "dinov3_vit",
    "efficientloftr",
    "eomt_dinov3",
    "llama4_vision_model",
    "sapiens2",
}


def rotates(cls):
    return any(key.startswith(("rope_", "rotary_", "qk_rope")) or key.endswith("_rope") for key in cls().to_dict())


def parameters_of(config):
    """{layer type, or "" for all: rope_parameters}."""
    values = getattr(config, "rope_parameters", None)
    if values is None:
        theta = getattr(config, "rope_theta", None) or getattr(config, "rotary_embedding_base", None)
        values = {"rope_theta": theta} if theta else {}
    if any(isinstance(value, dict) for value in values.values()):
        return {key: dict(value) for key, value in values.items() if isinstance(value, dict)}
    return {"": dict(values)}


def attempt(cls, **values):
    """None: the class does not take them."""
    try:
        return cls(**values)
    except Exception:
        return None


def attempt_small(model_type, **changes):
    try:
        return hf_probe.small(model_type, **changes)
    except Exception:
        return None


def constants(cls):
    """Values that do not depend on the size of the model."""
    base = cls()
    names = {key for key in ("hidden_size", "num_attention_heads") if isinstance(read(base, key), int)}
    other = attempt(cls, **{key: 4 * read(base, key) for key in ["hidden_size"] if key in names})
    third = attempt(cls, **{key: 2 * read(base, key) for key in ["num_attention_heads"] if key in names})
    k_heads = read(base, "num_key_value_heads")
    fourth = attempt(cls, num_key_value_heads=2 * k_heads) if isinstance(k_heads, int) else None
    found = {}
    for key in KEYS:
        value = read(base, key)
        if value is None or (value is False and key != "attention_k_eq_v"):
            continue
        same = all(config is None or read(config, key) == value for config in (other, third))
        derived = key != "num_key_value_heads" and fourth is not None and read(fourth, key) != value
        if (key in names or same) and not derived:
            found[key] = value
    return found


def read(config, key):
    try:
        return getattr(config, key, None)
    except Exception:  # a value of layers that differ
        return config._getattr_without_heterogeneous_validation(key, None)


def names_of(cls):
    """{what config.json calls it: the usual name}."""
    found = {}
    for usual, own in (cls.attribute_map or {}).items():
        if usual in KEYS and own not in KEYS:
            found[own] = usual
        elif own in KEYS and usual not in KEYS:
            found[usual] = own
    return dict(sorted(found.items()))


def keyed(cls, keys, part, layer_type, **given):
    """Which of the keys sets a part of the parameters, outside of them."""
    for key in keys:
        config = attempt(cls, **given, **{key: 0.375})
        values = parameters_of(config) if config else {}
        if values.get(layer_type, {}).get(part) == 0.375:
            return key
    return None


def layer_entry(cls, layer_type, default):
    """What the parameters of a type of layers are where config.json does not say.

    rope_parameters: what the class has where the configuration has none. rope_theta, partial_rotary_factor: where they
    do not say that; theta_key, partial_key: which key outside of them does. unscaled: rope_scaling without types does
    not mean these layers. unread: forms without types that the class does not follow.
    """
    linear = {"rope_type": "linear", "factor": 3.0}
    has = hasattr(cls(), "rope_parameters")
    scaled = attempt(cls, rope_scaling=dict(linear)) if has else None
    flat = (parameters_of(scaled).get(layer_type) or {}) if scaled else {}
    theta_key = keyed(cls, THETA, "rope_theta", layer_type) if "measured" not in default else None
    partial_key = keyed(cls, PARTIAL, "partial_rotary_factor", layer_type)
    theta = default.get("rope_theta") if theta_key else flat.get("rope_theta", default.get("rope_theta"))
    partial = default.get("partial_rotary_factor") if partial_key else flat.get("partial_rotary_factor")
    default = {"rope_type": default.get("rope_type") or default.get("type") or "default"} | {
        key: value
        for key, value in default.items()
        if key not in ("rope_type", "type", "max_position_embeddings", "measured")
    }
    if partial_key:
        default.pop("partial_rotary_factor", None)
    if theta_key and default["rope_type"] == "default":
        default.pop("rope_theta", None)
    if layer_type:
        nested = attempt(cls, rope_parameters={name: {"rope_type": "default"} for name in parameters_of(cls())})
        said = (parameters_of(nested).get(layer_type) or {}) if nested else {}
        partial = partial or said.get("partial_rotary_factor")
    entry = {"rope_theta": theta} | ({"partial_rotary_factor": partial} if partial not in (None, 1) else {})
    if any(value != entry.get(key) for key, value in default.items() if value != "default"):
        entry["rope_parameters"] = default
    theta_key = theta_key or (keyed(cls, THETA, "rope_theta", layer_type, rope_scaling=linear) if has else None)
    if theta_key != "rope_theta":
        entry["theta_key"] = theta_key
    if (partial_key or partial) and partial_key != "partial_rotary_factor":
        entry["partial_key"] = partial_key
    if scaled and flat.get("rope_type") != "linear":
        entry["unscaled"] = True
    if not has:
        return entry | {"unread": ["rope_parameters", "rope_scaling"]}
    if layer_type:
        given = {
            "rope_parameters": {"rope_parameters": linear | {"rope_theta": 0.375}},
            "rope_scaling": {"rope_scaling": dict(linear), theta_key or "rope_theta": 0.375},
        }
        made = {name: attempt(cls, **values) for name, values in given.items()}
        unread = [
            name
            for name, config in made.items()
            if config is not None and parameters_of(config).get(layer_type, {}).get("rope_theta") not in (0.375, None)
        ]
        entry |= {"unread": unread} if unread else {}
        entry |= own_heads(cls, layer_type)
    return entry


def own_heads(cls, layer_type):
    """{"own": {key: [its name for these layers, its value where that is missing]}}"""
    base, found = cls(), {}
    for key, names in OWN.items():
        for name in names:
            if hasattr(base, name) and ("sliding" in layer_type) == ("swa" in name or "sliding" in name):
                found[key] = [name, read(base, name)]
            else:
                heads = ("swa_num_attention_heads", "swa_num_key_value_heads")
                for values in ({name: 6}, {name: 48}, dict.fromkeys(heads, 16) if name in heads else {}):
                    changed = attempt(cls, attention_k_eq_v=True, **values)
                    value = of_layers(base, layer_type, key)
                    if values and value != values[name] and of_layers(changed, layer_type, key) == values[name]:
                        found[key] = [name, None if value == read(base, key) else value]
    return {"own": found} if found else {}


def of_layers(config, layer_type, key):
    """The value that layers of a type have of their own."""
    if config is None or not config.is_heterogeneous:
        return None
    try:
        return getattr(config.per_layer_config[layer_type], key, None)
    except Exception:
        return None


def partial_is_read(model_type, layers):
    """Whether partial_rotary_factor makes a difference to what is turned."""
    config = hf_probe.small(model_type)
    if not getattr(config, "rope_parameters", None):
        return False
    shares = {values.get("partial_rotary_factor", 1.0) for values in parameters_of(config).values()}
    if any(share < 1 and layer.dim * share == 2 * len(layer.pairs) for share in shares for layer in layers.values()):
        return True
    nested = [value for value in config.rope_parameters.values() if isinstance(value, dict)] or [config.rope_parameters]
    for values in nested:
        values["partial_rotary_factor"] = values.get("partial_rotary_factor", 1.0) / 2
    try:
        found, _ = hf_probe.layers(config)
    except Exception:
        return False
    return any(len(found[i].pairs) < len(layers[i].pairs) for i in found if i in layers)


def layout(layer):
    first, second, _ = layer.pairs[0]
    if second - first == 1 and len(layer.pairs) > 1:
        return "gptj"
    if second - first == len(layer.pairs) or layer.dim // 2 == second - first:
        return "neox"
    raise ValueError(f"pairs {layer.pairs[:2]}")


def types_of(model_type, config, layers, error):
    """{layer type: whether its layers are rotated}, {} for a model without types."""
    types = list(getattr(config, "layer_types", None) or [])
    numbered = {i for i in layers if isinstance(i, int) and 0 <= i < len(types) and layers[i].pairs}
    found = {types[i]: True for i in numbered}
    if numbered and not error:
        found = {name: name in found for name in types}
    if numbered and set(types) <= {"full_attention", "sliding_attention"}:
        for other in {"full_attention", "sliding_attention"} - set(types):  # the class has them, but not by default
            try:
                window = {"sliding_window": 4} | (
                    {"use_sliding_window": True} if hasattr(config, "use_sliding_window") else {}
                )
                changed = hf_probe.small(model_type, layer_types=[other] * len(types), **window)
                more, error = hf_probe.layers(changed)
            except Exception:
                continue
            if not error and set(changed.layer_types) == {other}:
                found[other] = bool(more)
    return found


def entry(model_type):
    cls = CONFIG_MAPPING[model_type]
    config = hf_probe.small(model_type)
    layers, error = hf_probe.layers(config)
    turned = {i: layer for i, layer in layers.items() if layer.pairs}
    if not turned:
        return {"refused": "no function that rotates q and k was found in it"}, error
    kinds = {(layout(layer), layer.pairs[0][2] < 0, layer.pairs[0][0] > 0) for layer in turned.values()}
    if len(kinds) > 1:
        return {"refused": "its layers do not pair alike"}, error
    ((pairing, backward, last),) = kinds
    made = {"layout": pairing} | ({"backward": True} if backward else {}) | ({"last": True} if last else {})
    defaults = constants(cls)
    if "kv_lora_rank" in defaults:
        defaults.pop("head_dim", None)
    made |= {"defaults": defaults} if defaults else {}
    sizes = [read(cls(), key) for key in ("hidden_size", "num_attention_heads", "head_dim")]
    whole = all(isinstance(size, int) for size in sizes) and "kv_lora_rank" not in defaults
    if whole and "head_dim" not in defaults and sizes[2] != sizes[0] // sizes[1]:  # of something else: must be said
        made["own_head_dim"] = True
    if names_of(cls):
        made["names"] = names_of(cls)
    if partial_is_read(model_type, layers):
        made["partial"] = True
    if sections := hf_probe.sections(config):
        made["sections"] = sections
    if getattr(cls(), "layer_rope_theta", None):
        again = attempt_small(model_type, layer_rope_theta=[123.0] * config.num_hidden_layers)
        if again and hf_probe.layers(again)[0][0].pairs != layers[0].pairs:
            made["layer_theta"] = True
    nope = [i + 1 for i, value in enumerate(getattr(cls(), "no_rope_layers", None) or []) if not value]
    if nope and nope == list(range(nope[0], cls().num_hidden_layers + 1, nope[0])):
        made["nope_every"] = nope[0]
    types = types_of(model_type, config, layers, error)
    if "full_attention" in types and not types["full_attention"] and "sliding_window" in defaults:
        plain = attempt_small(model_type, sliding_window=None, layer_types=["full_attention"] * hf_probe.LAYERS)
        if plain and len(hf_probe.layers(plain)[0]) == plain.num_hidden_layers:
            made["rotated_without"] = "sliding_window"
    default = parameters_of(cls())
    if default == {"": {}}:  # the class does not say it: what was measured, of which float32 left 6 digits
        n, layer = max((len(layer.pairs), layer) for layer in turned.values())
        default = {"": {"measured": True, "rope_theta": float(f"{abs(layer.pairs[-1][2]) ** (-n / (n - 1)):.5g}")}}
    entries = {name: layer_entry(cls, name, values) for name, values in default.items()}
    if "" in entries:
        flat = entries.pop("")
        entries = {name: flat | own_heads(cls, name) for name, rotated in types.items() if rotated} or {"": flat}
    made["layers"] = {name: entries[name] for name in sorted(entries)}
    if not set(entries) & set(types) and "" not in entries:  # labels of their own
        types = {}
    for name in [name for name, rotated in types.items() if rotated and name not in made["layers"]]:
        made["layers"][name] = next(iter(entries.values())) | own_heads(cls, name)
    made["layers"] |= {name: None for name, rotated in sorted(types.items()) if not rotated}
    said = PUBLISHER.get(model_type, {})
    for name, values in said.get("layers", {}).items():
        made["layers"][name] |= values
    made |= {key: value for key, value in said.items() if key != "layers"}
    return made, error


def parts():
    """{model type of a model of several parts: that of its language model}."""
    found = {}
    for model_type in sorted(CONFIG_MAPPING_NAMES):
        cls = CONFIG_MAPPING[model_type]
        text = (getattr(cls, "sub_configs", None) or {}).get("text_config")
        config = attempt(cls) if text else None
        inside = getattr(getattr(config, "text_config", None), "model_type", None)
        if inside and inside != model_type:
            found[model_type] = inside
    return found


def main():
    warnings.filterwarnings("ignore")
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model_types", nargs="*", help="made anew; the others stay as they are. Default: all")
    arguments.add_argument("--to", type=Path, default=OUT)
    arguments = arguments.parse_args()
    head = {"transformers": version("transformers")}
    models = json.loads(OUT.read_text(encoding="utf-8"))["models"] if arguments.model_types else {}
    for model_type in arguments.model_types or sorted(CONFIG_MAPPING_NAMES):
        try:
            cls = CONFIG_MAPPING[model_type]
            if getattr(cls, "default_rope_type", "") == "axial" or model_type in TWO_DIMENSIONS:
                models[model_type] = {"refused": "its tokens have two or three positions each"}
            elif rotates(cls):
                models[model_type], error = entry(model_type)
                if error:
                    print(f"{model_type}: without its layers: {type(error).__name__}: {str(error)[:80]!r}")
        except Exception as error:
            print(f"{model_type}: not understood: {type(error).__name__}: {str(error)[:80]!r}")
    inside = {key: value for key, value in parts().items() if value in models and key not in models}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(models[name])}" for name in sorted(models))
    text = f'{json.dumps(head)[:-1]}, "parts": {json.dumps(inside)}, "models": {{\n{lines}\n}}}}\n'
    arguments.to.write_text(text, encoding="utf-8")
    print(len(models), "model types")


if __name__ == "__main__":
    main()
