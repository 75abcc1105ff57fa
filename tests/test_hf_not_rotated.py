"""Layers and models whose q and k are not rotated: refused, and those beside them read."""

import pytest

from kit.hf import MLA, D, from_hf
from pyrope import UnsupportedError

NOPE = {"no_rope_layers": [1, 1, 1, 0]}
UNSAID = {"layer_type": "full_attention"}


@pytest.mark.parametrize(
    ("model_type", "config", "arguments"),
    [
        ("exaone4", D | {"sliding_window": 4096}, UNSAID),
        ("exaone_moe", D, UNSAID),
        ("cohere2", D, UNSAID),
        ("cohere2_moe", D, UNSAID),
        ("afmoe", D, UNSAID),
        ("llama4_text", D, UNSAID),
        ("llama4_text", D | NOPE, {"layer_type": 3}),
        ("smollm3", D | NOPE, {"layer_type": 3}),
        ("smollm3", D | {"no_rope_layers": [0, 0, 0, 0]}, {}),
        ("smollm3", D, {"layer_type": 35}),  # each fourth, where the configuration does not say
        ("mistral_large4_text", MLA | NOPE, {"layer_type": 3}),
        ("qwen3_next", D, {"layer_type": "linear_attention"}),
    ],
)
def test_layers_that_are_not_rotated(model_type, config, arguments):
    with pytest.raises(UnsupportedError, match=r"^layer_type: .*, q and k of these layers are not rotated"):
        from_hf(config, model_type, **arguments)


@pytest.mark.parametrize(
    ("model_type", "config", "allowed"),
    [
        ("exaone4", D | {"sliding_window": 4096}, "'sliding_attention'"),
        ("cohere2", D, "'sliding_attention'"),
        ("afmoe", D, "'sliding_attention'"),
        ("llama4_text", D, "'chunked_attention'"),
        ("gemma3_text", D | {"rope_theta": 1e6}, "'full_attention', 'sliding_attention'"),
    ],
)
def test_layers_that_differ_must_be_chosen(model_type, config, allowed):
    with pytest.raises(ValueError, match=rf"^layer_type: None, must be one of {allowed}, the layers that are rotated"):
        from_hf(config, model_type)


def test_rotated_layers_beside_others():
    assert from_hf(D | NOPE, "smollm3", layer_type=2).layout == "neox"
    assert from_hf(D, "cohere2", layer_type="sliding_attention").layout == "gptj"
    assert from_hf(D | {"sliding_window": None}, "exaone4").rotary_dim == 128  # one kind of layers, all rotated
    assert from_hf(D | {"no_rope_layers": [1, 1, 1, 1]}, "smollm3").theta == 1e4
    assert from_hf(D, "qwen3_next").rotary_dim == 64  # those of linear attention have no q and k


@pytest.mark.parametrize(
    ("model_type", "config", "text"),
    [
        ("granitemoehybrid", D | {"position_embedding_type": "nope"}, "position_embedding_type: 'nope', "),
        ("granitemoehybrid", D | {"position_embedding_type": None}, "position_embedding_type: None, "),
        ("esm", D, "position_embedding_type: 'absolute', "),
        ("zamba2", D | {"use_mem_rope": False}, "use_mem_rope: False, "),
        ("kimi_linear", MLA | {"mla_use_nope": True}, "model_type: 'kimi_linear', "),
        ("roformer", D, "model_type: 'roformer', "),
    ],
)
def test_models_that_do_not_rotate(model_type, config, text):
    with pytest.raises(UnsupportedError, match=rf"^{text}"):
        from_hf(config, model_type)


def test_models_that_may():
    assert from_hf(D | {"position_embedding_type": "rope"}, "granitemoehybrid").layout == "neox"
    assert from_hf(D | {"position_embedding_type": "rotary"}, "esm").layout == "neox"
