"""Models whose tokens have several positions: FusedRope.from_hf_config gives their sections, or they are refused."""

import pytest

import pyrope
from kit.hf import MLA, D, from_hf
from pyrope import UnsupportedError


@pytest.mark.parametrize(
    "model_type", ["dinov3_vit", "eomt_dinov3", "sapiens2", "llama4_vision_model", "qwen2_vl_vision"]
)
@pytest.mark.parametrize("cls", [pyrope.Rope, pyrope.FusedRope])
def test_two_dimensions_are_refused(model_type, cls):
    with pytest.raises(UnsupportedError, match=rf"^model_type: '{model_type}', its tokens have two or three positions"):
        from_hf(D, model_type, cls=cls)


SECTIONS = {
    "qwen2_vl_text": ((16, 24, 24), False),
    "qwen2_5_vl_text": ((16, 24, 24), False),
    "qwen2_5_omni_text": ((16, 24, 24), False),
    "paddleocr_vl_text": ((16, 24, 24), False),
    "qwen3_vl_text": ((24, 20, 20), True),
    "qwen3_vl_moe_text": ((24, 20, 20), True),
    "qwen3_omni_moe_text": ((24, 20, 20), True),
}


@pytest.mark.parametrize("model_type", SECTIONS)
def test_sections(model_type):
    config, (sizes, interleaved) = D | {"head_dim": 128}, SECTIONS[model_type]
    fused = from_hf(config, model_type, cls=pyrope.FusedRope)
    assert (fused.sections, fused.sections_interleaved) == (sizes, interleaved)
    said = config | {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 28, 32]}}
    assert from_hf(said, model_type, cls=pyrope.FusedRope).sections == (4, 28, 32)
    assert from_hf(said, model_type).rotary_dim == 128  # of text alone, whose positions are all the same


def test_sections_of_the_configuration():
    scaling = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    config = D | {"head_dim": 128, "rope_scaling": scaling}
    fused = from_hf(config, "qwen3_vl_text", cls=pyrope.FusedRope)
    assert (fused.sections, fused.sections_interleaved) == ((24, 20, 20), True)
    with pytest.raises(UnsupportedError, match=r"^rope_scaling\['mrope_interleaved'\]: True, the model's class does"):
        from_hf(config, "qwen2_vl_text", cls=pyrope.FusedRope)
    assert from_hf(config, "qwen3_vl_text", cls=pyrope.FusedRope, sections=None).sections is None


def test_sections_of_part_of_a_head():
    fused = from_hf(D | {"head_dim": 256}, "qwen3_5_text", cls=pyrope.FusedRope)
    assert (fused.rotary_dim, fused.sections, fused.sections_interleaved) == (64, (11, 11, 10), True)
    fused = from_hf(MLA, "hy_v4_vl_text", cls=pyrope.FusedRope)
    assert (fused.rotary_dim, fused.sections, fused.sections_interleaved) == (64, (12, 10, 10), True)


def test_sections_that_cannot_be():
    with pytest.raises(
        UnsupportedError, match=r"^sections: the order of this model's pairs is not one that pyrope has"
    ):
        from_hf(D, "ernie4_5_vl_moe_text", cls=pyrope.FusedRope)
    assert from_hf(D, "ernie4_5_vl_moe_text").layout == "gptj"


def test_streams_whose_order_is_not_known():
    """Two of neomme's; a Rope of text, whose positions are the same, is one of either."""
    with pytest.raises(UnsupportedError, match=r"^sections: tokens of this model have two positions"):
        from_hf(D, "neomme", pyrope.FusedRope, layer_type="full_attention")
    assert from_hf(D, "neomme", layer_type="full_attention").rotary_dim == 16
