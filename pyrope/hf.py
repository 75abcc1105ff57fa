"""Rope's arguments out of a Hugging Face model configuration, by the rules of transformers' modeling_rope_utils."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyrope.errors import UnsupportedError
from pyrope.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Scaling, YaRN

# Model types whose weights pair 2i with 2i + 1 ("gptj"); all others pair i with i + rotary_dim / 2 ("neox").
_INTERLEAVED = {
    "chatglm",
    "codegen",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "ernie4_5",
    "ernie4_5_moe",
    "ernie4_5_vl_moe_text",
    "glm",
    "glm4",
    "glm4_moe_lite",
    "glm4v_text",
    "glm_moe_dsa",
    "glm_ocr_text",
    "gptj",
    "helium",
    "llama4_text",
    "longcat_flash",
    "mistral4",
    "moonshine",
    "moonshine_streaming",
    "openai_privacy_filter",
    "youtu",
}

# What config.json may leave out, because the model's own class knows it.
_HALF = {"partial_rotary_factor": 0.5}
_QUARTER = {"partial_rotary_factor": 0.25}
_GEMMA3 = {"num_attention_heads": 8, "head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "chatglm": _HALF,
    "codegen": {"rotary_dim": 64},
    "cohere": {"rope_theta": 5e5},
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "gemma3_text": _GEMMA3 | {"num_key_value_heads": 4},
    "gemma3n_text": _GEMMA3 | {"num_key_value_heads": 2},
    "gemma4_text": {"head_dim": 256, "global_head_dim": 512},
    "glm": _HALF | {"head_dim": 128},
    "glm4": _HALF | {"head_dim": 128},
    "glm4_moe": _HALF,
    "glm4v_moe_text": _HALF,
    "gpt_neox": _QUARTER,
    "gpt_oss": {"rope_theta": 1.5e5, "head_dim": 64},
    "gptj": {"rotary_dim": 64},
    "llama4_text": {"rope_theta": 5e5, "head_dim": 128},
    "mixtral": {"rope_theta": 1e6},
    "nemotron": _HALF,
    "persimmon": _HALF,
    "phi": _HALF,
    "phimoe": {"rope_theta": 1e6},
    "qwen2_5_vl_text": {"rope_theta": 1e6},
    "qwen2_vl_text": {"rope_theta": 1e6},
    "qwen3": {"head_dim": 128},
    "qwen3_5_moe_text": _QUARTER | {"head_dim": 256},
    "qwen3_5_text": _QUARTER | {"head_dim": 256},
    "qwen3_next": _QUARTER | {"head_dim": 256},
    "qwen3_vl_moe_text": {"rope_theta": 5e5, "head_dim": 128},
    "qwen3_vl_text": {"rope_theta": 5e5, "head_dim": 128},
    "recurrent_gemma": _HALF,
    "smollm3": {"rope_theta": 2e6},
    "stablelm": _QUARTER,
}
# Model types whose config.json may leave out rope_theta, and then means 10000.
_THETA_10000 = """
    chatglm codegen deepseek_v2 deepseek_v3 falcon gemma gemma2 glm glm4 glm4_moe gptj granite hunyuan_v1_dense llama
    mistral moonshine nemotron olmo olmo2 phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma stablelm
    starcoder2
"""

# Arguments of Rope that the configuration has under other names.
_ARGUMENTS = {"head_dim": "head_dim", "num_q_heads": "num_attention_heads", "theta": "rope_theta"}

_REFUSED = {
    "alibi": "the model has no rotary embedding",
    "position_encoding_2d": "the model's tokens have two positions each",  # ChatGLM-6B
    "compress_rope_theta": "the rotation of DeepSeek V4 is not known here",
}


class _Section:
    """A part of the configuration, whose entries are read by name and refused by name."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def label(self, key: str) -> str:
        return f"{self.name}[{key!r}]" if self.name else key

    def number(self, *keys: str, default: float | None = None) -> float:
        """The first of the keys that is there; without a default, one must be."""
        for key in keys:
            if key in self:
                value = self.values[key]
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                    raise ValueError(f"{self.label(key)}: {value!r}, must be a number above 0")
                return float(value)
        if default is None:
            raise ValueError(f"{self.label(keys[0])}: missing")
        return float(default)

    def integer(self, *keys: str, default: int | None = None) -> int:
        value = self.number(*keys, default=default)
        if not value.is_integer():
            key = next(key for key in keys if key in self)
            raise ValueError(f"{self.label(key)}: {value!r}, must be an integer")
        return int(value)

    def numbers(self, key: str) -> list[float]:
        if key not in self:
            raise ValueError(f"{self.label(key)}: missing")
        value = self.values[key]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{self.label(key)}: {value!r}, must be a list of numbers")
        return list(value)


