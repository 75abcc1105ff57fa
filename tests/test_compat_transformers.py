"""pyrope.compat.transformers: the functions of transformers' models, in each of their forms, and patched models."""

import copy
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from kit.hf import require_transformers
from kit.torch_tensors import on, require_torch

torch = require_torch()
transformers = require_transformers()
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

sys.path.insert(0, str(Path(__file__).parent / "data"))
import hf_probe  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb  # noqa: E402

import pyrope  # noqa: E402
import pyrope.compat.transformers as compat  # noqa: E402
from pyrope.compat.transformers import _forms as forms  # noqa: E402
from pyrope.compat.transformers._angles import Angles  # noqa: E402
from pyrope.compat.transformers._families import FAMILIES  # noqa: E402
from pyrope.compat.transformers._patch import ROTARY, TURNS  # noqa: E402
from pyrope.torch._specs import spec_of  # noqa: E402

MODELS = Path(transformers.__file__).parent / "models"
BATCH, SEQ, HEADS, DIM = 2, 5, 3, 16
FLOAT32 = {"rtol": 1e-6, "atol": 2e-6}  # two products and a sum, rounded each there and together here

# Functions that turn by other things than cos and sin of a pair, or part of a tensor: their models are refused.
NOT_KNOWN = {
    ("edgetam_video", "apply_rotary_pos_emb_2d_cross_attn"),
    ("edgetam_video", "apply_rotary_pos_emb_2d_self_attn"),
    ("hunyuan_vl", "apply_rotary_pos_emb"),  # both elements of a pair turn by angles of their own
    ("musicflamingo", "apply_rotary_time_emb"),
    ("sam2_video", "apply_rotary_pos_emb_2d"),
    ("sam3_tracker_video", "apply_rotary_pos_emb_2d"),
    ("vjepa2", "rotate_queries_or_keys"),
}
PARTS = {("gpt_oss", "_apply_rotary_emb"), ("openai_privacy_filter", "_apply_rotary_emb")}  # of those that are known

FUNCTION = re.compile(r"^def (\w+)\((?:.*\n)((?:(?:[ )].*)?\n)+)", re.MULTILINE)


@functools.cache
def sources():
    """{(package, function): its text and that of what it calls}, found without running any."""
    found = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        functions = {m[1]: re.sub(r'""".*?"""', "", m[0], flags=re.DOTALL) for m in FUNCTION.finditer(path.read_text())}
        for name in filter(TURNS.match, functions):
            called = sorted(n for n in functions if n != name and f"{n}(" in functions[name])
            found[path.parent.name, name] = "".join(functions[n] for n in (name, *called))
    return found


def test_every_function_is_known_or_refused():
    known = {(package, family.function) for family in FAMILIES for package in family.packages.split()}
    assert sum(len(family.packages.split()) for family in FAMILIES) == len(known)
    assert known | NOT_KNOWN | PARTS == sources().keys() and not known & (NOT_KNOWN | PARTS)


def variants():
    """(family, package): one package for each text that functions of a family have."""
    texts = sources()
    found = {(f, texts[package, f.function]): package for f in FAMILIES for package in f.packages.split()}
    return [(family, package) for (family, _), package in found.items()]


def table(values, pairs, *lead, device):
    """cos or sin of a form, of any numbers."""
    rows = torch.randn(*lead, pairs, device=device)
    if values is forms.HALVES:
        return torch.cat((rows, rows), -1)
    return rows.repeat_interleave(2, -1) if values is forms.NEIGHBOURS else rows


def tensor(heads, order, strides, device):
    """Of a form's order of dimensions, as a view of other memory."""
    b, s, h, d = BATCH, SEQ, heads, DIM
    shape = {"bhsd": (b, h, s, d), "bshd": (b, s, h, d), "shd": (s, h, d)}[order]
    if strides == "contiguous":
        return torch.randn(shape, device=device)
    if strides == "packed":
        x = torch.randn(*((b, s, h) if order == "bhsd" else shape[:-1]), 3 * d, device=device)[..., d : 2 * d]
        return x.transpose(1, 2) if order == "bhsd" else x
    axes = (0, 1) if order == "shd" else (1, 2)
    swapped = list(shape)
    swapped[axes[0]], swapped[axes[1]] = shape[axes[1]], shape[axes[0]]
    return torch.randn(swapped, device=device).transpose(*axes)


