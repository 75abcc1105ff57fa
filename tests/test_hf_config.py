"""Rope.from_hf_config against transformers, for the model families in use.

tests/data/hf_rope.json holds transformers' results, written by tests/data/make_hf_rope.py; where torch and the same
transformers are installed, they are computed anew, too.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pyrope
from kit.hf import has_transformers
from kit.refusals import T, V, rows
from kit.rounding import rounding
from pyrope import UnsupportedError

DATA = Path(__file__).parent / "data"
FROZEN = json.loads((DATA / "hf_rope.json").read_text(encoding="utf-8"))
CASES = FROZEN["cases"]


def from_hf(config, **arguments):
    return pyrope.Rope.from_hf_config(config, device="cpu", **arguments)


def arguments_of(case):
    names = {"layer": "layer_type", "layer_type": "layer_type", "seq_len": "seq_len"}
    return {name: case[key] for key, name in names.items() if key in case}


def check(rope, case):
    want = np.array(case["inv_freq"])
    assert rope.rotary_dim == 2 * len(want)
    assert (np.abs(rope.inv_freq - want) <= rounding(rope, want)).all()
    # Both in double precision: a logarithm, a product, a sum, a root or quotient, each within an ulp.
    assert rope.attention_factor == pytest.approx(case["attention_factor"], rel=8 * 2.0**-53, abs=0)
    assert [rope.num_q_heads, rope.num_k_heads, rope.head_dim] == case["heads"]
    assert rope.layout == case["layout"] and rope.rotary_offset == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_frozen(case):
    check(from_hf(case["config"], **arguments_of(case)), case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_object(case):
    """As attributes instead of keys."""
    config = SimpleNamespace(**case["config"])
    if "text_config" in case["config"]:
        config.text_config = SimpleNamespace(**case["config"]["text_config"])
    check(from_hf(config, **arguments_of(case)), case)


if has_transformers(FROZEN["versions"]["transformers"]):

    @pytest.fixture(scope="module")
    def make_hf_rope():
        spec = importlib.util.spec_from_file_location("make_hf_rope", DATA / "make_hf_rope.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @pytest.mark.filterwarnings("default")
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
    def test_live(case, make_hf_rope):
        """The frozen results are those of the transformers that is here, and its own objects are understood."""
        now = make_hf_rope.expected(case)
        check(from_hf(case["config"], **arguments_of(case)), case | now)
        check(from_hf(make_hf_rope.hf_config(case.get("port", case["config"])), **arguments_of(case)), case | now)


def test_every_family_is_there():
    families = {case["config"]["model_type"] for case in CASES}
    assert families >= {"llama", "llama4", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gemma4_text"}
    assert families >= {"deepseek_v2", "deepseek_v3", "gpt_oss", "gpt_neox", "gptj", "chatglm", "smollm3"}


# ---- what the configuration does not decide

LLAMA = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
NESTED = {
    "layer_types": ["full_attention", "sliding_attention", "linear_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "linear_attention": None,
    },
}


def scaled(rope_type, **values):
    return {"rope_scaling": {"rope_type": rope_type} | values}


def longrope(**values):
    return scaled("longrope", short_factor=[1.0] * 32, long_factor=[2.0] * 32, **values)


def test_arguments_replace_the_configuration():
    rope = from_hf(
        LLAMA, layout="gptj", dtype="float16", angle="fp32", num_k_heads=2, rotary_dim=32, attention_factor=1.5
    )
    assert (rope.layout, rope.dtype, rope.angle, rope.num_k_heads) == ("gptj", "float16", "fp32", 2)
    assert rope.rotary_dim == 32 and rope.attention_factor == 1.5


def test_arguments_that_the_configuration_lacks():
    rope = from_hf({"hidden_size": 256}, num_q_heads=4, theta=5e5, layout="neox")
    assert (rope.head_dim, rope.num_k_heads, rope.theta) == (64, 4, 5e5)


def test_latent_attention_in_place():
    """All of q's head, of which the last part is rotated."""
    config = next(case["config"] for case in CASES if case["name"] == "DeepSeek-V3")
    rope = from_hf(config, head_dim=192, rotary_offset=128, num_k_heads=0)
    assert (rope.head_dim, rope.rotary_dim, rope.rotary_offset) == (192, 64, 128)


def test_an_object_of_a_subclass():
    class Mine(pyrope.Rope):
        pass

    assert type(Mine.from_hf_config(LLAMA, device="cpu")) is Mine


