"""Forms of config.json that transformers does not read, or reads otherwise than the model's publisher.

The right numbers are from the publishers' definitions, written out here.
"""

import math

import pytest

import pyrope
from kit.hf import D, from_hf
from pyrope import UnsupportedError

QWEN = {"hidden_size": 4096, "num_attention_heads": 32, "rotary_emb_base": 10000, "seq_length": 8192}
NAS = {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": None, "rope_theta": 5e5}
XDROPE = {"type": "xdrope", "alpha": 1000.0, "factor": 1.0, "xdrope_section": [16, 16, 16, 16]}
XDROPE |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
V4 = {
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, 4, 128, 4, 0],
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536}
    | {"beta_fast": 32, "beta_slow": 1},
}


# ---- model types that transformers has no class for


@pytest.mark.parametrize(("seq_len", "factor"), [(None, 1), (8192, 1), (8193, 3), (16384, 3), (16385, 7), (32768, 7)])
def test_qwen_stretches_by_doublings(seq_len, factor):
    """The base times factor^(d / (d - 2)): the slowest pair is divided by it."""
    rope = from_hf(QWEN | {"use_dynamic_ntk": True}, "qwen", seq_len=seq_len)
    assert rope.inv_freq[-1] == pytest.approx(10000 ** (-126 / 128) / factor)
    assert (rope.layout, rope.head_dim, rope.num_k_heads) == ("neox", 128, 32)
    assert from_hf(QWEN | {"use_dynamic_ntk": False}, "qwen", seq_len=seq_len).scaling is None


def test_qwen_of_the_issue():
    rope = from_hf(QWEN | {"use_dynamic_ntk": True}, "qwen", seq_len=16384)
    assert rope.inv_freq[-1] == pytest.approx(3.84927e-5, rel=1e-5)


def blocks(*groups):
    return {"block_configs": [{"attention": {"n_heads_in_group": group}} for group in groups]}


def test_nemotron_nas_shares_k_by_block():
    assert from_hf(NAS | blocks(8, 8), "nemotron-nas").num_k_heads == 8
    assert from_hf(NAS | blocks(8, None, 8), "nemotron-nas").num_k_heads == 8  # a block without attention
    assert from_hf(NAS | blocks(8, 16), "nemotron-nas", layer_type=1).num_k_heads == 4
    with pytest.raises(ValueError, match=r"^layer_type: None, these layers are not rotated alike; must be the number"):
        from_hf(NAS | blocks(8, 16), "nemotron-nas")
    with pytest.raises(ValueError, match=r"^block_configs: missing"):
        from_hf(NAS, "nemotron-nas")


def test_phi3_small():
    config = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_embedding_base": 2e6}
    rope = from_hf(config | {"rope_position_scale": 1.0}, "phi3small")
    assert (rope.theta, rope.head_dim, rope.num_k_heads) == (2e6, 128, 8)
    with pytest.raises(UnsupportedError, match=r"^rope_position_scale: 2.0, must be 1.0"):
        from_hf(config | {"rope_position_scale": 2.0}, "phi3small")


# ---- keys that transformers drops


def test_dbrx():
    config = {"d_model": 6144, "n_heads": 48, "max_seq_len": 32768}
    rope = from_hf(config | {"attn_config": {"kv_n_heads": 8, "rope_theta": 500000, "clip_qkv": 8}}, "dbrx")
    assert (rope.theta, rope.num_k_heads, rope.head_dim, rope.layout) == (5e5, 8, 128, "neox")


@pytest.mark.parametrize("model_type", ["lfm2", "lfm2_moe"])
def test_lfm2(model_type):
    assert from_hf(D | {"rope_theta": None, "theta": 2e6}, model_type).theta == 2e6


def test_minimax_m3_turns_a_part():
    """transformers turns the whole head."""
    assert from_hf(D | {"head_dim": 128, "rotary_dim": 64}, "minimax_m3_vl_text").rotary_dim == 64
    assert from_hf(D | {"head_dim": 128}, "minimax_m3_vl_text").rotary_dim == 64


def test_olmo3_has_one_theta():
    """transformers takes its class's for the layers of sliding attention."""
    full, sliding = (from_hf(D, "olmo3", layer_type=name) for name in ("full_attention", "sliding_attention"))
    assert full.theta == sliding.theta == 1e4


