"""pyrope.compat.vllm: vLLM's layers by their parameters, in float64; and install(), in a stand-in."""

import sys
import types

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, by_theta, check, rotated
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope  # noqa: E402
import pyrope.compat.vllm as vllm  # noqa: E402

TOKENS, ROWS = 6, 32

# ---- layers

KINDS = {
    "default": ({}, lambda n: (reference.base_frequencies(n, 1e4), 1)),
    "linear": ({"factor": 4.0}, lambda n: (reference.linear_frequencies(n, 1e4, 4), 1)),
    "dynamic": ({"factor": 2.0}, lambda n: (reference.dynamic_ntk_frequencies(n, 1e4, 2, 64, 128), 1)),
    "dynamic, alpha": ({"rope_type": "dynamic", "alpha": 3.0}, lambda n: (reference.ntk_frequencies(n, 1e4, 3), 1)),
    "ntk": (
        {"factor": 2.0},
        lambda n: (reference.divided_frequencies(n, 1e4, [2.0 ** ((i + 1) / (n // 2)) for i in range(n // 2)]), 1),
    ),
    "llama3": (
        {
            "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        lambda n: (reference.llama3_frequencies(n, 5e5, 8, 1, 4, 8192), 1),
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 32, "attn_factor": 1.5, "truncate": False},
        lambda n: (
            reference.yarn_frequencies(n, 1e4, 4, 32, truncate=False), 1.5 * reference.yarn_magnitude(4)
        ),
    ),
    "yarn, plain": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "apply_yarn_scaling": False},
        lambda n: (reference.yarn_frequencies(n, 1e4, 4, 32), 1),
    ),
    "deepseek_yarn": (
        {"factor": 40.0, "original_max_position_embeddings": 32, "mscale_all_dim": 0.7},
        lambda n: (reference.yarn_frequencies(n, 1e4, 40, 32), reference.yarn_magnitude(40, 1, 0.7)),
    ),
    "longrope": (
        {"short_factor": [1.0] * 24, "long_factor": [2.0] * 24, "original_max_position_embeddings": 32},
        lambda n: (reference.divided_frequencies(n, 1e4, [2.0] * 24), reference.longrope_magnitude(2, 32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_get_rope(device, kind):
    """Angles and magnitude of every kind, and the table that functions are given."""
    where, (parameters, frequencies) = on(device), KINDS[kind]
    parameters = {"rope_type": kind, "partial_rotary_factor": 0.75} | parameters
    layer = vllm.get_rope(64, 64, True, parameters, torch.float32)
    assert layer is vllm.get_rope(64, 64, True, dict(parameters), torch.float32) and layer.rotary_dim == 48
    found, magnitude = frequencies(48)
    positions = [0, 1, 7, 63, 8, 2]
    cos, sin = (t * float(magnitude) for t in reference.cos_sin(positions, found))
    q, k = randn(where, TOKENS, 2 * 64, dtype="bfloat16"), randn(where, TOKENS, 64, dtype="bfloat16")
    before = q.clone(), k.clone()
    got = layer(torch.tensor(positions, device=where), q, k)
    assert got[0] is q and got[1] is k
    for x, old in zip(got, before, strict=True):
        check(x, rotated(old.unflatten(1, (-1, 64)), cos, sin))
    cache = layer.cos_sin_cache
    assert cache.shape == (64, 48) and list(layer.state_dict()) == []
    np.testing.assert_allclose(array_of(cache)[positions], np.concatenate([cos, sin], -1), rtol=0, atol=3e-7)


def test_layer_forms(device):
    """A batch, no key, and positions that no table reaches."""
    where = on(device)
    layer = vllm.RotaryEmbedding(64, 32, 16, 1e4, False, torch.bfloat16)
    q, positions = randn(where, 2, 3, 64), np.array([[0, 1, 2], [1 << 30, 5, 17]])
    before = q.clone()
    out, key = layer(torch.tensor(positions, device=where), q)
    assert out is q and key is None
    check(q.flatten(0, 1)[:, None], by_theta(before.view(6, 1, 64), positions.ravel(), 32, neox=False))
    assert layer.cos_sin_cache.dtype == torch.bfloat16
    assert layer.to(torch.float64).cos_sin_cache.dtype == torch.float64  # a buffer like any other


@pytest.mark.parametrize("interleaved", [False, True])
def test_mrope(device, interleaved):
    """Positions of three streams; the same by rows of cos and sin for each token, and of text."""
    where, section = on(device), [8, 12, 12]
    parameters = {"rope_type": "default", "mrope_section": section, "mrope_interleaved": interleaved}
    layer = vllm.get_rope(64, 32, True, parameters, torch.float32)
    assert isinstance(layer, vllm.MRotaryEmbedding) and layer.cos_sin_cache.shape == (128, 64)
    positions = np.array([[0, 1, 2, 3, 9, 9], [0, 5, 5, 6, 1, 2], [7, 0, 31, 2, 2, 8]])
    each = np.stack([np.stack(reference.cos_sin(p, reference.base_frequencies(64, 1e4))) for p in positions])
    stream = reference.streams(32, section, interleaved)
    cos, sin = each[stream, :, :, np.arange(32)].transpose(1, 2, 0)
    q, k = randn(where, TOKENS, 2 * 64, dtype="bfloat16"), randn(where, TOKENS, 64, dtype="bfloat16")
    before = q.clone(), k.clone()
    for x, old in zip(layer(torch.tensor(positions, device=where), q, k), before, strict=True):
        check(x, rotated(old.unflatten(1, (-1, 64)), cos, sin))
    rows = torch.tensor(each, dtype=torch.bfloat16, device=where)
    given = before[0].clone(), before[1].clone()
    got = vllm.mrope(*given, rows[:, 0], rows[:, 1], section, 64, 64, interleaved)
    cos, sin = reference.decode(array_of(rows))[stream, :, :, np.arange(32)].transpose(1, 2, 0)
    for x, mine, old in zip(got, given, before, strict=True):
        check(x, rotated(old.unflatten(1, (-1, 64)), cos, sin))
        assert x is mine
    text = before[0].clone()
    layer(torch.tensor(positions[0], device=where), text, before[1].clone())
    check(text, by_theta(before[0].unflatten(1, (-1, 64)), positions[0], 64))
    scaled = vllm.MRotaryEmbedding(64, 64, 32, 1e4, True, torch.float32, section, scaling_factor=4.0, attn_factor=2.0)
    assert scaled(torch.tensor(positions, device=where), *(x.clone() for x in before))[0].shape == before[0].shape
    found = reference.yarn_frequencies(64, 1e4, 4, 32), 2 * reference.yarn_magnitude(4)
    want = np.concatenate([float(found[1]) * t for t in reference.cos_sin([31], found[0])], -1)
    np.testing.assert_allclose(array_of(scaled.cos_sin_cache)[31:32], want, rtol=0, atol=3e-7)


@pytest.mark.parametrize("shape", [(TOKENS, 2, 80), (3, TOKENS, 2, 80)])
@pytest.mark.parametrize("dtype, table_dtype, is_neox", [("bfloat16", "float32", True), ("float16", "float16", False)])
def test_apply_rotary_emb(device, dtype, table_dtype, is_neox, shape):
    """As vision models call it: a row a token, a float32 table beside a tensor of two bytes."""
    where = on(device)
    x, table = randn(where, *shape, dtype=dtype), randn(where, TOKENS, 40, dtype=table_dtype)
    before = x.clone()
    out = vllm.ApplyRotaryEmb(is_neox_style=is_neox, enable_fp32_compute=True)(x, *table.chunk(2, -1))
    batch = shape[0] if len(shape) == 4 else 1
    check(out, by_table(x.reshape(-1, 2, 80), table, np.tile(np.arange(TOKENS), batch), is_neox))
    assert torch.equal(x, before) and out.shape == x.shape


def test_compiled(device):
    """A layer and an operator, without a graph break."""
    where, table = on(device), randn(on(device), ROWS, 64)
    layer = vllm.get_rope(64, 64, True, {"rope_type": "linear", "factor": 2.0}, torch.float32)

    def step(ids, q):
        q = q + 1
        vllm.rotary_embedding(ids, q, None, 64, table, True)
        return layer(ids, q * 2)[0]

    q, ids = randn(where, TOKENS, 128), torch.arange(TOKENS, device=where)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(ids, q), step(ids, q))


# ---- bad input


def test_refusals(device):
    """Of what is wrong, by name; nothing is written."""
    where = on(device)
    q, k, table = randn(where, TOKENS, 128), randn(where, TOKENS, 64), randn(where, ROWS, 64)
    ids, before, heads = torch.arange(TOKENS, device=where), (q.clone(), k.clone()), q.view(TOKENS, 2, 64)
    text_only = vllm.MRotaryEmbedding(64, 64, 32, 1e4, True, torch.float32)
    for text, function, arguments in (
        ("x: ", vllm.ApplyRotaryEmb(), (k, table, table)),
        ("cos", vllm.ApplyRotaryEmb(), (heads, table, table)),
        ("cos", vllm.mrope, (q, k, table, table, [8, 12, 12], 64, 64, False)),
        ("positions", vllm.get_rope(64, 32, True, None, torch.float32), (ids.expand(3, 1, -1), q, k)),
        ("positions: .* without mrope_section", text_only, (ids.expand(3, -1), q, k)),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            function(*arguments)
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])


@pytest.mark.parametrize(
    "text, error, parameters",
    [
        ("rope_type", pyrope.UnsupportedError, {"rope_type": "mllama4"}),
        ("rope_type", pyrope.UnsupportedError, {"rope_type": "unheard"}),
        (r"rope_parameters\['factor'\]", ValueError, {"rope_type": "linear"}),
        ("rope_parameters: 'original_max_position_embeddings'", ValueError, {"rope_type": "yarn", "factor": 2.0}),
        ("extrapolation_factor", pyrope.UnsupportedError,
         {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "extrapolation_factor": 2}),
        ("attention_factor", pyrope.UnsupportedError,
         {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "attention_factor": 2.0}),
        ("partial_rotary_factor", ValueError, {"partial_rotary_factor": 1.5}),
    ],
)  # fmt: skip
def test_get_rope_refusals(text, error, parameters):
    with pytest.raises(error, match=f"^{text}"):
        vllm.get_rope(64, 64, True, parameters)
    with pytest.raises(pyrope.UnsupportedError, match="dual_chunk_attention_config"):
        vllm.get_rope(64, 64, dual_chunk_attention_config={"chunk_size": 8})


# ---- install: vLLM is not here, hence a module and operators of its names, whose own rotations are poison


def poison(*_):
    raise AssertionError("vLLM's own rotation was called")


@pytest.fixture
def stand_in(monkeypatch):
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(
        "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
        "bool is_neox, int rope_dim_offset=0, bool inverse=False) -> ()"
    )
    for key in ("CPU", "CUDA"):
        library.impl("rotary_embedding", poison, key)
    modules = {}
    for name in ("vllm", "vllm._custom_ops", "vllm.vllm_flash_attn.layers.rotary", "vllm.vision"):
        modules[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, modules[name])
    modules["vllm._custom_ops"].rotary_embedding = lambda *args: torch.ops._C.rotary_embedding(*args)
    for name in ("vllm.vllm_flash_attn.layers.rotary", "vllm.vision"):
        modules[name].apply_rotary_emb = poison
    yield modules
    vllm.uninstall()
    library._destroy()


def test_install(device, stand_in):
    where = on(device)
    q, k, table = (randn(where, TOKENS, n, dtype="bfloat16") for n in (128, 64, 64))
    ids = torch.tensor([0, 5, 3, 1, 2, 4], device=where)
    x = randn(where, 2, TOKENS, 3, 64)

    def layers():
        """What a layer does, and a vision model."""
        pair = q.clone(), k.clone()
        stand_in["vllm._custom_ops"].rotary_embedding(ids, *pair, 64, table, True)
        return *pair, stand_in["vllm.vision"].apply_rotary_emb(x, *table.float().chunk(2, -1), False)

    with pytest.raises(AssertionError, match="own rotation"):
        layers()
    replaced = vllm.install()
    assert replaced == ["_C::rotary_embedding", "vllm.vllm_flash_attn.layers.rotary.apply_rotary_emb",
                        "vllm.vision.apply_rotary_emb"]  # fmt: skip
    got = layers()
    for out, old in zip(got[:2], (q, k), strict=True):
        check(out, by_table(old.unflatten(1, (-1, 64)), table, ids.cpu()))
    check(got[2], by_table(x.view(-1, 3, 64), table, np.tile(np.arange(TOKENS), 2)))
    with pytest.raises(RuntimeError, match="already"):
        vllm.install()
    vllm.uninstall()
    with pytest.raises(AssertionError, match="own rotation"):
        layers()
    with pytest.raises(AssertionError, match="own rotation"):
        stand_in["vllm.vision"].apply_rotary_emb(x)
    vllm.uninstall()  # of nothing is nothing
    assert vllm.install() == replaced


def test_install_in_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError):
        vllm.install()
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    with pytest.raises(RuntimeError, match="none of the rotations"):
        vllm.install()