ORDERS = {"sin_first": "bshd", "complex_in_front": "bshd", "vision": "shd"}
ROWS = {"vision": (SEQ,), "patches": (SEQ - 2,), "q_k_and_v": (SEQ,), "two_dimensions": (SEQ,)}


def arguments(family, rotary_dim, strides, device):
    """Of a family's function, by name; tensors that require grad first."""
    kind, form = family.make.__name__, family.form
    lead, order = ROWS.get(kind, (BATCH, SEQ)), ORDERS.get(kind, "bhsd")
    q, k, v = (tensor(heads, order, strides, device).requires_grad_() for heads in (HEADS, 1, 2))
    cos, sin = (table(form.values, rotary_dim // 2, *lead, device=device) for _ in "cs")
    if kind == "q_at_the_end":
        q = q[..., -2:, :].detach().requires_grad_()
    if form.values is forms.COMPLEX:
        return {"xq": q, "xk": k, "freqs_cis": torch.complex(cos, sin)}
    if kind in ("one_tensor", "sin_first"):
        return {"x" if kind == "one_tensor" else "tensor": q, "cos": cos, "sin": sin}
    more = {"v": v, "position_ids": torch.arange(SEQ, device=device).expand(BATCH, SEQ)} if kind == "q_k_and_v" else {}
    return {"q": q, "k": k, "cos": cos, "sin": sin} | more


@pytest.mark.parametrize(("family", "package"), variants(), ids=lambda x: x if isinstance(x, str) else x.make.__name__)
def test_functions(device, family, package):
    """Signature, values, strides and gradients of the model's own function."""
    theirs = getattr(importlib.import_module(f"transformers.models.{package}.modeling_{package}"), family.function)
    ours = compat.functions(package)[family.function]
    signatures = [
        [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()] for f in (theirs, ours)
    ]
    assert signatures[0] == signatures[1]
    torch.manual_seed(0)
    for strides in ("contiguous", "transposed", "packed"):
        for rotary_dim in (DIM // 2, DIM) if family.form.rest else (DIM,):
            given = arguments(family, rotary_dim, strides, on(device))
            results = [f(**given) for f in (theirs, ours)]
            want, got = ([r] if isinstance(r, torch.Tensor) else list(r) for r in results)
            assert [x.stride() for x in got] == [x.stride() for x in want], (strides, rotary_dim)
            leaves = [x for x in given.values() if x.requires_grad]
            weights = [torch.randn_like(x) for x in want]
            for a, b in zip(want, got, strict=True):
                torch.testing.assert_close(b, a, **FLOAT32)
            grads = [torch.autograd.grad(out, leaves, weights) for out in (want, got)]
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(b, a, **FLOAT32)


def test_no_k(device):
    """Two families' functions take q alone; mistral_large4 returns None for k."""
    q, cos, sin = (torch.randn(1, 2, SEQ, DIM, device=on(device)), *torch.ones(2, 1, SEQ, DIM, device=on(device)))
    alone = compat.functions("qwen4_exp")["apply_rotary_pos_emb"](q, cos=cos, sin=sin)
    assert torch.equal(alone, compat.functions("qwen3_next")["apply_rotary_pos_emb"](q, q, cos, sin)[0])
    turned, none = compat.functions("mistral_large4")["apply_rotary_pos_emb_interleave"](q, None, cos, sin)
    assert none is None
    assert torch.equal(turned, compat.apply_rotary_pos_emb_interleave(q, q, cos, sin)[0])


def test_dtypes_and_broadcasts(device):
    """cos in float32 beside bfloat16 is one rounding of float32; one sequence's rows serve a batch; k has a dtype."""
    where = on(device)
    torch.manual_seed(0)
    q, k = torch.randn(2, BATCH, HEADS, SEQ, DIM, device=where)
    cos, sin = (table(forms.HALVES, DIM // 2, 1, SEQ, device=where) for _ in "cs")
    exact = compat.apply_rotary_pos_emb(q.bfloat16().float(), k, cos, sin)
    got = compat.apply_rotary_pos_emb(q.bfloat16(), k, cos, sin)
    assert torch.equal(got[0], exact[0].bfloat16()) and torch.equal(got[1], exact[1])
    each = compat.apply_rotary_pos_emb(q, k, cos.expand(BATCH, -1, -1), sin.expand(BATCH, -1, -1))
    assert torch.equal(each[0], compat.apply_rotary_pos_emb(q, k, cos, sin)[0])
    (once,) = compat.apply_rotary_pos_emb(q, k, cos[:, :1], sin[:, :1])[:1]
    assert torch.equal(
        once[:, :, 2], compat.apply_rotary_pos_emb(q[:, :, 2:3], k[:, :, 2:3], cos[:, :1], sin[:, :1])[0][:, :, 0]
    )


def test_refusals(device):
    q, cos = torch.randn(BATCH, HEADS, SEQ, DIM, device=on(device)), torch.ones(BATCH, SEQ, DIM, device=on(device))
    short = cos[:, 1:]
    for error, text, arguments in (
        (ValueError, "unsqueeze_dim: 3, must name the heads", (q, q, cos, cos, 3)),
        (ValueError, "unsqueeze_dim: 1, must name the heads", (q[0, 0], q[0, 0], cos, cos)),
        (ValueError, r"cos: shape \(2, 4, 16\), must have a row for each of 2 x 5 tokens", (q, q, short, short)),
        (ValueError, "cos: 16 elements of a head turn, of q's 8", (q[..., :8], q[..., :8], cos, cos)),
        (ValueError, r"k: shape \(2, 3, 4, 16\), must have the tokens of q", (q, q[:, :, 1:], cos, cos)),
        (ValueError, "sin: ", (q, q, cos, short)),
        (ValueError, "sin: ", (q, q, cos, cos[..., :8])),
        (TypeError, "sin: ", (q, q, cos, cos.half())),
        (RuntimeError, "cos: requires grad", (q, q, cos.clone().requires_grad_(), cos)),
        (ValueError, "dtype: torch.float64", (q.double(), q.double(), cos, cos)),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            compat.apply_rotary_pos_emb(*arguments)
    with pytest.raises(ValueError, match="angle: 'table', must be 'exact' or 'cos_sin'"):
        compat.patch(torch.nn.Linear(2, 2), "table")
    with pytest.raises(ValueError, match="cos: 8 elements of a head turn, of q's 16"):
        compat.functions("llama")["apply_rotary_pos_emb"](q, q, cos[..., :8], cos[..., :8])
    with pytest.raises(ValueError, match="must be the same for all heads"):
        compat.functions("sam3")["apply_rotary_pos_emb_2d"](q, q, q, q)
    assert compat.functions("bert") == {}


# Model types, one at least for each form; of the second group only the base model is run.
LANGUAGE = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma3_text", "gemma3n_text", "phi", "phi3", "gpt_neox",
    "gptj", "codegen", "cohere", "glm", "glm4", "olmo", "stablelm", "starcoder2", "persimmon", "nemotron", "helium",
    "ernie4_5", "granite", "deepseek_v2", "deepseek_v3", "llama4_text", "gpt_oss", "falcon", "smollm3", "nanochat",
    "glm4_moe",
)  # fmt: skip
OTHERS = ("modernbert", "qwen2_vl_text", "glm4v_text", "openai_privacy_filter", "esm", "dinov3_vit")
TABLES = {"gptj", "codegen", "esm", "dinov3_vit"}  # cos and sin are not made from position_ids


def inputs_of(model, config):
    torch.manual_seed(1)
    takes = inspect.signature(model.forward).parameters
    if "pixel_values" in takes:
        return {"pixel_values": torch.randn(2, 3, config.image_size, config.image_size)}
    if "input_ids" in takes:
        return {"input_ids": torch.randint(3, 60, (2, 7))}
    return {"inputs_embeds": torch.randn(2, 7, config.hidden_size)}


def poison(monkeypatch, model):
    """Nothing of the model's own rotation may run any more."""

    def fail(*_, **__):
        raise AssertionError("the model's own rotation ran")

    for module in {sys.modules[type(m).__module__] for m in model.modules()}:
        if module.__name__.startswith("transformers.models."):
            for name in [name for name in vars(module) if TURNS.match(name) or name.startswith("rotate_")]:
                monkeypatch.setattr(module, name, fail)
    for m in model.modules():
        if ROTARY.search(type(m).__name__) and "forward" in vars(m):
            monkeypatch.setattr(type(m), "forward", fail)


def run(model, inputs, tokens):
    """Result, gradients and greedy tokens."""
    model.zero_grad()
    result = model(**inputs)[0]
    torch.manual_seed(2)
    (result * torch.randn_like(result)).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.numel()}
    made = None
    if tokens:
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    return result.detach(), grads, made


@pytest.mark.parametrize("model_type", [*LANGUAGE, *OTHERS])
def test_patched_model(model_type, monkeypatch):
    config = hf_probe.small(model_type)
    torch.manual_seed(0)
    language = model_type in LANGUAGE
    model = (AutoModelForCausalLM.from_config(config) if language else hf_probe.model_class(config)(config)).eval()
    inputs = inputs_of(model, config)
    want = run(model, inputs, language)
    for angle in ("cos_sin", "exact"):
        assert compat.patch(model, angle) is model
        rotary = [m for m in model.modules() if ROTARY.search(type(m).__name__) and "forward" in vars(m)]
        assert bool(rotary) == (angle == "exact" and model_type not in TABLES)
        with monkeypatch.context() as context:
            poison(context, model)
            got = run(model, inputs, language and angle == "exact")
        torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-4)
        assert got[1].keys() == want[1].keys() and got[1]
        for name, grad in got[1].items():
            scale = want[1][name].abs().max()
            torch.testing.assert_close(grad, want[1][name], rtol=0, atol=float(2e-4 * scale + 1e-6), msg=name)
        if language and angle == "exact":
            assert torch.equal(got[2], want[2])
    compat.unpatch(model)
    assert not any("forward" in vars(m) for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], want[0])


def small_model(model_type, **changes):
    config = hf_probe.small(model_type, **changes)
    return hf_probe.model_class(config)(config).eval()


@pytest.mark.parametrize(
    ("model_type", "text"),
    [
        ("roformer", "RoFormerSelfAttention, how apply_rotary_position_embeddings rotates is not known"),
        ("hunyuan_vl_text", "HunYuanVLDenseV1Attention, how apply_rotary_pos_emb rotates is not known"),
        ("bert", "BertModel, no function that rotates q and k is called in it"),
    ],
)
def test_models_that_are_refused(model_type, text):
    changes = {"rotary_value": True} if model_type == "roformer" else {}
    model = small_model(model_type, **changes)
    with pytest.raises(pyrope.UnsupportedError, match=text):
        compat.patch(model)
    assert not any("forward" in vars(m) for m in model.modules())


def test_one_part_that_is_not_known():
    """Nothing of the model is changed."""

    class StrangeRotary(torch.nn.Module):
        pass

    model = small_model("llama", num_hidden_layers=1)
    model.other = StrangeRotary()
    with pytest.raises(pyrope.UnsupportedError, match="other is a StrangeRotary, what it rotates is not known"):
        compat.patch(model)
    assert "forward" not in vars(model.layers[0].self_attn)
    del model.other
    model.layers[0].self_attn.forward = lambda **_: None
    with pytest.raises(ValueError, match=r"layers.0.self_attn.forward has been replaced already"):
        compat.patch(model)
    assert "forward" not in vars(model.rotary_emb)


class OwnAttention(torch.nn.Module):
    """Not of transformers, but it calls a function of Llama's module."""

    def forward(self, q, cos):
        return apply_rotary_pos_emb(q, q, cos, cos)[0]


def hidden(f):
    """A decorator that has what it decorates elsewhere than by itself in its closure."""
    kept = [f]
    return functools.wraps(f)(lambda *arguments: kept[0](*arguments))


class HiddenAttention(torch.nn.Module):
    forward = hidden(OwnAttention.forward)


def test_other_modules_that_call_a_known_function(monkeypatch):
    q, cos = torch.randn(1, 2, SEQ, DIM), torch.randn(1, SEQ, DIM)
    model = OwnAttention()
    want = compat.apply_rotary_pos_emb(q, q, cos, cos)[0]
    compat.patch(model)
    monkeypatch.setitem(globals(), "apply_rotary_pos_emb", None)
    assert torch.equal(model(q, cos), want)


def test_decorators_that_are_not_known():
    with pytest.raises(pyrope.UnsupportedError, match="its decorator calls it in a way that is not known"):
        compat.patch(HiddenAttention())


def test_patches_one_model_alone_and_its_copies():
    model, other = (small_model("llama", num_hidden_layers=1) for _ in "ab")
    compat.patch(compat.patch(model))
    again = copy.deepcopy(model)
    assert "forward" not in vars(other.layers[0].self_attn)
    assert again.layers[0].self_attn.forward.__self__ is again.layers[0].self_attn
    ids = torch.arange(4)[None]
    with torch.no_grad():
        assert torch.equal(again(ids)[0], model(ids)[0])
        compat.unpatch(again)
        assert "forward" not in vars(again.layers[0].self_attn) and "forward" in vars(model.layers[0].self_attn)


def test_vision_and_language(monkeypatch):
    """One model with both: tokens of an image have three positions each, its patches two."""
    text = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    vision = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 32}
    vision |= {"patch_size": 4, "fullatt_block_indexes": [1], "window_size": 16}
    tokens = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, 62, 60, 60, 60, 60, 63, 7, 8, 9]])
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == 60).int(), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    inputs["pixel_values"] = torch.randn(16, 3 * 2 * 4 * 4)
    with torch.no_grad():
        want = model(**inputs).logits
        for angle in ("exact", "cos_sin"):
            compat.patch(model, angle)
            assert "forward" in vars(model.model.visual.blocks[0].attn)
            assert ("forward" in vars(model.model.language_model.rotary_emb)) == (angle == "exact")
            with monkeypatch.context() as context:
                poison(context, model)
                torch.testing.assert_close(model(**inputs).logits, want, rtol=1e-5, atol=1e-5)