def test_layers_that_differ():
    full, sliding = (from_hf(LLAMA | NESTED, layer_type=name) for name in ("full_attention", "sliding_attention"))
    assert full.theta == 1e6 and full.scaling == pyrope.Linear(2.0)
    assert sliding.theta == 1e4 and sliding.scaling is None


def test_layers_that_do_not():
    config = LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}
    assert repr(from_hf(config, layer_type="sliding_attention")) == repr(from_hf(config))


@pytest.mark.parametrize(("seq_len", "divisor"), [(None, 1), (4096, 1), (4097, 2)])
def test_longrope_chooses_by_length(seq_len, divisor):
    rope = from_hf(LLAMA | longrope(original_max_position_embeddings=4096), seq_len=seq_len)
    assert rope.inv_freq[0] == 1 / divisor and rope.attention_factor == 1.0


@pytest.mark.parametrize(("seq_len", "magnitude"), [(None, 1.25), (5000, 1.5)])
def test_longrope_with_a_magnitude_for_each_length(seq_len, magnitude):
    config = LLAMA | longrope(short_mscale=1.25, long_mscale=1.5, factor=4.0)
    assert from_hf(config, seq_len=seq_len).attention_factor == magnitude


def test_yarn_without_a_factor():
    config = LLAMA | scaled("yarn", factor=None, original_max_position_embeddings=1024)
    assert from_hf(config).scaling.factor == 4.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "deepseek_v3", "rope_interleave": False}, "neox"),
        ({"model_type": "chatglm", "original_rope": False}, "neox"),
    ],
)
def test_layout(changes, expected):
    assert from_hf(LLAMA | changes).layout == expected


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"num_key_value_heads": None}, 4),
        ({"num_kv_heads": 2}, 2),
        ({"multi_query": True}, 1),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
    ],
)
def test_heads_of_k(changes, heads):
    assert from_hf(LLAMA | changes).num_k_heads == heads


