"""What Rope.from_hf_config knows of models whose config.json does not say it: pairing, layers, heads, defaults."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import pyrope
from kit.hf import MLA, D, from_hf
from pyrope import UnsupportedError


def turned(rope, element=0):
    """A head whose one element is 1, at position 1."""
    x = np.zeros((1, rope.num_q_heads, rope.head_dim), np.float32)
    x[..., element] = 1
    rope.apply(x, None, offset=1)
    return x[0, 0]


# ---- pairing and direction

ADJACENT = "kimi_k2 bailing_hybrid axk2 mistral_large4_text hy_v4_vl_text axk1 sarvam_mla"
CALLED = {"mistral_large4_text": 0, "bailing_hybrid": "full_attention"}  # their layers are not all rotated


@pytest.mark.parametrize("model_type", ADJACENT.split())
def test_latent_attention_pairs_neighbours(model_type):
    rope = from_hf(MLA, model_type, layer_type=CALLED.get(model_type))
    assert (rope.layout, rope.head_dim, rope.num_q_heads, rope.num_k_heads) == ("gptj", 64, 32, 1)


@pytest.mark.parametrize("layer_type", ["indexed_attention", "sliding_attention"])
def test_dots3_pairs_neighbours(layer_type):
    assert from_hf(MLA, "dots3_note_text", layer_type=layer_type).layout == "gptj"


BYTES = "blt_patcher blt_local_encoder blt_local_decoder blt_global_transformer"
SOUND = "pe_audio_encoder pe_video_encoder pe_audio_video_encoder"


@pytest.mark.parametrize("model_type", (BYTES + " " + SOUND).split())
def test_pairs_neighbours(model_type):
    rope = from_hf(D, model_type, dtype="float32")
    head = turned(rope)
    assert rope.layout == "gptj" and np.flatnonzero(head).tolist() == [0, 1]
    assert head[:2] == pytest.approx([math.cos(1), math.sin(1)], abs=1e-7)


def test_nanochat_turns_the_other_way():
    head = turned(from_hf(D, "nanochat", dtype="float32"))
    assert np.flatnonzero(head).tolist() == [0, 64]
    assert head[[0, 64]] == pytest.approx([0.540302, -0.841471], abs=1e-6)
    forward, backward = from_hf(D, "llama"), from_hf(D, "nanochat")
    assert list(backward.inv_freq) == [-f for f in forward.inv_freq]


# ---- heads


def test_heads_of_a_rank():
    """num_q_heads is of what is rotated here, and not of the model, which hidden_size is of."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 1e4}
    rope = from_hf(config, "llama", num_q_heads=8, num_k_heads=2)
    assert (rope.head_dim, rope.num_q_heads, rope.num_k_heads) == (128, 8, 2)


def test_k_alone():
    rope = from_hf(D, "llama", num_q_heads=0, dtype="float32")
    assert (rope.num_q_heads, rope.num_k_heads, rope.head_dim) == (0, 8, 128)
    k = np.ones((1, 8, 128), np.float32)
    rope.apply(None, k, offset=1)
    assert k[0, 0, 0] == pytest.approx(math.cos(1) - math.sin(1), abs=1e-6)


def test_no_heads_at_all():
    with pytest.raises(ValueError, match="num_q_heads: 0 and num_k_heads: 0"):
        from_hf(D, "llama", num_q_heads=0, num_k_heads=0)


# ---- layers that differ

MIMO = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "rope_theta": 5e6,
    "partial_rotary_factor": 0.334,
    "swa_rope_theta": 1e4,
    "swa_num_key_value_heads": 8,
}
DOTS = MLA | {
    "rope_theta": 8e6,
    "swa_rope_theta": 5e4,
    "swa_num_attention_heads": 16,
    "layer_types": ["indexed_attention", "sliding_attention"],
}
STEP = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_attention_groups": 8,
    "head_dim": 128,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "rope_theta": [5e6, 1e4, 1e4],
    "partial_rotary_factors": [0.5, 1.0, 1.0],
    "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8},
    "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 32.0}
    | {"original_max_position_embeddings": 131072},
    "yarn_only_types": ["full_attention"],
}
LAGUNA = {"hidden_size": 2048, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128}


