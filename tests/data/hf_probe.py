"""What an installed transformers does to q and k, found by running its models at a small size.

Every function of a model's module that turns q and k is called again with unit vectors: q.k of all pairs of elements,
q at position 0 and k at position 1, is the rotation by one position, in the order that the weights have.
"""

import importlib
import inspect
import math
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, logging
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

logging.set_verbosity_error()
torch.set_num_threads(1)

TOKENS = 3
LAYERS = 8
SMALL = {
    "bos_token_id": 1,
    "cond_dim": 512,
    "eos_token_id": 2,
    "ffn_dim": 32,
    "first_k_dense_replace": LAYERS,
    "hidden_size": 512,
    "hidden_size_per_layer_input": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "shared_expert_intermediate_size": 32,
    "topk_group": 1,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
}
MROPE_64 = {"head_dim": 64, "hidden_size": 256}
# What some models need besides; None leaves the class's own.
ONLY = {
    "chameleon": {"vocabulary_map": {"<image>": 4}, "vq_config": {"num_embeddings": 2, "embed_dim": 4}},
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": {"num_experts_per_tok": 2},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"] * 4, "sliding_window": 4},
    "csm": {"depth_decoder_config": {"num_hidden_layers": 1, "hidden_size": 64, "backbone_hidden_size": 512}},
    "dbrx": {"d_model": 512, "n_heads": 4, "n_layers": 2, "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] * LAYERS},
    "deepseek_v4": {"num_key_value_heads": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 32},
    "dots3_note_text": {"q_lora_rank": 32, "num_hidden_layers": 4, "n_routed_experts": 4},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 32]},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 3},
    "esmc": {"num_key_value_heads": None},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 10, "activation_sparsity_pattern": [0.0] * 10}
    | {"intermediate_size": [32] * 10},
    "glm4v_text": MROPE_64,
    "glm_image_text": MROPE_64,
    "glm_ocr_text": MROPE_64,
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"] * 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128, "rope_parameters": {"rope_type": "default", "mrope_section": [16] * 4}},
    "kimi_linear": {"mla_use_nope": False},
    "kyutai_speech_to_text": {"vocab_size": None, "pad_token_id": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 4},
    "longcat_flash": {"num_layers": 2, "n_routed_experts": 2, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 32}
    | {"moe_topk": 1, "zero_expert_num": 0},
    "ministral": {"head_dim": 128},
    "phi4_multimodal": {"img_processor": None, "vision_config": {"num_hidden_layers": 1, "hidden_size": 32}},
    "qwen2_5_omni_talker": {"embedding_size": 512},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": None},
    "qwen4_exp_text": {"num_experts_per_tok": 2},
    "step3p5": {"sliding_window": 4},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "zamba2": {"num_hidden_layers": None, "use_mem_rope": True},
}


class Layer(NamedTuple):
    """How one layer turns q and k."""

    function: str
    q_heads: int
    k_heads: int  # 0: of another layer's k
    dim: int  # of what the function is given: a head, or the part of it that turns
    pairs: tuple  # (i, j, angle of a position): e_i becomes cos e_i + sin e_j
    magnitude: float


def keys_of(cls):
    """Every key of config.json that the class has a place for, by all of its names."""
    return set(cls().to_dict()) | set(cls.attribute_map or {}) | set(inspect.signature(cls.__init__).parameters)


def small(model_type, **changes):
    """The smallest configuration that has all of a model's kinds of layers."""
    cls = CONFIG_MAPPING[model_type]
    known, base = keys_of(cls), cls()
    values = {key: value for key, value in SMALL.items() if key in known}
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = SMALL["num_attention_heads"]
    for key in known:
        counts = "expert" in key and key.startswith(("num_", "n_", "moe_num"))
        value = getattr(base, key, None) if counts and not base.is_heterogeneous else None
        if type(value) is int:
            values[key] = min(value, 4, values.get(key, 4))
    values |= ONLY.get(model_type, {}) | changes
    return cls(**{key: value for key, value in values.items() if value is not None or key in changes})


def model_class(config):
    """The model whose layers the configuration describes."""
    cls = type(config)
    if cls in MODEL_MAPPING:
        found = MODEL_MAPPING[cls]
        return found[0] if isinstance(found, tuple) else found
    package = cls.__module__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
    found = [
        (not name.endswith("Model"), "For" in name, len(name), name)
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module.__name__
        and getattr(value, "config_class", None) is cls
        and not name.endswith("PreTrainedModel")
    ]
    return getattr(module, min(found)[-1]) if found else None