def test_truncate_of_a_type_of_layers():
    """transformers reads it beside the types instead of in them."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    for truncate in (True, False):
        types = {"full_attention": yarn | {"truncate": truncate}, "sliding_attention": yarn}
        rope = from_hf(D | {"rope_theta": None, "rope_parameters": types}, "gemma3_text", layer_type="full_attention")
        assert rope.scaling.truncate is truncate


# ---- scalings


def test_ntk():
    """Alibaba's gte: the base times the factor, and all divided by factor^(2 / d)."""
    rope = from_hf(D | {"rope_scaling": {"type": "ntk", "factor": 8.0}}, "llama")
    want = [(1e4 * 8) ** (-2 * i / 128) / 8 ** (2 / 128) for i in range(64)]
    assert list(rope.inv_freq) == pytest.approx(want, rel=1e-12)


def test_ntk_mixed():
    """Pair m, from 1, divided by e^(a m^b), a = ln(factor) / (d / 2)^b (kexue.fm/archives/9706, equations 10 to 13)."""
    rope = from_hf(D | {"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.625}}, "llama")
    a = math.log(8) / 64**0.625
    want = [1e4 ** (-2 * i / 128) / math.exp(a * (i + 1) ** 0.625) for i in range(64)]
    assert list(rope.inv_freq) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("model_type", ["hunyuan_vl", "hunyuan_vl_text"])
def test_xdrope(model_type):
    """Four positions of sections of the pairs, as Tencent's code and vLLM have it; transformers splits the elements."""
    config = D | {"head_dim": 128, "rope_scaling": XDROPE}
    rope = from_hf(config, model_type)
    base = 1e4 * 1000 ** (128 / 126)
    assert list(rope.inv_freq) == pytest.approx([base ** (-2 * i / 128) for i in range(64)], rel=1e-12)
    fused = from_hf(config, model_type, cls=pyrope.FusedRope)
    assert (fused.sections, fused.sections_interleaved) == ((16, 16, 16, 16), False)
    assert rope.attention_factor == 1


# ---- DeepSeek V4


@pytest.mark.parametrize("layer_type", ["main", "sliding_attention", 0, 5])
def test_deepseek_v4_plain(layer_type):
    rope = from_hf(V4, "deepseek_v4", layer_type=layer_type)
    assert (rope.head_dim, rope.rotary_dim, rope.rotary_offset, rope.layout) == (512, 64, 448, "gptj")
    assert (rope.num_q_heads, rope.num_k_heads, rope.theta, rope.scaling) == (64, 1, 1e4, None)


@pytest.mark.parametrize("layer_type", ["compress", "compressed_sparse_attention", "heavily_compressed_attention", 2])
def test_deepseek_v4_compressed(layer_type):
    rope = from_hf(V4, "deepseek_v4", layer_type=layer_type)
    assert (rope.rotary_dim, rope.rotary_offset, rope.theta) == (64, 448, 160000)
    assert rope.scaling == pyrope.YaRN(16.0, 65536, 32.0, 1.0) and rope.attention_factor == 1


def test_deepseek_v4_must_be_chosen():
    with pytest.raises(ValueError, match=r"^layer_type: None, must be one of 'compress', 'main', the layers that are"):
        from_hf(V4, "deepseek_v4")


# ---- models of several parts

TEXT = D | {"model_type": "qwen2"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", "text_config": TEXT},
        {"model_type": "deepseek_vl_v2", "language_config": TEXT},
        {"model_type": "internvl_chat", "llm_config": TEXT},
        {"model_type": "qwen2_5_omni", "thinker_config": {"model_type": "qwen2_5_omni_thinker", "text_config": TEXT}},
    ],
)
def test_the_language_model_of_several_parts(config):
    assert pyrope.Rope.from_hf_config(config, device="cpu").head_dim == 128


def test_parts_without_a_model_type():
    """They are what the whole model's class makes them."""
    config = {"model_type": "qwen2_vl", "text_config": D}
    assert pyrope.FusedRope.from_hf_config(config, device="cpu").sections == (16, 24, 24)
    assert from_hf(D, "qwen2_vl", cls=pyrope.FusedRope).sections == (16, 24, 24)  # published flat


def test_where_to_look_is_said():
    with pytest.raises(UnsupportedError, match=r"^config\['llm_config'\]: model_type: 'unheard_of', not one of "):
        pyrope.Rope.from_hf_config({"llm_config": D | {"model_type": "unheard_of"}}, device="cpu")
    with pytest.raises(UnsupportedError, match=r"^config: the model has an encoder and a decoder; pass config\['deco"):
        pyrope.Rope.from_hf_config({"model_type": "t5gemma", "encoder": D, "decoder": D}, device="cpu")


# ---- no rotation


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (D | {"alibi": True}, "alibi: True, the model has no rotary embedding"),
        (D | {"position_encoding_2d": True}, "position_encoding_2d: True, the model's tokens have two positions"),
    ],
)
def test_other_positions(config, text):
    with pytest.raises(UnsupportedError, match=rf"^{text}"):
        from_hf(config, "llama")