def test_exact_far_away(device):
    """Attention depends on distances alone: at positions in the millions too, where cos and sin of float32 angles do
    not know them any more."""
    model = small_model("llama", num_hidden_layers=2).to(on(device))
    ids = torch.arange(8, device=model.device)[None]
    far = 5_000_000 + ids

    def difference():
        with torch.no_grad():
            return float((model(ids)[0] - model(ids, position_ids=far)[0]).abs().max())

    theirs = difference()
    compat.patch(model)
    assert difference() < 1e-5 < 1e-3 < theirs


def test_frequencies_by_length_are_the_models(monkeypatch):
    """Dynamic NTK: cos and sin as the model makes them, for every length anew."""
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = small_model("llama", num_hidden_layers=1, max_position_embeddings=4, rope_parameters=parameters)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        want = model(ids)[0]
        compat.patch(model)
        assert "forward" not in vars(model.rotary_emb)
        poison(monkeypatch, model)
        torch.testing.assert_close(model(ids)[0], want, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_and_autocast():
    model = small_model("llama", num_hidden_layers=2).train()
    ids, grads = torch.arange(6)[None], []
    compat.patch(model)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, use_cache=False)[0].float().square().mean().backward()
        grads.append(model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*grads) and grads[0].any()


def test_compiled_in_one_graph():
    """By cos and sin, and by positions."""
    q, rows, positions = torch.randn(1, 2, SEQ, DIM, requires_grad=True), torch.randn(1, SEQ, DIM), torch.arange(SEQ)
    angles = Angles(spec_of(pyrope.Rope(DIM, 2, 2, device="cpu")), positions)

    def turn(q, cos):
        turned = compat.apply_rotary_pos_emb(q, q, cos, cos)[0]
        exact = compat.apply_rotary_pos_emb(q, q, Angles(angles.spec, angles.positions), angles)[0]
        return turned + exact

    compiled = torch.compile(turn, backend="aot_eager", fullgraph=True)
    want, got = turn(q, rows), compiled(q, rows)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(out.sum(), q)[0] for out in (want, got)))


@pytest.mark.parametrize("angle", ["exact", "cos_sin"])
def test_compiled_model(angle):
    torch._dynamo.reset()
    model = compat.patch(small_model("llama", num_hidden_layers=1), angle)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, use_cache=False)[0]
        assert torch.equal(got, model(ids, use_cache=False)[0])
