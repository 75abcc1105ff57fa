"""pyrope.compat.vllm: vLLM's names and arguments, its results in float64, its errors; and install(), in a stand-in."""

import sys
import types

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, by_theta, check, quantised, randn, rotated, signature_of
from kit.torch_tensors import array_of, on, require_torch

torch = require_torch()
import pyrope  # noqa: E402
import pyrope.compat.vllm as vllm  # noqa: E402

TOKENS, ROWS = 6, 32
LAYER = "self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, "
SIGNATURES = {  # of vLLM 0.33.0
    "rotary_embedding": "positions, query, key, head_size, cos_sin_cache, is_neox, rope_dim_offset=0, inverse=False",
    "fused_qk_norm_rope": "qkv, num_heads_q, num_heads_k, num_heads_v, head_dim, eps, q_weight, k_weight, "
    "cos_sin_cache, is_neox, position_ids, forced_token_heads_per_warp=-1",
    "concat_and_cache_mla_rope_fused": "positions, q_pe, k_pe, kv_c, cos_sin_cache, is_neox, slot_mapping, kv_cache, "
    "kv_cache_dtype, kv_cache_scale",
    "fused_qknorm_rope_cache": "qkv, q_weight, k_weight, cos_sin_cache, positions, slot_mapping, key_cache, "
    "value_cache, num_q_heads, num_kv_heads, head_dim, rotary_dim, eps, norm_weight_bias=0.0, kv_cache_dtype='auto', "
    "k_scale=None, v_scale=None",
    "RotaryEmbedding.__init__": LAYER + "init_cache=True",
    "RotaryEmbedding.forward": "self, positions, query, key=None",
    "MRotaryEmbedding.__init__": LAYER + "mrope_section=None, mrope_interleaved=False, *, scaling_factor=None, "
    "extrapolation_factor=1, attn_factor=1, beta_fast=32, beta_slow=1, truncate=True",
    "MRotaryEmbedding.forward": "self, positions, query, key=None",
    "ApplyRotaryEmb.__init__": "self, enforce_enable=False, is_neox_style=True, enable_fp32_compute=False",
    "ApplyRotaryEmb.forward": "self, x, cos, sin",
    "get_rope": "head_size, max_position, is_neox_style=True, rope_parameters=None, dtype=None, "
    "dual_chunk_attention_config=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    function = vllm
    for part in name.split("."):
        function = getattr(function, part)
    assert signature_of(function) == SIGNATURES[name]


# ---- rotary_embedding

FORMS = {  # shape of the tokens; whether the heads have a dimension of their own
    "[N, H*D]": ((TOKENS,), False),
    "[N, H, D]": ((TOKENS,), True),
    "[B, S, H*D]": ((2, 3), False),
    "[B, S, H, D]": ((2, 3), True),
}


@pytest.mark.parametrize("heads", [(3, 1), (1, 1), (2, None)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "dtype, table_dtype, is_neox, offset, inverse",
    [
        ("bfloat16", "bfloat16", True, 0, False),
        ("float16", "float32", False, 24, True),
        ("float32", "float16", True, 40, False),
    ],
)
def test_rotary_embedding(device, dtype, table_dtype, is_neox, offset, inverse, form, heads):
    """Every form, q and k as parts of packed tensors; of [B, S, D] with one head too."""
    where, (lead, apart) = on(device), FORMS[form]
    table, positions = randn(where, ROWS, 24, dtype=table_dtype), np.array([5, 31, 0, 7, 7, 1])
    ids = torch.tensor(positions, device=where).view(lead)
    packed = randn(where, *lead, sum(n or 0 for n in heads) * 64 + 8, dtype=dtype)
    q, k = packed[..., : heads[0] * 64], packed[..., heads[0] * 64 : -8] if heads[1] else None
    rest = packed[..., -8:].clone()
    given = [x if x is None or not apart else x.unflatten(-1, (-1, 64)) for x in (q, k)]
    want = [
        None if x is None else by_table(
            x.reshape(TOKENS, -1, 64), table, positions, is_neox, offset=offset, inverse=inverse
        ) for x in (q, k)
    ]  # fmt: skip
    assert vllm.rotary_embedding(ids, *given, 64, table, is_neox, offset, inverse) is None
    for x, value in zip((q, k), want, strict=True):
        if x is not None:
            check(x, value)
    assert torch.equal(packed[..., -8:], rest)


def test_padding(device):
    """A batch whose tokens do not fold, positions of no row, and no tokens at all."""
    where, table = on(device), randn(on(device), ROWS, 64)
    q = randn(where, 2, 5, 128)[:, :3]
    ids = torch.tensor([[0, 32, 3], [-1, 4, 1 << 40]], device=where)
    before = q.clone()
    vllm.rotary_embedding(ids, q, None, 64, table, True)
    inside = np.array([[True, False, True], [False, True, False]])
    rows = np.where(inside, ids.cpu(), 0).ravel()
    value = by_table(before.reshape(6, 2, 64), table, rows)
    plain = reference.exact(array_of(before.reshape(6, 2, 64)))
    check(q, tuple(np.where(inside.ravel()[:, None, None], a, b) for a, b in zip(value, plain, strict=True)))
    for lead, heads in (((0,), (128,)), ((0,), (2, 64)), ((2, 0), (128,))):
        none = torch.empty(lead, dtype=torch.int64, device=where)
        vllm.rotary_embedding(none, torch.empty(*lead, *heads, device=where), None, 64, table, False)


# ---- norm


def normed(x, weight, eps, bias=0.0):
    return reference.rms_norm(reference.exact(array_of(x)), reference.decode(array_of(weight)), eps, bias)


@pytest.mark.parametrize("dtype, weight, is_neox", [("bfloat16", "bfloat16", True), ("float16", "float32", False)])
@pytest.mark.parametrize("rotary_dim", [64, 16])
def test_fused_qk_norm_rope(device, rotary_dim, dtype, weight, is_neox):
    where = on(device)
    qkv, table = randn(where, TOKENS, (3 + 2 + 2) * 64, dtype=dtype), randn(where, ROWS, rotary_dim, dtype=dtype)
    weights, positions = randn(where, 2, 64, dtype=weight), [5, 31, 0, 7, 7, 1]
    before = qkv.clone().unflatten(1, (7, 64))
    vllm.fused_qk_norm_rope(
        qkv, 3, 2, 2, 64, 1e-5, *weights, table, is_neox, torch.tensor(positions, device=where)
    )  # fmt: skip
    got = qkv.unflatten(1, (7, 64))
    check(got[:, :3], by_table(normed(before[:, :3], weights[0], 1e-5), table, positions, is_neox))
    check(got[:, 3:5], by_table(normed(before[:, 3:5], weights[1], 1e-5), table, positions, is_neox))
    assert torch.equal(got[:, 5:], before[:, 5:])


# ---- caches

STORED = {"auto": None, "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
SLOTS = [3, 8, -1, 0, 11, 5]


def pages(device, *shape, dtype):
    """A cache of sevens; quantised ones are bytes to vLLM."""
    if dtype.startswith("float8"):
        return torch.full(shape, 7, dtype=torch.uint8, device=device)
    return torch.full(shape, 7, dtype=getattr(torch, dtype), device=device)


def check_rows_of(cache, stored, slots, value, scale):
    """Rows [slots, ...] of a cache hold the value; others are as they were."""
    rows, taken = cache.flatten(0, 1), [slot for slot in slots if slot >= 0]
    value = tuple(part[[i for i, slot in enumerate(slots) if slot >= 0]] for part in value)
    if stored:
        rows = rows.view(getattr(torch, stored))
        value = reference.scaled(value, scale)
    check(rows[taken], value)
    others = [row for row in range(len(rows)) if row not in taken]
    untouched = quantised(rows)[0].view(np.uint8) if stored else array_of(rows)
    assert (untouched[others] == 7).all()


@pytest.mark.parametrize("kv_cache_dtype", STORED)
@pytest.mark.parametrize("dtype, is_neox", [("bfloat16", False), ("float16", True)])
def test_concat_and_cache_mla(device, dtype, is_neox, kv_cache_dtype):
    """More positions than tokens, as CUDA graphs pad; where a slot is below 0 all is left alone."""
    where, stored, lora, rope = on(device), STORED[kv_cache_dtype], 512, 64
    q = randn(where, TOKENS, 4, 128 + rope, dtype=dtype)[..., 128:]
    k_pe, kv_c = randn(where, TOKENS, rope, dtype=dtype), randn(where, TOKENS, lora, dtype=dtype)
    table, positions = randn(where, ROWS, rope, dtype=dtype), [5, 31, 4, 7, 7, 1, 2]
    cache, scale = pages(where, 3, 4, lora + rope, dtype=stored or dtype), torch.tensor([0.7], device=where)
    before = q.clone(), k_pe.clone()
    vllm.concat_and_cache_mla_rope_fused(
        torch.tensor(positions, device=where), q, k_pe, kv_c, table, is_neox, torch.tensor(SLOTS, device=where), cache,
        kv_cache_dtype, scale,
    )  # fmt: skip
    values = [by_table(x, table, positions[:-1], is_neox) for x in (before[0], before[1][:, None])]
    moved = [i for i, slot in enumerate(SLOTS) if slot >= 0]
    for x, old, value in zip((q, k_pe[:, None]), (before[0], before[1][:, None]), values, strict=True):
        check(x[moved], tuple(part[moved] for part in value))
        assert torch.equal(x[2], old[2])
    latent = reference.exact(array_of(kv_c))
    appended = tuple(np.concatenate([a, b[:, 0]], -1) for a, b in zip(latent, values[1], strict=True))
    check_rows_of(cache, stored, SLOTS, appended, 0.7)


@pytest.mark.parametrize("scales", [None, (0.7, 2.0)])
@pytest.mark.parametrize("kv_cache_dtype, short", [("auto", 0), ("fp8", 2)])
@pytest.mark.parametrize(
    "rotary_dim, weight, bias", [(64, "bfloat16", 0.0), (32, "float32", 1.0), (0, "bfloat16", 0.0)]
)
def test_fused_qknorm_rope_cache(device, rotary_dim, weight, bias, kv_cache_dtype, short, scales):
    where, stored, dtype = on(device), STORED[kv_cache_dtype], "bfloat16"
    qkv, table = randn(where, TOKENS, (3 + 2 * 2) * 64, dtype=dtype), randn(where, ROWS, rotary_dim, dtype=dtype)
    weights, positions = randn(where, 2, 64, dtype=weight), [5, 31, 0, 7, 7, 1]
    caches = [pages(where, 3, 4, 2, 64, dtype=stored or dtype) for _ in "kv"]
    slots, before = SLOTS[: TOKENS - short], qkv.clone()
    given = [None if scales is None else torch.tensor([s], device=where) for s in scales or (1.0, 1.0)]
    got = vllm.fused_qknorm_rope_cache(
        qkv, *weights, table, torch.tensor(positions, device=where), torch.tensor(slots, device=where), *caches, 3, 2,
        64, rotary_dim, 1e-5, bias, kv_cache_dtype, *given,
    )  # fmt: skip
    assert torch.equal(qkv, before)
    q, k, v = before.split([3 * 64, 2 * 64, 2 * 64], 1)
    heads = [x.unflatten(1, (-1, 64)) for x in (q, k, v)]
    values = [normed(x, w, 1e-5, bias) for x, w in zip(heads[:2], weights, strict=True)]
    if rotary_dim:
        values = [by_table(value, table, positions) for value in values]
    for out, value in zip(got, values, strict=False):
        check(out, value)
    assert torch.equal(got[2], v) and all(out.is_contiguous() for out in got)
    plain = reference.exact(array_of(heads[2]))
    for cache, value, scale in zip(caches, (values[1], plain), scales or (1.0, 1.0), strict=True):
        check_rows_of(cache, stored, slots, tuple(part[: len(slots)] for part in value), scale)


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
    ids, before, weight = torch.arange(TOKENS, device=where), q.clone(), torch.ones(64, device=where)
    qkv, cache, scale = randn(where, TOKENS, 256), torch.zeros(3, 4, 128, device=where), torch.ones(1, device=where)
    mla, norm = vllm.concat_and_cache_mla_rope_fused, vllm.fused_qknorm_rope_cache
    pages, q_pe = torch.zeros(3, 4, 1, 64, device=where), q.view(TOKENS, 2, 64)
    for text, error, function, arguments in (
        ("positions", ValueError, vllm.rotary_embedding, (ids[None, None], q, k, 64, table, True)),
        ("positions", TypeError, vllm.rotary_embedding, (ids.float(), q, k, 64, table, True)),
        ("query", ValueError, vllm.rotary_embedding, (ids[:4], q, k, 64, table, True)),
        ("query", ValueError, vllm.rotary_embedding, (ids, q, k, 48, table, True)),
        ("query", ValueError, vllm.rotary_embedding, (ids, q.view(TOKENS, 4, 32), k, 64, table, True)),
        ("key", ValueError, vllm.rotary_embedding, (ids, q, k[:, :40], 64, table, True)),
        ("cos_sin_cache", ValueError, vllm.rotary_embedding, (ids, q, k, 64, table[0], True)),
        ("rotary_offset", ValueError, vllm.rotary_embedding, (ids, q, k, 64, table, True, 8)),
        ("dtype", ValueError, vllm.rotary_embedding, (ids, q.int(), k.int(), 64, table, True)),
        ("qkv", ValueError, vllm.fused_qk_norm_rope, (qkv, 2, 1, 2, 64, 1e-6, weight, weight, table, True, ids)),
        ("q_weight", ValueError, vllm.fused_qk_norm_rope, (qkv, 2, 1, 1, 64, 1e-6, q[0], weight, table, True, ids)),
        ("weight_dtype", ValueError, vllm.fused_qk_norm_rope,
         (qkv, 2, 1, 1, 64, 1e-6, weight.half(), weight, table, True, ids)),
        ("q_pe", ValueError, mla, (ids, q, k, k, table, True, ids, cache, "auto", scale)),
        ("k_pe", ValueError, mla, (ids, q_pe, q_pe, k, table, True, ids, cache, "auto", scale)),
        ("kv_cache", ValueError, mla, (ids, q_pe, k, k, table, True, ids, cache[..., 1:], "auto", scale)),
        ("kv_cache_dtype", ValueError, mla, (ids, q_pe, k, k, table, True, ids, cache, "nvfp4", scale)),
        ("k_cache", TypeError, mla, (ids, q_pe, k, k, table, True, ids, cache, "fp8", scale)),
        ("cos_sin_cache", ValueError, norm, (qkv, weight, weight, table, ids, ids, pages, pages, 2, 1, 64, 32, 1e-6)),
        ("qkv", ValueError, norm, (qkv, weight, weight, table, ids, ids, pages, pages, 3, 1, 64, 64, 1e-6)),
        ("k_cache", ValueError, norm,
         (qkv, weight, weight, table, ids, ids, pages[..., :8], pages, 2, 1, 64, 64, 1e-6)),
        ("x: ", ValueError, vllm.ApplyRotaryEmb(), (k, table, table)),
        ("cos", ValueError, vllm.ApplyRotaryEmb(), (q_pe, table, table)),
        ("cos", ValueError, vllm.mrope, (q, k, table, table, [8, 12, 12], 64, 64, False)),
        ("positions", ValueError, vllm.get_rope(64, 32, True, None, torch.float32), (ids.expand(3, 1, -1), q, k)),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{text}"):
            function(*arguments)
    text_only = vllm.MRotaryEmbedding(64, 64, 32, 1e4, True, torch.float32)
    with pytest.raises(ValueError, match="mrope_section"):
        text_only(ids.expand(3, -1), q, k)
    with pytest.raises(RuntimeError, match="requires grad"):
        vllm.rotary_embedding(ids, q.clone().requires_grad_(), k, 64, table, True)
    assert torch.equal(q, before)


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