@pytest.mark.parametrize(
    ("model_type", "config", "layer_type", "theta", "rotary_dim", "heads"),
    [
        ("mimo_v2_flash", MIMO, "full_attention", 5e6, 64, (64, 4)),
        ("mimo_v2_flash", MIMO, "sliding_attention", 1e4, 64, (64, 8)),
        ("dots3_note_text", DOTS, "indexed_attention", 8e6, 64, (32, 1)),
        ("dots3_note_text", DOTS, "sliding_attention", 5e4, 64, (16, 1)),
        ("dots3_note_text", DOTS, 1, 5e4, 64, (16, 1)),
        ("step3p5", STEP, "full_attention", 5e6, 64, (64, 8)),
        ("step3p5", STEP, "sliding_attention", 1e4, 128, (96, 8)),
        ("gemma3_text", D | {"rope_local_base_freq": 2e4, "head_dim": 256}, "sliding_attention", 2e4, 256, (8, 8)),
        (
            "modernbert",
            D | {"global_rope_theta": 160000.0, "local_rope_theta": 1e4},
            "full_attention",
            16e4,
            128,
            (8, 8),
        ),
        (
            "modernbert",
            D | {"global_rope_theta": 160000.0, "local_rope_theta": 1e4},
            "sliding_attention",
            1e4,
            128,
            (8, 8),
        ),
        ("laguna", LAGUNA, "full_attention", 5e5, 64, (48, 8)),
        ("laguna", LAGUNA, "sliding_attention", 1e4, 128, (48, 8)),
    ],
)
def test_keys_of_a_type_of_layers(model_type, config, layer_type, theta, rotary_dim, heads):
    rope = from_hf(config, model_type, layer_type=layer_type)
    assert (rope.theta, rope.rotary_dim, (rope.num_q_heads, rope.num_k_heads)) == (theta, rotary_dim, heads)


def test_step_scales_some_types():
    assert isinstance(from_hf(STEP, "step3p5", layer_type="full_attention").scaling, pyrope.Llama3)
    assert from_hf(STEP, "step3p5", layer_type="sliding_attention").scaling is None


TYPES = {"layer_types": ["full_attention", "sliding_attention"] * 2, "num_hidden_layers": 4, "head_dim": 128}


@pytest.mark.parametrize("model_type", ["granite_swa", "granitemoe_swa"])
def test_theta_of_a_layer(model_type):
    config = D | TYPES | {"layer_rope_theta": [5e5, 1e4, 0, 1e4]}
    assert from_hf(config, model_type, layer_type=0).theta == 5e5
    assert from_hf(config, model_type, layer_type="sliding_attention").theta == 1e4
    with pytest.raises(UnsupportedError, match=r"^layer_type: 2, q and k of these layers are not rotated"):
        from_hf(config, model_type, layer_type=2)
    with pytest.raises(
        ValueError, match=r"^layer_type: 'full_attention', some of these layers are not rotated; must be"
    ):
        from_hf(config, model_type, layer_type="full_attention")
    with pytest.raises(ValueError, match=r"^layer_type: None, "):
        from_hf(config, model_type)


@pytest.mark.parametrize("model_type", ["muse_glimmer_text", "muse_spark_text"])
def test_theta_0_of_a_layer(model_type):
    config = D | TYPES | {"layer_rope_theta": [0, 1e4, 0, 1e4]}
    assert from_hf(config, model_type, layer_type="sliding_attention").theta == 1e4
    with pytest.raises(
        UnsupportedError, match=r"^layer_type: 'full_attention', q and k of these layers are not rotated"
    ):
        from_hf(config, model_type, layer_type="full_attention")