class _Source(NamedTuple):
    """What a scaling is made of. partial: the part of a head that is rotated, 0 to 1."""

    parameters: _Section
    config: _Section
    partial: float
    seq_len: int | None

    @property
    def original(self) -> int:
        """Context length of the original training; Phi-3 has it outside the parameters, and there it counts."""
        key = "original_max_position_embeddings"
        return next((s.integer(key) for s in (self.config, self.parameters) if key in s), 0) or self.longest

    @property
    def longest(self) -> int:
        return self.config.integer("max_position_embeddings", "n_positions", "seq_length")

    @property
    def factor(self) -> float:
        if "factor" in self.parameters:
            return self.parameters.number("factor")
        return self.longest / self.original

    @property
    def attention_factor(self) -> float | None:
        key = "attention_factor"
        return self.parameters.number(key) if key in self.parameters else None


_Made = tuple[Scaling | None, float | None]  # and the attention factor, if it is not the scaling's own


def _default(source: _Source) -> _Made:
    return None, None


def _linear(source: _Source) -> _Made:
    return Linear(source.parameters.number("factor")), None


def _dynamic(source: _Source) -> _Made:
    if source.parameters.get("alpha"):  # Hunyuan: stretched alike at every length
        return NTK(source.parameters.number("alpha")), None
    return DynamicNTK(source.parameters.number("factor"), source.longest, source.seq_len), None


def _yarn(source: _Source) -> _Made:
    p = source.parameters
    mscale = {}
    if p.get("mscale") and p.get("mscale_all_dim"):  # one alone does not count
        mscale = {"mscale": p.number("mscale"), "mscale_all_dim": p.number("mscale_all_dim")}
    truncate = p.get("truncate")
    if truncate not in (None, True, False):
        raise ValueError(f"{p.label('truncate')}: {truncate!r}, must be true or false")
    scaling = YaRN(
        source.factor,
        source.original,
        p.number("beta_fast", default=32.0),
        p.number("beta_slow", default=1.0),
        truncate=truncate is not False,
        **mscale,
    )
    return scaling, source.attention_factor


def _longrope(source: _Source) -> _Made:
    p, original = source.parameters, source.original
    scaling = LongRoPE(p.numbers("short_factor"), p.numbers("long_factor"), source.factor, original, source.seq_len)
    if "short_mscale" in p or "long_mscale" in p:  # Phi-3.5-MoE: a magnitude for each
        return scaling, p.number("long_mscale" if (source.seq_len or 0) > original else "short_mscale")
    return scaling, source.attention_factor


def _llama3(source: _Source) -> _Made:
    p = source.parameters
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    return Llama3(p.number("factor"), low, high, source.original), None


def _proportional(source: _Source) -> _Made:
    return Proportional(source.partial, source.parameters.number("factor", default=1.0)), None


_SCALINGS: dict[str, Callable[[_Source], _Made]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
    "mrope": _default,  # Qwen2-VL's old name: the sections say which position a pair takes, not its frequency
    "su": _longrope,  # Phi-3's old name
    "deepseek_yarn": _yarn,
}


