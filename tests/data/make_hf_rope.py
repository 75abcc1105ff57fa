"""Write hf_rope.json, the frozen results that tests/test_hf_config.py compares with.

Every configuration is what the model's config.json on the Hugging Face hub says, cut down to what matters here;
"synthetic" marks those with numbers made up, which stand for a kind of configuration, not for a model. The frequencies
come from transformers, in its own float32: from ROPE_INIT_FUNCTIONS, or for the type "default" from the model's
rotary module. transformers does not read every configuration that is published: "port" is what it was given instead,
for ChatGLM that of GLM, as its weights were ported, and for old names of "longrope" the new one.

    pip install torch transformers
    python tests/data/make_hf_rope.py
"""

import importlib
import inspect
import json
import math
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import logging
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

logging.set_verbosity_error()
OUT = Path(__file__).with_name("hf_rope.json")


def model(model_type, hidden_size, heads, kv_heads, longest, **rest):
    """A configuration with the usual keys."""
    return {
        "model_type": model_type,
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": longest,
        **rest,
    }


def llama3(factor, turns=(1.0, 4.0)):
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": turns[0],
        "high_freq_factor": turns[1],
        "original_max_position_embeddings": 8192,
    }


def deepseek_yarn(**mscales):
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    return yarn | mscales


def longrope(kind):
    """Made up, of the length of Phi-3-mini's and Phi-4-mini's."""
    short = [1.0 + round(0.02 * i, 3) for i in range(48)]
    long = [round(1.0 + 0.05 * i + 0.03 * i * i, 3) for i in range(48)]
    return {"type": kind, "short_factor": short, "long_factor": long}


LLAMA2 = model("llama", 4096, 32, 32, 4096)
LLAMA31 = model("llama", 4096, 32, 8, 131072)
SCOUT = model("llama4_text", 5120, 40, 8, 10485760, head_dim=128, rope_theta=5e5, rope_scaling=llama3(16.0, (1.0, 1.0)))
QWEN25 = model("qwen2", 3584, 28, 4, 32768, rope_theta=1e6)
PHI3 = model("phi3", 3072, 32, 32, 131072, rope_theta=1e4, original_max_position_embeddings=4096)
GEMMA3 = model("gemma3_text", 5376, 32, 16, 131072, head_dim=128, rope_theta=1e6, rope_local_base_freq=1e4)
GEMMA3 |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
GEMMA3_4B = {"model_type": "gemma3_text", "hidden_size": 2560, "rope_scaling": GEMMA3["rope_scaling"]}  # says no more
GEMMA4 = model("gemma4_text", 2816, 16, 8, 262144, num_hidden_layers=6, head_dim=256, global_head_dim=512) | {
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 2,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
}
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_theta": 10000}
DEEPSEEK_V2 = model("deepseek_v2", 2048, 16, 16, 163840, **MLA)
DEEPSEEK_V3 = model("deepseek_v3", 7168, 128, 128, 163840, **MLA)
GPT_OSS_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
OTHER_YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048, "beta_fast": 16}
OLMO3 = model(
    "olmo3", 4096, 32, 32, 65536, rope_theta=500000, layer_types=GEMMA4["layer_types"], num_hidden_layers=6
) | {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
}
CHATGLM = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "original_rope": True,
}
GLM = model("glm", 4096, 32, 2, 131072, head_dim=128, partial_rotary_factor=0.5)
NEOX = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048}
HUNYUAN = model("hunyuan_v1_dense", 4096, 32, 8, 32768, head_dim=128, rope_theta=1e4)


def case(config, **rest):
    """layer: one that is rotated, where they are not all."""
    return {"config": config, **rest}


def made_up(config, **rest):
    return case(config, synthetic=True, **rest)