PHI = LLAMA | {"model_type": "phi"}
MISSING = LLAMA | {"num_attention_heads": None}
REFUSED = rows(
    ("a number", 8, {}, T, "config: 8, must be a dict or a configuration object"),
    ("a class", SimpleNamespace, {}, T, "config: .*, must be a dict or a configuration object"),
    ("nothing", {}, {"layout": "neox"}, V, "num_attention_heads: missing"),
    ("no heads", MISSING, {}, V, "num_attention_heads: missing"),
    ("no head_dim", {"num_attention_heads": 4}, {"layout": "neox"}, V, "hidden_size: missing"),
    ("heads of broken size", LLAMA | {"hidden_size": 255}, {}, V, "hidden_size: 255, must be a multiple of"),
    ("heads not whole", LLAMA | {"num_attention_heads": 4.5}, {}, V, "num_attention_heads: 4.5, must be an integer"),
    ("heads a str", LLAMA | {"num_attention_heads": "4"}, {}, V, "num_attention_heads: '4', must be a number above 0"),
    ("seq_len", LLAMA, {"seq_len": 0}, V, "seq_len: 0, must be an integer above 0"),
    ("seq_len float", LLAMA, {"seq_len": 1.0}, V, "seq_len: 1.0, must be an integer above 0"),
    ("an option", LLAMA, {"factor": 2.0}, T, "factor: not an argument of Rope"),
    ("rope_type", LLAMA | scaled("xpos"), {}, UnsupportedError, r"rope_scaling\['rope_type'\]: 'xpos', must be one of"),
    (
        "rope_type of rope_parameters",
        LLAMA | {"rope_parameters": {"rope_type": "axial"}},
        {},
        UnsupportedError,
        r"rope_parameters\['rope_type'\]: 'axial', must be one of 'default', 'linear', 'dynamic', 'yarn', ",
    ),
    ("rope_scaling", LLAMA | {"rope_scaling": 2.0}, {}, V, "rope_scaling: 2.0, must be a dict"),
    (
        "both forms",
        LLAMA | scaled("linear", factor=2.0) | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {},
        V,
        "rope_parameters, rope_scaling: both given, and they differ",
    ),
    ("no theta", LLAMA | {"model_type": "unheard_of"}, {"layout": "neox"}, V, "rope_theta: missing"),
    ("theta", LLAMA | {"rope_theta": -1}, {}, V, "rope_theta: -1, must be a number above 0"),
    ("theta inf", LLAMA | {"rope_theta": float("inf")}, {}, V, "theta: inf, must be a finite number above 0"),
    ("linear", LLAMA | scaled("linear"), {}, V, r"rope_scaling\['factor'\]: missing"),
    ("linear zero", LLAMA | scaled("linear", factor=0), {}, V, r"rope_scaling\['factor'\]: 0, must be a number"),
    ("linear bool", LLAMA | scaled("linear", factor=True), {}, V, r"rope_scaling\['factor'\]: True, must be a number"),
    ("linear str", LLAMA | scaled("linear", factor="2"), {}, V, r"rope_scaling\['factor'\]: '2', must be a number"),
    ("dynamic", LLAMA | scaled("dynamic"), {}, V, r"rope_scaling\['factor'\]: missing"),
    (
        "dynamic without length",
        LLAMA | {"max_position_embeddings": None} | scaled("dynamic", factor=2.0),
        {},
        V,
        "max_position_embeddings: missing",
    ),
    ("yarn beta", LLAMA | scaled("yarn", factor=2.0, beta_fast=-1), {}, V, r"rope_scaling\['beta_fast'\]: -1, must be"),
    (
        "yarn truncate",
        LLAMA | scaled("yarn", factor=2.0, truncate="no"),
        {},
        V,
        r"rope_scaling\['truncate'\]: 'no', must",
    ),
    (
        "yarn original",
        LLAMA | scaled("yarn", factor=2.0, original_max_position_embeddings=0.5),
        {},
        V,
        r"rope_scaling\['original_max_position_embeddings'\]: 0.5, must be an integer",
    ),
    ("longrope", LLAMA | scaled("longrope", factor=2.0), {}, V, r"rope_scaling\['short_factor'\]: missing"),
    (
        "longrope number",
        LLAMA | scaled("longrope", factor=2.0, short_factor=1.0),
        {},
        V,
        r"rope_scaling\['short_factor'\]: 1.0, must be a list",
    ),
    (
        "longrope short",
        LLAMA | scaled("longrope", factor=2.0, short_factor=[1.0], long_factor=[2.0]),
        {},
        V,
        "short_factors: 1 values, must be rotary_dim / 2 = 32",
    ),
    ("longrope one mscale", LLAMA | longrope(short_mscale=1.25), {"seq_len": 9999}, V, r".*\['long_mscale'\]: missing"),
    ("llama3", LLAMA | scaled("llama3", factor=8.0), {}, V, r"rope_scaling\['low_freq_factor'\]: missing"),
    (
        "llama3 order",
        LLAMA | scaled("llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0),
        {},
        V,
        "high_freq_factor: 1, must be at least low_freq_factor, 4",
    ),
    ("partial", LLAMA | {"partial_rotary_factor": 1.5}, {}, V, "partial_rotary_factor: 1.5, must be at most 1"),
    ("partial odd", PHI | {"partial_rotary_factor": 0.51, "head_dim": 100}, {}, V, "rotary_dim: 51, must be even"),
    ("rotary_dim", LLAMA | {"rotary_dim": 128}, {}, V, "rotary_dim: 128, must be at most the head's 64 elements"),
    (
        "rotary_dim and partial",
        LLAMA | {"rotary_dim": 32, "partial_rotary_factor": 0.25},
        {},
        V,
        "rotary_dim: 32, but partial_rotary_factor is 0.25 of 64",
    ),
    (
        "layer_type",
        LLAMA | NESTED,
        {},
        V,
        "layer_type: None, must be one of 'full_attention', 'sliding_attention', the",
    ),
    (
        "layer_type without rotation",
        LLAMA | NESTED,
        {"layer_type": "linear_attention"},
        UnsupportedError,
        "layer_type: 'linear_attention', q and k of these layers are not rotated",
    ),
    (
        "layer_type of no layer",
        LLAMA | {"layer_types": ["full_attention"]},
        {"layer_type": "sliding_attention"},
        V,
        "layer_type: 'sliding_attention', must be one of 'full_attention'",
    ),
    (
        "layer_type of Gemma 3",
        {"model_type": "gemma3_text", "hidden_size": 2560},
        {},
        V,
        "layer_type: None, must be one of 'full_attention', 'sliding_attention'",
    ),
    (
        "key in a layer type",
        LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
        {"layer_type": "full_attention"},
        V,
        r"rope_parameters\['full_attention'\]\['factor'\]: missing",
    ),
    ("alibi", LLAMA | {"alibi": True}, {}, UnsupportedError, "alibi: True, the model has no rotary embedding"),
    ("ChatGLM-6B", LLAMA | {"position_encoding_2d": True}, {}, UnsupportedError, "position_encoding_2d: True, "),
)


@pytest.mark.parametrize(("config", "arguments", "error", "text"), REFUSED)
def test_refused(config, arguments, error, text):
    with pytest.raises(error, match=f"^{text}"):
        from_hf(config, **arguments)
