"""pyrope.compat.vllm: vLLM's names and arguments, its functions' results in float64, their errors."""

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, check, quantised, signature_of
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
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
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{text}"):
            function(*arguments)
    with pytest.raises(RuntimeError, match="requires grad"):
        vllm.rotary_embedding(ids, q.clone().requires_grad_(), k, 64, table, True)
    assert torch.equal(q, before)
