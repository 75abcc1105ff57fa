"""Forms of config.json that transformers does not read, brought to the form that it does."""

from collections.abc import Callable, Mapping
from typing import Any

from pyrope._hf_read import Section
from pyrope.errors import UnsupportedError

Entry = dict[str, Any]  # of hf_models.json
Values = dict[str, Any]

# Model types that transformers has no class for.
OWN: dict[str, Entry] = {
    "chatglm": {
        "layout": "gptj",
        "partial": True,
        "defaults": {"head_dim": 128},
        "names": {"kv_channels": "head_dim", "seq_length": "max_position_embeddings"},
        "layers": {"": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    },
    "nemotron-nas": {"layout": "neox", "layers": {"": {"rope_theta": 1e4}}},
    "phi3small": {
        "layout": "neox",
        "defaults": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
        "layers": {"": {"rope_theta": 1e6, "theta_key": "rope_embedding_base"}},
    },
    "qwen": {
        "layout": "neox",
        "partial": True,
        "defaults": {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "seq_length": 8192},
        "names": {"kv_channels": "head_dim"},
        "layers": {"": {"rope_theta": 1e4, "theta_key": "rotary_emb_base", "partial_key": "rotary_pct"}},
    },
}
# Model types whose layers are another's.
SAME = {
    "hunyuan_vl": "hunyuan_vl_text",
    "kimi_k2": "deepseek_v3",
    "step3p7": "step3p5",
    "step3p7_text": "step3p5",
}
# Where a model of several parts has its language model.
PARTS = ("text_config", "thinker_config", "language_config", "llm_config")

# Tokens have several positions, and which pair takes which is not in the data file.
STREAMS = {"neomme": "tokens of this model have two positions each, and its order of pairs is not known here"}

# The model has no rotation, or one that pyrope has not.
REFUSED = {
    "alibi": "the model has no rotary embedding",
    "position_encoding_2d": "the model's tokens have two positions each",  # ChatGLM-6B
}
_NOT_ROTATED: dict[str, Callable[[Any], bool]] = {
    "position_embedding_type": lambda value: value not in ("rope", "rotary"),
    "use_mem_rope": lambda value: value is False,
    "mla_use_nope": lambda value: value is True,
}


def check_rotated(config: Values, model_type: str) -> None:
    """config: with nulls, which mean something here."""
    for key, reason in REFUSED.items():
        if config.get(key):
            raise UnsupportedError(f"{key}: {config[key]!r}, {reason}")
    for key, says_no in _NOT_ROTATED.items():
        if key in config and says_no(config[key]):
            raise UnsupportedError(f"{key}: {config[key]!r}, the layers of {model_type} are then not rotated")


# What rope_parameters calls types of layers.
_LABELS = {
    "deepseek_v4": {
        "sliding_attention": "main",
        "compressed_sparse_attention": "compress",
        "heavily_compressed_attention": "compress",
    }
}


def label(model_type: str, layer_type: Any) -> Any:
    return _LABELS.get(model_type, {}).get(layer_type, layer_type)


def usual(model_type: str, config: Values) -> Values:
    form = _FORMS.get(model_type)
    return form(dict(config)) if form else config


def _chatglm(config: Values) -> Values:
    if config.get("multi_query_attention"):
        config["num_key_value_heads"] = config.get("multi_query_group_num")
    c = Section("", config)
    if config.get("rope_theta") is None:
        config["rope_theta"] = 1e4 * c.number("rope_ratio", default=1.0)
    return config


def _dbrx(config: Values) -> Values:
    attention = Section("", config).section("attn_config").values
    for own, name in (("kv_n_heads", "num_key_value_heads"), ("rope_theta", "rope_theta")):
        if own in attention:
            config.setdefault(name, attention[own])
    return config


def _deepseek_v4(config: Values) -> Values:
    """rope_scaling is that of the layers whose cache is compressed, without YaRN's magnitude."""
    ratios = config.get("compress_ratios")
    if config.get("layer_types") is None and ratios is not None:
        names = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
        config["layer_types"] = [names.get(ratio, f"compress_ratios {ratio}") for ratio in ratios]
    types = config.get("layer_types")
    if isinstance(types, (list, tuple)):
        config["layer_types"] = [label("deepseek_v4", name) for name in types]
    given = config.get("rope_parameters") or config.pop("rope_scaling", None) or {}
    if isinstance(given, Mapping) and "main" not in given:
        compress = {"rope_type": given.get("type", "default"), **given}
        compress["rope_theta"] = config.get("compress_rope_theta", 160000.0)
        if compress["rope_type"] == "yarn":
            compress.setdefault("attention_factor", 1.0)
        main = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
        config["rope_parameters"] = {"main": main, "compress": compress}
    return config


def _lfm2(config: Values) -> Values:
    if config.get("rope_theta") is None and config.get("theta") is not None:
        config["rope_theta"] = config["theta"]
    return config


def _mimo(config: Values) -> Values:
    """Keys for the layers of sliding attention, beside those for the others."""
    if not config.get("rope_parameters") and not config.get("rope_scaling"):
        default = {"full_attention": ("rope_theta", 5e6), "sliding_attention": ("swa_rope_theta", 1e4)}
        partial = config.get("partial_rotary_factor", 0.334)
        config["rope_parameters"] = {
            name: {"rope_theta": config.get(key, theta), "partial_rotary_factor": partial}
            for name, (key, theta) in default.items()
        }
        for key in ("rope_theta", "partial_rotary_factor"):
            config.pop(key, None)
    config.setdefault("swa_num_key_value_heads", 2 * config.get("num_key_value_heads", 4))
    return config


def _nemotron_nas(config: Values) -> Values:
    """Each block says how many heads of q share one of k."""
    blocks = config.get("block_configs")
    if blocks is None:
        if config.get("num_key_value_heads") is None:
            raise ValueError("block_configs: missing")
        return config
    groups = [Section(f"block_configs[{i}]", block).section("attention") for i, block in enumerate(blocks)]
    heads = Section("", config).integer("num_attention_heads")
    config["num_key_value_heads_per_layer"] = [
        heads // group.integer("n_heads_in_group") if "n_heads_in_group" in group else None for group in groups
    ]
    return config


def _phi3small(config: Values) -> Values:
    if config.get("rope_position_scale", 1.0) != 1.0:
        raise UnsupportedError(f"rope_position_scale: {config['rope_position_scale']!r}, must be 1.0")
    return config


def _qwen(config: Values) -> Values:
    if config.get("use_dynamic_ntk", True):
        config["rope_scaling"] = {"rope_type": "qwen_ntk"}
    return config


def _step(config: Values) -> Values:
    """Lists by layer, of which those of a type agree; a scaling for some types."""
    heads = config.get("attention_other_setting")
    if isinstance(heads, Mapping):
        config.setdefault("num_sliding_attention_heads", heads.get("num_attention_heads"))
    types = config.get("layer_types")
    keys = ("rope_theta", "partial_rotary_factors")
    lists: dict[str, list[Any]] = {key: config[key] for key in keys if isinstance(config.get(key), list)}
    if lists and not isinstance(types, list):
        raise ValueError(f"layer_types: missing, {next(iter(lists))} is a list")
    if not isinstance(types, list) or config.get("rope_parameters"):
        return {key: value for key, value in config.items() if key not in lists}
    scaled, only = config.pop("rope_scaling", None) or {}, config.get("yarn_only_types") or ["full_attention"]
    config["rope_parameters"] = {
        name: {
            "rope_theta": _one(lists, "rope_theta", types, name, config.get("rope_theta", 1e4)),
            "partial_rotary_factor": _one(lists, "partial_rotary_factors", types, name, 1.0),
            **(scaled if name in only else {}),
        }
        for name in sorted(set(types))
    }
    return {key: value for key, value in config.items() if key not in lists}


def _one(lists: Mapping[str, list[Any]], key: str, types: list[str], name: str, default: Any) -> Any:
    if key not in lists:
        return default
    found = {value for value, kind in zip(lists[key], types, strict=False) if kind == name}
    if len(found) != 1:
        raise UnsupportedError(f"{key}: {sorted(found)} for the layers of {name}, must be one value")
    return found.pop()


_FORMS: dict[str, Callable[[Values], Values]] = {
    "chatglm": _chatglm,
    "dbrx": _dbrx,
    "deepseek_v4": _deepseek_v4,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "mimo_v2_flash": _mimo,
    "nemotron-nas": _nemotron_nas,
    "phi3small": _phi3small,
    "qwen": _qwen,
    "step3p5": _step,
}