@contextmanager
def recorded(module, calls):
    """Adds (attention module, function, arguments) of every call of a function that turns."""
    names = ("apply_rot", "_apply_rot", "rotate_queries")
    functions = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and name.startswith(names)}

    def recorder(f):
        def call(*args, **kwargs):
            calls.append((sys._getframe(1).f_locals.get("self"), f, args, kwargs))
            return f(*args, **kwargs)

        return call

    for name, f in functions.items():
        setattr(module, name, recorder(f))
    try:
        yield
    finally:
        for name, f in functions.items():
            setattr(module, name, f)


def rotation(f, args, kwargs):
    bound = inspect.signature(f).bind(*args, **kwargs).arguments
    names = [
        n for n in bound if n in ("q", "k", "x", "xq", "xk", "tensor", "query", "key", "query_states", "key_states")
    ]
    if not names:
        raise ValueError(f"{f.__name__}{tuple(bound)}: which is q?")
    x = bound[names[0]]
    token_axis = 2 if x.shape[2] == TOKENS else 1
    heads = [bound[name].shape[3 - token_axis] for name in names]
    dim = x.shape[-1]
    for name in names:
        unit = torch.eye(dim).reshape(dim, 1, 1, dim).expand(dim, *bound[name].shape[1:])
        bound[name] = unit.clone()
    out = f(**bound)
    out = [out] if torch.is_tensor(out) else list(out)
    q, k = ([x.select(token_axis, p)[:, 0].double() for p in range(TOKENS)] for x in (out[0], out[len(names) - 1]))
    one, zero = q[0] @ k[1].T, q[0] @ k[0].T
    magnitude = zero.diagonal()
    if not torch.equal(zero, torch.diag(magnitude)):
        raise ValueError(f"{f.__name__}: position 0 is not the identity")
    pairs = []
    for i in range(dim):
        others = [int(j) for j in one[i].nonzero().flatten() if j != i]
        if len(others) > 1:
            raise ValueError(f"{f.__name__}: element {i} turns with {others}")
        if others and i < others[0]:
            pairs.append((i, others[0], math.atan2(-one[i, others[0]], one[i, i])))
    turned = [i for pair in pairs for i in pair[:2]]
    return Layer(
        f.__name__, heads[0], heads[-1], dim, tuple(pairs), float(magnitude[turned].mean()) ** 0.5 if turned else 1.0
    )


@contextmanager
def without_initial_weights():
    """Weights do not matter: what turns is given unit vectors."""
    names = ("kaiming_uniform_", "normal_", "uniform_", "trunc_normal_", "xavier_uniform_")
    kept = {name: getattr(torch.nn.init, name) for name in names}
    try:
        for name in names:
            setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor.detach().zero_())
        with no_init_weights():
            yield
    finally:
        for name, f in kept.items():
            setattr(torch.nn.init, name, f)


def built(config):
    cls = model_class(config)
    if cls is None:
        raise ValueError("no model has this configuration")
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > 2e8:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    with without_initial_weights():
        return cls(config).eval()


def rotary_of(config):
    """The model's module for cos and sin, by itself."""
    package = type(config).__module__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
    stem = type(config).__name__.removesuffix("Config")
    found = [
        (not name.startswith(stem), not name.startswith(stem.removesuffix("Text")), len(name), name)
        for name, value in vars(module).items()
        if name.endswith("RotaryEmbedding") and "Vision" not in name and value.__module__ == module.__name__
    ]
    return module, getattr(module, min(found)[-1])(config)


def heads_of(config, layer_type=None):
    """Heads of q, rotated heads of k, elements of what is rotated or holds it."""
    if config.is_heterogeneous:
        config = config.per_layer_config[config.layer_types.index(layer_type)]
    heads = config.num_attention_heads
    if getattr(config, "num_attention_heads_per_layer", None):
        heads = config.num_attention_heads_per_layer[config.layer_types.index(layer_type)]
    if getattr(config, "kv_lora_rank", None):
        return heads, 1, config.qk_rope_head_dim
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return heads, 1, dim
    k_heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    if config.model_type == "mimo_v2_flash" and layer_type == "sliding_attention":
        k_heads *= 2
    return heads, k_heads, dim