def test_layers_that_are_scaled():
    config = D | {"num_hidden_layers": 4, "rope_scaling_layers": [0, 2], "head_dim": 128}
    config |= {"layer_types": ["full_attention"] * 4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert from_hf(config, "molmo2_text", layer_type=0).scaling == pyrope.Linear(4.0)
    assert from_hf(config, "molmo2_text", layer_type=1).scaling is None
    with pytest.raises(ValueError, match=r"^layer_type: None, these layers are not rotated alike; must be the number"):
        from_hf(config, "molmo2_text")


def test_layers_that_are_scaled_without_types():
    config = D | {"num_hidden_layers": 4, "rope_scaling_layers": [0, 2], "head_dim": 128}
    config |= {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert from_hf(config, "molmo2_text", layer_type=2).scaling == pyrope.Linear(4.0)
    assert from_hf(config, "molmo2_text", layer_type=3).scaling is None


@pytest.mark.parametrize(
    ("layer_type", "error", "text"),
    [
        (4, ValueError, "layer_type: 4, must be a layer type or the number of one of 4 layers"),
        (-1, ValueError, "layer_type: -1, must be a layer type or the number of one of 4 layers"),
        (True, TypeError, "layer_type: True, must be the name of a type of layers or the number of a layer"),
        (1.0, TypeError, "layer_type: 1.0, must be the name of a type of layers or the number of a layer"),
        ("sliding", ValueError, "layer_type: 'sliding', must be one of 'full_attention', 'sliding_attention', the lay"),
    ],
)
def test_numbers_of_layers(layer_type, error, text):
    with pytest.raises(error, match=rf"^{text}"):
        from_hf(D | TYPES, "granite_swa", layer_type=layer_type)


@pytest.mark.parametrize(
    ("changes", "layer_type", "error", "text"),
    [
        (
            {"layer_rope_theta": [1e4, "0", 0, 0]},
            1,
            ValueError,
            r"layer_rope_theta\[1\]: '0', must be a number, 0 or above",
        ),
        ({"layer_rope_theta": 1e4}, 1, ValueError, "layer_rope_theta: 10000.0, must be a list"),
        (
            {"layer_rope_theta": [1e4, 1e4]},
            2,
            ValueError,
            "layer_type: 2, must be a layer type or the number of one of 2",
        ),
        ({"layer_rope_theta": []}, 2, None, ""),
    ],
)
def test_lists_of_layers(changes, layer_type, error, text):
    config = D | TYPES | changes
    if error is None:
        assert from_hf(config, "granite_swa", layer_type=layer_type).theta == 1e4
        return
    with pytest.raises(error, match=rf"^{text}"):
        from_hf(config, "granite_swa", layer_type=layer_type)


# ---- what a model's class knows


def test_gpt_oss_is_stretched():
    config = {"hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64}
    rope = from_hf(config, "gpt_oss")
    # YaRN by 32: the slowest pair is divided by it, and the magnitude is 0.1 ln 32 + 1.
    assert rope.inv_freq[-1] == pytest.approx(150000 ** (-62 / 64) / 32) == pytest.approx(3.02351e-07, rel=1e-5)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(32) + 1) == pytest.approx(1.346574, abs=1e-6)


@pytest.mark.parametrize(
    ("model_type", "config", "head_dim", "num_k_heads", "rotary_dim"),
    [
        ("mistral", {"hidden_size": 4096, "num_attention_heads": 32}, 128, 8, 128),
        ("mistral", {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": None}, 128, 32, 128),
        ("hy_v3", {"hidden_size": 4096, "num_attention_heads": 64}, 128, 8, 128),
        ("solar_open", {"hidden_size": 4096, "num_attention_heads": 64}, 128, 8, 128),
        ("minimax_m2", {"hidden_size": 4096, "num_attention_heads": 64}, 128, 8, 128),
        ("ernie4_5", {"hidden_size": 4096, "num_attention_heads": 64}, 128, 2, 128),
        ("qwen4_exp_text", {"hidden_size": 4096, "num_attention_heads": 64}, 256, 2, 256),
        ("bamba", D, 128, 8, 64),
        ("qwen3_next", D, 256, 8, 64),
    ],
)
def test_sizes(model_type, config, head_dim, num_k_heads, rotary_dim):
    rope = from_hf(config, model_type)
    assert (rope.head_dim, rope.num_k_heads, rope.rotary_dim) == (head_dim, num_k_heads, rotary_dim)


# ---- what is not known


def test_an_unknown_model():
    with pytest.raises(UnsupportedError, match=r"^model_type: 'unheard_of', not one of the .* with layout= the config"):
        from_hf(D, "unheard_of")
    with pytest.raises(UnsupportedError, match=r"^model_type: '', not one of "):
        from_hf(D)
    rope = from_hf(D, "unheard_of", layout="gptj")
    assert (rope.layout, rope.head_dim, rope.theta) == ("gptj", 128, 1e4)
    with pytest.raises(ValueError, match=r"^rope_theta: missing"):
        from_hf(D | {"rope_theta": None}, "unheard_of", layout="gptj")


@pytest.mark.parametrize(
    ("model_type", "config", "text"),
    [
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor: 0.5, models of this type rotate all of a head",
        ),
        ("llama", {"rope_interleave": True}, "rope_interleave: True, but llama pairs as 'neox'"),
        ("exaone4", {"layer_types": ["chunked_attention"]}, "layer_types: 'chunked_attention', must be one of "),
    ],
)
def test_keys_that_a_model_does_not_have(model_type, config, text):
    with pytest.raises(UnsupportedError, match=rf"^{text}"):
        from_hf(D | config, model_type)


def test_a_key_that_the_default_parameters_contradict():
    with pytest.raises(ValueError, match=r"^rope_parameters: missing, but rope_theta is not that of the model's class"):
        from_hf(D, "gpt_oss")


def test_the_data_file_is_small_and_read_late():
    """import pyrope must not pay for it."""
    import subprocess
    import sys

    path = Path(pyrope.__file__).with_name("hf_models.json")
    assert path.stat().st_size < 100_000 and json.loads(path.read_text(encoding="utf-8"))["models"]
    code = "import sys, pyrope; assert not {'json', 'pyrope.hf', 'numpy', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
