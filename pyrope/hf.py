"""Rope's arguments out of a Hugging Face model configuration: known and right, or refused by name.

What a model's own class knows is in hf_models.json, which tests/data/make_hf_models.py writes by running the models of
transformers. Here is what follows from that and a config.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrope import _hf_forms as forms
from pyrope._hf_layers import Layer, differ, layers_of
from pyrope._hf_read import SCALINGS, Section, Source
from pyrope.errors import UnsupportedError

# Arguments of Rope that the configuration has under other names.
_ARGUMENTS = {"head_dim": "head_dim", "num_q_heads": "num_attention_heads", "theta": "rope_theta"}
_UNKNOWN: dict[str, Any] = {"partial": True, "layers": {"": {}}}
_MODELS: dict[str, Any] = {}


def models() -> dict[str, Any]:
    """The data file: "models" by model type, "parts": the model type of the language model of those of several."""
    if not _MODELS:
        _MODELS.update(json.loads(Path(__file__).with_name("hf_models.json").read_text(encoding="utf-8")))
    return _MODELS


def rope_options(
    config: object, layer_type: str | int | None, seq_len: int | None, options: Mapping[str, Any], cls: object = None
) -> dict[str, Any]:
    """Arguments for cls, Rope or a class of it; options are those that the caller gave."""
    if seq_len is not None and (isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1):
        raise ValueError(f"seq_len: {seq_len!r}, must be an integer above 0")
    values, where = _text_config(config)
    model_type = _model_type(values)
    entry = _entry(model_type, where, options)
    layer_type = forms.label(model_type, layer_type)
    c = _read(model_type, entry, values, options)
    layers = layers_of(c, entry, layer_type)
    streams = hasattr(cls, "sections") and "sections" not in options  # a FusedRope, whose tokens may have several
    found = [_layer_options(c, model_type, entry, layer, seq_len, layer_type, streams) for layer in layers]
    if any(made != found[0] for made in found):
        raise differ(layer_type, layers)
    made = found[0] | {"layout": _layout(c, model_type, entry)} | dict(options)
    return _backward(made) if entry.get("backward") else made


def _text_config(config: object, where: str = "config") -> tuple[dict[str, Any], str]:
    """The configuration as a dict, of a model of several parts that of its language model; and where that is."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        if not hasattr(config, "__dict__") or isinstance(config, type):
            raise TypeError(f"{where}: {config!r}, must be a dict or a configuration object")
        config = vars(config)
    for part in forms.PARTS:
        if config.get(part) is not None:
            text, inside = _text_config(config[part], f"{where}[{part!r}]")
            own = models()["parts"].get(config.get("model_type"))
            return (text if text.get("model_type") or not own else text | {"model_type": own}), inside
    if isinstance(config.get("decoder"), Mapping) or hasattr(config.get("decoder"), "to_dict"):
        raise UnsupportedError(f"{where}: the model has an encoder and a decoder; pass {where}['decoder'] or the other")
    return dict(config), where


def _model_type(values: Mapping[str, Any]) -> str:
    given = str(values.get("model_type") or "")
    known = forms.SAME.get(given, given)
    return known if known in models()["models"] else models()["parts"].get(known, known)