def alone(config, layer_type=None, name="apply_rotary_pos_emb"):
    """The Layer that the model's functions give, without the model around."""
    module, rotary = rotary_of(config)
    f = getattr(module, name)
    q_heads, k_heads, whole = heads_of(config, layer_type)
    labelled = "layer_type" in inspect.signature(rotary.forward).parameters
    with torch.no_grad():
        x = torch.zeros(1, q_heads, TOKENS, whole)
        made = rotary(x, torch.arange(TOKENS)[None], **({"layer_type": layer_type} if labelled else {}))
        made = made if isinstance(made, tuple) else (made,)
        pair = any(key in inspect.signature(f).parameters for key in ("k", "xk", "key"))
        for dim in (whole, min(whole, made[0].shape[-1])):  # the function is given a head, or the part that turns
            q, k = (torch.zeros(1, heads, TOKENS, dim) for heads in (q_heads, k_heads))
            try:
                return rotation(f, (q, k, *made) if pair else (q, *made), {})._replace(k_heads=k_heads)
            except RuntimeError:
                continue
    raise ValueError(f"{name}: not called as expected")


def layers(config):
    """{number of a layer: Layer} of those that turn q and k, and what the rest of the model failed with.

    A model that needs more than tokens is asked for its functions alone; its layer is number None.
    """
    try:
        found, error = layers_of_model(config)
    except Exception as raised:
        found, error = {}, raised
    if error and not found:
        return {None: alone(config)}, error
    return found, error


def layers_of_model(config):
    model = built(config)
    calls, error = [], None
    ids = torch.ones(1, TOKENS, dtype=torch.long)
    embedded = torch.ones(1, TOKENS, config.hidden_size) if hasattr(config, "hidden_size") else None
    takes = inspect.signature(model.forward).parameters
    inputs = {"input_ids": ids} if "input_ids" in takes else {"inputs_embeds": embedded}
    if "use_cache" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        inputs["use_cache"] = False
    with recorded(sys.modules[type(model).__module__], calls), torch.no_grad():
        try:
            model(**inputs)
        except Exception as raised:
            error = raised
    found, first, apart, known = {}, None, False, {}
    for owner, f, args, kwargs in calls:
        if "Indexer" in type(owner).__name__:
            continue
        # Layers share their cosines and sines.
        values = (*args, *kwargs.values())
        key = (f, *((x.shape if x.ndim == 4 else id(x)) if torch.is_tensor(x) else None for x in values))
        if key not in known:
            known[key] = rotation(f, args, kwargs)
        index = getattr(owner, "layer_idx", None)
        if index not in found:
            found[index] = known[key]
            apart = "k" not in inspect.signature(f).parameters and len(args) == 3  # q and k one after the other
            if apart:
                found[index] = found[index]._replace(k_heads=0)
        elif owner is first and apart:
            found[index] = found[index]._replace(k_heads=known[key].k_heads)
            apart = False
        first = owner
    return found, error


def sections(config):
    """M-RoPE: which of a token's positions each pair turns by; None if a token has one."""
    try:
        model = built(config)
    except Exception:
        return None
    modules = [m for name, m in model.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    modules = [m for m in modules if "Vision" not in type(m).__name__ and hasattr(m, "mrope_section")]
    if not modules:
        return None
    rotary, sizes = modules[0], modules[0].mrope_section
    if not isinstance(sizes, (list, tuple)):
        return {"refused": "they differ by type of layer"}
    x, ones = torch.zeros(1, 1, config.hidden_size), torch.ones(len(sizes), 1, 1, dtype=torch.long)
    whole = rotary(x, ones)[1].flatten()
    half = len(whole) // 2
    one_each = slice(None, half) if torch.equal(whole[:half], whole[half:]) else slice(None, None, 2)
    turns = []
    for stream in range(len(sizes)):
        positions = torch.zeros_like(ones)
        positions[stream] = 1
        turns.append(rotary(x, positions)[1].flatten()[one_each] != 0)
    by = torch.stack(turns).int().argmax(0).tolist()
    made = {"default": list(sizes)}
    if by == [stream for stream, size in enumerate(sizes) for _ in range(size)]:
        return made
    count = len(sizes)
    if by == [i % count if i < count * sizes[i % count] else 0 for i in range(sum(sizes))]:
        return made | {"interleaved": True}
    return {"refused": "the order of this model's pairs is not one that pyrope has"}