def rope_options(
    config: object, layer_type: str | None, seq_len: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments for pyrope.Rope; options are those that the caller gave."""
    if seq_len is not None and (isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1):
        raise ValueError(f"seq_len: {seq_len!r}, must be an integer above 0")
    text = _text_config(config)
    model_type = str(text.get("model_type") or "")
    given = {key: options[name] for name, key in _ARGUMENTS.items() if name in options}
    c = _Section("", _DEFAULTS.get(model_type, {}) | _Section("", text).values | given)
    for key in _REFUSED:
        if c.get(key):
            raise UnsupportedError(f"{key}: {c.get(key)!r}, {_REFUSED[key]}")

    parameters = _parameters(c, layer_type)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if model_type in ("phi3", "phi4_multimodal") and rope_type == "yarn":
        rope_type = "longrope"  # what early configurations of Phi-3 called it
    if rope_type not in _SCALINGS:
        raise UnsupportedError(
            f"{parameters.label('rope_type')}: {rope_type!r}, must be one of {', '.join(map(repr, _SCALINGS))}"
        )

    num_q_heads, num_k_heads, head_dim = _heads(c, layer_type)
    partial = _partial(c, parameters, head_dim)
    rotary_dim = head_dim if rope_type == "proportional" else int(head_dim * partial)
    scaling, attention_factor = _SCALINGS[rope_type](_Source(parameters, c, partial, seq_len))
    return {
        "head_dim": head_dim,
        "num_q_heads": num_q_heads,
        "num_k_heads": num_k_heads,
        "rotary_dim": rotary_dim,
        "theta": _theta(c, parameters, model_type),
        "scaling": scaling,
        "attention_factor": attention_factor,
        "layout": _layout(c, model_type),
        **options,
    }


def _text_config(config: object) -> dict[str, Any]:
    """The configuration as a dict; of a model of several parts, that of its language model."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        if not hasattr(config, "__dict__") or isinstance(config, type):
            raise TypeError(f"config: {config!r}, must be a dict or a configuration object")
        config = vars(config)
    text = config.get("text_config")
    return dict(config) if text is None else _text_config(text)


def _parameters(c: _Section, layer_type: str | None) -> _Section:
    """rope_parameters, or rope_scaling as it was called before, of the layers of that type."""
    new, old = c.get("rope_parameters"), c.get("rope_scaling")
    if new and old and new != old:
        raise ValueError("rope_parameters, rope_scaling: both given, and they differ")
    name, values = ("rope_parameters", new) if new else ("rope_scaling", old or {})
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: {values!r}, must be a dict")
    if any(isinstance(value, Mapping) for value in values.values()):
        _check_layer_type(layer_type, [key for key, value in values.items() if isinstance(value, Mapping)])
        return _Section(f"{name}[{layer_type!r}]", values[layer_type])
    if "rope_local_base_freq" in c or c.get("model_type") == "olmo3":  # Gemma 3, OLMo 3
        _check_layer_type(layer_type, ["full_attention", "sliding_attention"])
        if layer_type == "sliding_attention":  # the scaling is for the layers of full attention
            return _Section("", {"rope_theta": c.get("rope_local_base_freq")})
    elif layer_type is not None and "layer_types" in c:
        _check_layer_type(layer_type, sorted(set(c.get("layer_types"))))
    return _Section(name, values)


def _check_layer_type(layer_type: str | None, allowed: list[str]) -> None:
    if layer_type not in allowed:
        raise ValueError(
            f"layer_type: {layer_type!r}, must be one of {', '.join(map(repr, allowed))}, the layers that are rotated"
        )


def _heads(c: _Section, layer_type: str | None) -> tuple[int, int, int]:
    """Heads of q, heads of k, elements of a head."""
    num_q_heads = c.integer("num_attention_heads", "n_head", "num_heads", "n_heads")
    if "kv_lora_rank" in c:  # multi-head latent attention: one rotated key for all heads
        return num_q_heads, 1, c.integer("qk_rope_head_dim")
    if any(key in c for key in ("head_dim", "attention_head_dim", "kv_channels")):
        head_dim = c.integer("head_dim", "attention_head_dim", "kv_channels")
    else:
        hidden_size = c.integer("hidden_size", "n_embd", "d_model")
        if hidden_size % num_q_heads:
            raise ValueError(f"hidden_size: {hidden_size}, must be a multiple of num_attention_heads, {num_q_heads}")
        head_dim = hidden_size // num_q_heads

    num_k_heads = c.integer("num_key_value_heads", "num_kv_heads", default=num_q_heads)
    if c.get("multi_query_attention"):  # ChatGLM
        num_k_heads = c.integer("multi_query_group_num")
    elif c.get("multi_query") and not c.get("new_decoder_architecture"):  # Falcon
        num_k_heads = 1

    if layer_type == "full_attention":  # Gemma 4
        head_dim = c.integer("global_head_dim", default=head_dim)
        if c.get("attention_k_eq_v"):
            num_k_heads = c.integer("num_global_key_value_heads", default=num_k_heads)
    if "per_layer_config" in c and layer_type is not None:  # the same, as transformers writes it
        types = c.get("layer_types")
        layers: dict[str, dict[str, int]] = c.get("per_layer_config")
        own = next((values for layer, values in layers.items() if types[int(layer)] == layer_type), {})
        head_dim = own.get("head_dim", head_dim)
        num_k_heads = own.get("num_key_value_heads", num_k_heads)
    return num_q_heads, num_k_heads, head_dim


def _partial(c: _Section, parameters: _Section, head_dim: int) -> float:
    """The part of a head that is rotated, 0 to 1."""
    if "kv_lora_rank" in c:
        return 1.0  # of qk_rope_head_dim
    if "rotary_dim" in c:
        rotary_dim = c.integer("rotary_dim")
        if rotary_dim > head_dim:
            raise ValueError(f"rotary_dim: {rotary_dim}, must be at most the head's {head_dim} elements")
        partial = rotary_dim / head_dim
        given = parameters.number("partial_rotary_factor", default=c.number("partial_rotary_factor", default=partial))
        if int(head_dim * given) != rotary_dim:
            raise ValueError(f"rotary_dim: {rotary_dim}, but partial_rotary_factor is {given} of {head_dim}")
        return partial
    for section, key in (
        (parameters, "partial_rotary_factor"),
        (c, "rotary_pct"),  # GPT-NeoX
        (c, "rope_pct"),  # StableLM
        (c, "partial_rotary_factor"),
    ):
        if key in section:
            partial = section.number(key)
            if partial > 1:
                raise ValueError(f"{section.label(key)}: {partial}, must be at most 1")
            return partial
    return 1.0


def _theta(c: _Section, parameters: _Section, model_type: str) -> float:
    if "rope_theta" in parameters:
        return parameters.number("rope_theta")
    default = 10000.0 if model_type in _THETA_10000.split() else None
    theta = c.number("rope_theta", "rotary_emb_base", default=default)  # the second of GPT-NeoX
    return theta * c.number("rope_ratio", default=1.0)  # ChatGLM


def _layout(c: _Section, model_type: str) -> str:
    interleaved = model_type in _INTERLEAVED and c.get("original_rope") is not False  # False: ChatGLM's descendants
    if "rope_interleave" in c:  # DeepSeek V3
        interleaved = bool(c.get("rope_interleave"))
    return "gptj" if interleaved else "neox"