def _entry(model_type: str, where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = forms.OWN | models()["models"]
    entry = known.get(model_type)
    if entry is not None and "refused" not in entry:
        return entry
    if options.get("layout") is not None:
        return _UNKNOWN
    part = "" if where == "config" else f"{where}: "
    if entry is not None:
        raise UnsupportedError(f"{part}model_type: {model_type!r}, {entry['refused']}")
    raise UnsupportedError(
        f"{part}model_type: {model_type!r}, not one of the {len(known)} that are known (transformers "
        f"{models()['transformers']}); with layout= the configuration is read as Llama's, and the pairing is yours"
    )


def _read(model_type: str, entry: dict[str, Any], values: dict[str, Any], options: Mapping[str, Any]) -> Section:
    """The configuration with what the model's class would add."""
    names = entry.get("names", {})
    renamed = {key: value for key, value in values.items() if key not in names}
    renamed |= {usual: values[key] for key, usual in names.items() if values.get(key) is not None}
    values = entry.get("defaults", {}) | forms.usual(model_type, renamed)
    forms.check_rotated(values, model_type)
    given = {key: options[name] for name, key in _ARGUMENTS.items() if options.get(name)}
    return Section("", given | {key: value for key, value in values.items() if value is not None})


def _layer_options(
    c: Section,
    model_type: str,
    entry: dict[str, Any],
    layer: Layer,
    seq_len: int | None,
    layer_type: object,
    streams: bool,
) -> dict[str, Any]:
    kind = entry["layers"].get(layer.type) or entry["layers"].get("") or {}
    own = {key: c.get(name) or default for key, (name, default) in kind.get("own", {}).items()}
    if c.get("attention_k_eq_v") is False:  # Gemma 4
        own.pop("num_key_value_heads", None)
    c = Section("", c.values | {key: value for key, value in own.items() if value} | dict(layer.heads))
    parameters = _parameters(c, kind, layer, layer_type)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if model_type in ("phi3", "phi4_multimodal") and rope_type == "yarn":
        rope_type = "longrope"  # what early configurations of Phi-3 called it
    if rope_type not in SCALINGS:
        raise UnsupportedError(
            f"{parameters.label('rope_type')}: {rope_type!r}, must be one of {', '.join(map(repr, SCALINGS))}"
        )
    num_q_heads, num_k_heads, head_dim = _heads(c, entry)
    partial = _partial(c, entry, kind, parameters, rope_type, head_dim)
    rotary_dim = head_dim if rope_type == "proportional" else int(head_dim * partial)
    scaling, attention_factor = SCALINGS[rope_type](Source(parameters, c, head_dim, partial, seq_len))
    return (_sections(model_type, entry, parameters) if streams else {}) | {
        "head_dim": head_dim,
        "num_q_heads": num_q_heads,
        "num_k_heads": num_k_heads,
        "rotary_dim": rotary_dim,
        "rotary_offset": head_dim - rotary_dim if entry.get("last") else 0,
        "theta": _theta(c, entry, kind, parameters, layer),
        "scaling": scaling,
        "attention_factor": attention_factor,
    }


def _parameters(c: Section, kind: dict[str, Any], layer: Layer, layer_type: object) -> Section:
    """rope_parameters, or rope_scaling as it was called before, of the layers of that type."""
    new, old = c.get("rope_parameters"), c.get("rope_scaling")
    if new and old and new != old:
        raise ValueError("rope_parameters, rope_scaling: both given, and they differ")
    name = "rope_parameters" if new else "rope_scaling"
    values = c.section(name).values
    if any(isinstance(value, Mapping) for value in values.values()):
        of_layers = [key for key, value in values.items() if isinstance(value, Mapping)]
        key = layer.type or layer_type
        if key not in of_layers:
            shown = ", ".join(map(repr, of_layers))
            raise ValueError(f"layer_type: {key!r}, must be one of {shown}, the layers that are rotated")
        return Section(f"{name}[{key!r}]", values[key])
    if values and name in kind.get("unread", ()):
        hint = "must be a dict for each type of layers" if layer.type else "models of this type do not have it"
        raise ValueError(f"{name}: {values!r}, {hint}")
    scaled = layer.scaled and not (old and kind.get("unscaled") and layer.type)
    if not scaled and values.get("rope_type", values.get("type")) not in (None, "default", "mrope"):
        values = {key: values[key] for key in ("rope_theta", "partial_rotary_factor") if key in values}
    if values:
        return Section(name, values)
    default = kind.get("rope_parameters", {})
    key = kind.get("theta_key", "rope_theta")
    if "rope_theta" in default and not layer.theta and key in c and default["rope_theta"] != c.get(key):
        raise ValueError(
            f"rope_parameters: missing, but {key} is not that of the model's class, {default['rope_theta']}"
        )
    return Section("rope_parameters", default)


def _heads(c: Section, entry: dict[str, Any]) -> tuple[int, int, int]:
    """Heads of q, heads of k, elements of a head."""
    num_q_heads = c.integer("num_attention_heads", "n_head", "num_heads", "n_heads")
    if "kv_lora_rank" in c:  # multi-head latent attention: one rotated key for all heads
        return num_q_heads, 1, c.integer("qk_rope_head_dim")
    if "own_head_dim" in entry or any(key in c for key in ("head_dim", "attention_head_dim")):
        head_dim = c.integer("head_dim", "attention_head_dim")
    else:
        hidden_size = c.integer("hidden_size", "n_embd", "d_model")
        if hidden_size % num_q_heads:
            raise ValueError(f"hidden_size: {hidden_size}, must be a multiple of num_attention_heads, {num_q_heads}")
        head_dim = hidden_size // num_q_heads
    num_k_heads = c.integer("num_key_value_heads", "num_kv_heads", default=num_q_heads)
    if c.get("multi_query") and not c.get("new_decoder_architecture"):  # Falcon
        num_k_heads = 1
    return num_q_heads, num_k_heads, head_dim


def _partial(
    c: Section, entry: dict[str, Any], kind: dict[str, Any], parameters: Section, rope_type: str, head_dim: int
) -> float:
    """The part of a head that is rotated, 0 to 1."""
    if rope_type == "proportional" and ("kv_lora_rank" in c or "last" in entry):
        raise UnsupportedError("rope_type: 'proportional', not for heads of which a part is rotated")
    if "kv_lora_rank" in c:
        return 1.0  # of qk_rope_head_dim
    name = "partial_rotary_factor"
    key = kind.get("partial_key", name)
    given = next(
        ((section, own) for section, own in ((parameters, name), (c, key), (c, "rope_pct")) if own in section), None
    )
    partial = given[0].number(given[1]) if given else None
    if key != name and name in c and c.number(name) != (partial or kind.get(name, 1.0)):
        raise UnsupportedError(f"{name}: {c.get(name)}, models of this type have {key or 'it in rope_parameters'}")
    if given and partial is not None and partial > 1:
        raise ValueError(f"{given[0].label(given[1])}: {partial}, must be at most 1")
    if "rotary_dim" in c:
        rotary_dim = c.integer("rotary_dim")
        if rotary_dim > head_dim:
            raise ValueError(f"rotary_dim: {rotary_dim}, must be at most the head's {head_dim} elements")
        if partial is not None and int(head_dim * partial) != rotary_dim:
            raise ValueError(f"rotary_dim: {rotary_dim}, but partial_rotary_factor is {partial} of {head_dim}")
        return rotary_dim / head_dim
    if "last" in entry and "qk_rope_head_dim" in c and partial is None:
        return c.integer("qk_rope_head_dim") / head_dim
    if partial is None:
        return float(kind.get("partial_rotary_factor", 1.0))
    if given and partial != 1 and not entry.get("partial") and rope_type != "proportional":
        raise UnsupportedError(f"{given[0].label(given[1])}: {partial}, models of this type rotate all of a head")
    return partial


def _theta(c: Section, entry: dict[str, Any], kind: dict[str, Any], parameters: Section, layer: Layer) -> float:
    key = kind.get("theta_key", "rope_theta")
    said = key if key in c else "rope_theta"
    if key is None and said in c and "rope_theta" not in parameters and c.get(said) != kind.get("rope_theta"):
        raise ValueError(f"rope_theta: {c.get(said)!r}, models of this type do not have it, or for each type of layers")
    if layer.theta:
        default = kind.get("rope_theta")
        if "rope_parameters" in c or "rope_scaling" in c:
            beside = parameters.get("rope_theta") or c.get(said) or default
        else:
            beside = c.get(said) or kind.get("rope_parameters", {}).get("rope_theta") or default
        if not entry.get("layer_theta") and beside != layer.theta:
            raise ValueError(f"layer_rope_theta: {layer.theta}, but rope_theta is {beside}")
        return layer.theta
    if "rope_theta" in parameters:
        return parameters.number("rope_theta")
    return c.number(key or "rope_theta", default=kind.get("rope_theta"))


def _layout(c: Section, model_type: str, entry: dict[str, Any]) -> str:
    known = str(entry.get("layout", "neox"))
    if model_type == "chatglm" and c.get("original_rope") is False:  # ChatGLM's descendants
        known = "neox"
    if "rope_interleave" not in c:
        return known
    said = "gptj" if c.get("rope_interleave") else "neox"
    if said != known and "rope_interleave" not in entry.get("defaults", {}) and "layout" in entry:
        raise UnsupportedError(f"rope_interleave: {c.get('rope_interleave')}, but {model_type} pairs as {known!r}")
    return said


def _sections(model_type: str, entry: dict[str, Any], parameters: Section) -> dict[str, Any]:
    """M-RoPE: how many pairs turn by each position of a token."""
    if model_type in forms.STREAMS:
        raise UnsupportedError(f"sections: {forms.STREAMS[model_type]}")
    known = entry.get("sections")
    if known is None:
        return {}
    if "refused" in known:
        raise UnsupportedError(f"sections: {known['refused']}")
    key = "xdrope_section" if "xdrope_section" in parameters else "mrope_section"
    sizes = parameters.items(key) if key in parameters else known.get("default")
    if sizes is None:
        return {}
    said = parameters.get("mrope_interleaved")
    if said is not None and bool(said) != known.get("interleaved", False):
        raise UnsupportedError(f"{parameters.label('mrope_interleaved')}: {said}, the model's class does otherwise")
    return {"sections": tuple(int(size) for size in sizes), "sections_interleaved": known.get("interleaved", False)}


def _backward(made: dict[str, Any]) -> dict[str, Any]:
    """Turned the other way: the same frequencies below 0."""
    from pyrope._rope import Rope

    names = ("head_dim", "num_q_heads", "num_k_heads", "rotary_dim", "theta", "scaling", "inv_freq", "attention_factor")
    forward = Rope(device="cpu", **{name: made.pop(name) for name in names if name in made})
    return made | {
        "head_dim": forward.head_dim,
        "num_q_heads": forward.num_q_heads,
        "num_k_heads": forward.num_k_heads,
        "rotary_dim": forward.rotary_dim,
        "inv_freq": tuple(-float(f) for f in forward.inv_freq),
        "attention_factor": forward.attention_factor,
    }