CASES = {
    "Llama-2-7b": case(LLAMA2),
    "LLaMA-2-7B-32K": case(
        LLAMA2 | {"max_position_embeddings": 32768, "rope_scaling": {"type": "linear", "factor": 8.0}}
    ),
    "Llama 2, dynamic": made_up(LLAMA2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "Llama 2, dynamic, long": made_up(LLAMA2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, seq_len=10000),
    "Meta-Llama-3-8B": case(model("llama", 4096, 32, 8, 8192, rope_theta=5e5)),
    "Llama-3.1-8B": case(LLAMA31 | {"rope_theta": 5e5, "rope_scaling": llama3(8.0)}),
    "Llama-3.1-8B, new form": case(LLAMA31 | {"rope_parameters": {"rope_theta": 5e5} | llama3(8.0)}),
    "Llama-3.2-1B": case(model("llama", 2048, 32, 8, 131072, head_dim=64, rope_theta=5e5, rope_scaling=llama3(32.0))),
    "Llama-4-Scout-17B-16E": case({"model_type": "llama4", "text_config": SCOUT}, layer="chunked_attention"),
    "Llama-4-Maverick-17B-128E": case(
        SCOUT | {"rope_scaling": None, "max_position_embeddings": 1048576}, layer="chunked_attention"
    ),
    "Mistral-7B-v0.1": case(model("mistral", 4096, 32, 8, 32768, rope_theta=1e4)),
    "Mistral-Nemo-Base-2407": case(model("mistral", 5120, 32, 8, 131072, head_dim=128, rope_theta=1e6)),
    "Qwen2-7B": case(QWEN25 | {"max_position_embeddings": 131072}),
    "Qwen2.5-7B-Instruct, yarn": case(
        QWEN25 | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    ),
    "Qwen2-VL-7B": case(
        QWEN25 | {"model_type": "qwen2_vl", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    ),
    "Qwen3-8B": case(model("qwen3", 4096, 32, 8, 40960, head_dim=128, rope_theta=1000000)),
    "Qwen3-Next-80B-A3B": case(
        model("qwen3_next", 2048, 16, 2, 262144, head_dim=256, partial_rotary_factor=0.25, rope_theta=10000000)
    ),
    "phi-2": case(model("phi", 2560, 32, 32, 2048, partial_rotary_factor=0.4, rope_theta=1e4)),
    "Phi-3-mini-4k": case(PHI3 | {"max_position_embeddings": 4096, "rope_scaling": None}),
    **{
        f"Phi-3-mini-128k, {kind}, {'long' if seq_len else 'short'}": made_up(
            PHI3 | {"rope_scaling": longrope(kind)},
            port=PHI3 | {"rope_scaling": longrope("longrope")},
            seq_len=seq_len,
        )
        for kind in ("su", "yarn", "longrope")
        for seq_len in (None, 4097)
    },
    "Phi-4-mini": made_up(
        PHI3
        | {"num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75}
        | {"rope_scaling": longrope("longrope")},
        seq_len=100000,
    ),
    "phi-4": case(model("phi3", 5120, 40, 10, 16384, rope_theta=250000, original_max_position_embeddings=16384)),
    "gemma-2-9b": case(model("gemma2", 3584, 16, 8, 8192, head_dim=256, rope_theta=1e4)),
    "gemma-3-27b, full": case(GEMMA3, layer_type="full_attention"),
    "gemma-3-27b, sliding": case(GEMMA3, layer_type="sliding_attention"),
    "gemma-3-4b, full": case({"model_type": "gemma3", "text_config": GEMMA3_4B}, layer_type="full_attention"),
    "gemma-4-26B-A4B, full": case(GEMMA4, layer_type="full_attention"),
    "gemma-4-26B-A4B, sliding": case(GEMMA4, layer_type="sliding_attention"),
    "DeepSeek-V2-Lite": case(DEEPSEEK_V2 | {"rope_scaling": deepseek_yarn(mscale=0.707, mscale_all_dim=0.707)}),
    "DeepSeek-V2, two mscales": made_up(DEEPSEEK_V2 | {"rope_scaling": deepseek_yarn(mscale=1.0, mscale_all_dim=0.5)}),
    "DeepSeek-V2, one mscale": made_up(DEEPSEEK_V2 | {"rope_scaling": deepseek_yarn(mscale_all_dim=0.707)}),
    "DeepSeek-V3": case(DEEPSEEK_V3 | {"rope_scaling": deepseek_yarn(mscale=1.0, mscale_all_dim=1.0)}),
    "gpt-oss-20b": case(
        model("gpt_oss", 2880, 64, 8, 131072, head_dim=64, rope_theta=150000, rope_scaling=GPT_OSS_YARN)
    ),
    "Llama 2, yarn": made_up(LLAMA2 | {"rope_scaling": OTHER_YARN | {"beta_slow": 2, "attention_factor": 1.125}}),
    "Olmo-3-7B, full": case(OLMO3, layer_type="full_attention"),
    "Olmo-3-7B, sliding": case(OLMO3, layer_type="sliding_attention"),
    "gpt-neox-20b": case({"model_type": "gpt_neox", "hidden_size": 6144, "num_attention_heads": 64} | NEOX),
    "pythia-1b": case({"model_type": "gpt_neox", "hidden_size": 2048, "num_attention_heads": 8} | NEOX),
    "gpt-j-6b": case({"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64}),
    "glm-4-9b-chat": case(CHATGLM | {"rope_ratio": 500, "seq_length": 131072}, port=GLM | {"rope_theta": 5e6}),
    "glm-4-9b-chat-hf": case(GLM | {"rope_theta": 5e6}),
    "chatglm3-6b": case(CHATGLM | {"seq_length": 8192}, port=GLM | {"rope_theta": 1e4}),
    "SmolLM-135M": case(model("llama", 576, 9, 3, 2048, rope_theta=1e4, rope_scaling=None)),
    "SmolLM3-3B": case(model("smollm3", 2048, 16, 4, 65536, rope_theta=5e6, rope_scaling=None), layer=0),
    "c4ai-command-r-v01": case(model("cohere", 8192, 64, 64, 8192, rope_theta=8e6)),
    "Hunyuan-7B": case(HUNYUAN | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}),
}


def hf_config(config):
    """transformers' object for what the model's layers are made from."""
    config = json.loads(json.dumps(config))  # transformers changes what it is given
    made = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    return made.get_text_config()


def rotary_class(config):
    """The model's module, and its class of rotary embeddings; None if it has tables instead."""
    folder = config.model_type.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    found = [
        value
        for name, value in vars(module).items()
        if name.endswith("RotaryEmbedding") and "Vision" not in name and value.__module__ == module.__name__
    ]
    return module, found[0] if found else None


def frequencies(config, layer_type, seq_len):
    """float32 [rotary_dim / 2] and the attention factor."""
    module, rotary = rotary_class(config)
    if not hasattr(config, "rope_parameters"):  # GPT-J: the angle of position 1
        sin, cos = module.create_sinusoidal_positions(2, config.rotary_dim)[1].double().chunk(2)
        return torch.atan2(sin, cos).float(), 1.0
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    if parameters["rope_type"] == "dynamic" and parameters.get("alpha"):
        return rotary.compute_ntk_alpha_rope_parameters(config)
    arguments = {"layer_type": layer_type} if layer_type else {}
    if parameters["rope_type"] == "default":
        if config.is_heterogeneous:
            config = config.per_layer_config[layer_type]
        return rotary.compute_default_rope_parameters(config, **arguments)
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=seq_len, **arguments)


def layout(config):
    """Which elements the model's own code pairs."""
    module, _ = rotary_class(config)
    interleaves = getattr(config, "rope_interleave", False) or "view_as_complex" in inspect.getsource(module)
    if not interleaves:
        x, one = torch.arange(8.0).reshape(1, 1, 1, 8), torch.ones(1, 1, 4)
        if hasattr(module, "_apply_rotary_emb"):  # GPT-OSS
            turned = module._apply_rotary_emb(x, 0 * one, one)
        else:
            turned = (getattr(module, "rotate_half", None) or module.rotate_every_two)(x)
        interleaves = turned.flatten()[0] == -1  # element 0 becomes minus its partner, element 1 or 4
    return "gptj" if interleaves else "neox"


def heads(config, layer_type):
    """Heads of q, rotated heads of k, elements of what is rotated or holds it."""
    if config.is_heterogeneous:
        config = config.per_layer_config[layer_type]
    count = config.num_attention_heads
    if hasattr(config, "qk_rope_head_dim"):
        return [count, 1, config.qk_rope_head_dim]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // count
    return [count, getattr(config, "num_key_value_heads", count), head_dim]


def expected(case):
    layer_type = case.get("layer_type")
    config = hf_config(case.get("port", case["config"]))
    inv_freq, attention_factor = frequencies(config, layer_type, case.get("seq_len"))
    values = [float(f) for f in inv_freq.to(torch.float32)]
    assert all(math.isfinite(f) for f in values)
    return {
        "heads": heads(config, layer_type),
        "layout": layout(config),
        "attention_factor": attention_factor,
        "inv_freq": values,
    }


def main():
    cases = []
    for name, case in CASES.items():
        case = {key: value for key, value in case.items() if value is not None}
        cases.append({"name": name} | case | expected(case))
    versions = {package: version(package) for package in ("torch", "transformers")}
    head = {"made_by": Path(__file__).name, "versions": versions}
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
