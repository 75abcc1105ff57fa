"""pyrope.compat.sglang: SGLang's names and arguments, its results in float64, its errors."""

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, check, rotated, signature_of
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope.compat.sglang as sglang  # noqa: E402

TOKENS, ROWS = 6, 32
POSITIONS = [5, 31, 0, 7, 7, 1]
TABLE = "cos_sin_cache, positions, "
YARN = "factor, low, high, attention_factor, "
SIGNATURES = {  # of SGLang 0.5.23
    "rotary_embedding": "positions, query, key, head_size, cos_sin_cache, is_neox=True",
    "apply_rope_inplace": "q, k, " + TABLE + "*, is_neox, rope_dim=0",
    "apply_rope_inplace_with_kvcache": "q, k, v, k_cache, v_cache, " + TABLE + "out_loc, *, is_neox, rope_dim=0",
    "apply_rope_with_cos_sin_cache_inplace": "q, k, " + TABLE + "*, is_neox, rope_dim=0, fused_args=None",
    "FusedSetKVBufferArg": "value, k_buffer, v_buffer, cache_loc",
    "fused_qk_norm_rope": "qkv, num_heads_q, num_heads_k, num_heads_v, head_dim, eps, q_weight, k_weight, base, "
    "is_neox, position_ids, " + YARN + "rotary_dim=None",
    "fused_qk_norm_rope_out": "qkv, q_weight, k_weight, position_ids, num_heads_q, num_heads_k, num_heads_v, head_dim, "
    "eps, base, is_neox, " + YARN + "rotary_dim",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert signature_of(getattr(sglang, name)) == SIGNATURES[name]


def test_places():
    assert sglang.rope.apply_rope_inplace is sglang.apply_rope_inplace
    assert sglang.fused_qknorm_rope.fused_qk_norm_rope is sglang.fused_qk_norm_rope


def ids(device, dtype="int64"):
    return torch.tensor(POSITIONS, dtype=getattr(torch, dtype), device=device)


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("key", [True, False])
def test_rotary_embedding(device, key, is_neox):
    where = on(device)
    table, q = randn(where, ROWS, 32, dtype="bfloat16"), randn(where, TOKENS, 2 * 64, dtype="bfloat16")
    k = randn(where, TOKENS, 64, dtype="bfloat16") if key else None
    before = q.clone()
    got = sglang.rotary_embedding(ids(where), q, k, 64, table, is_neox)
    assert got[0] is q and got[1] is k
    check(q, by_table(before.unflatten(1, (2, 64)), table, POSITIONS, is_neox))


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(
    "q_dtype, k_dtype, q_dim, index",
    [("bfloat16", "bfloat16", 80, "int32"), ("float16", "bfloat16", 80, "int64"), ("float32", "float32", 128, "int64")],
)
def test_apply(device, q_dtype, k_dtype, q_dim, index, is_neox):
    """Two dtypes, two sizes of heads, and k as the rotated part of longer heads."""
    where = on(device)
    table = randn(where, ROWS, 64)
    q, k = randn(where, TOKENS, 4, q_dim, dtype=q_dtype), randn(where, TOKENS, 2, 100, dtype=k_dtype)[..., :80]
    before = q.clone(), k.clone()
    options = {"is_neox": is_neox, "rope_dim": 64 if is_neox else 0}
    assert sglang.apply_rope_inplace(q, k, table, ids(where, index), **options) is None
    for x, old in zip((q, k), before, strict=True):
        check(x, by_table(old, table, POSITIONS, is_neox))
    again = [x.clone() for x in before]
    sglang.apply_rope_with_cos_sin_cache_inplace(*again, table, ids(where, index), **options)
    assert torch.equal(again[0], q) and torch.equal(again[1], k)


@pytest.mark.parametrize("form", ["flat", "heads"])
@pytest.mark.parametrize("q_dtype, index, is_neox", [("bfloat16", "int32", True), ("float16", "int64", False)])
def test_with_kvcache(device, q_dtype, index, is_neox, form):
    """k is turned where it lies, and stored; what has no slot is turned alone."""
    where, dtype, slots = on(device), "bfloat16", [3, 8, -1, 0, 11, 5]
    table = randn(where, ROWS, 48)
    q, kv = randn(where, TOKENS, 4, 64, dtype=q_dtype), randn(where, TOKENS, 2 * 2 * 64, dtype=dtype)
    k, v = kv[:, :128].unflatten(1, (2, 64)), kv[:, 128:]
    before = q.clone(), k.clone(), v.clone()
    shape = (12, 128) if form == "flat" else (12, 2, 64)
    caches = [torch.full(shape, 7, dtype=torch.bfloat16, device=where) for _ in "kv"]
    places = torch.tensor(slots, dtype=getattr(torch, index), device=where)
    if form == "flat":
        fused = sglang.FusedSetKVBufferArg(value=v, k_buffer=caches[0], v_buffer=caches[1], cache_loc=places)
        sglang.apply_rope_with_cos_sin_cache_inplace(
            q, k, table, ids(where, index), is_neox=is_neox, fused_args=fused
        )  # fmt: skip
    else:
        given = q, k, v.unflatten(1, (2, 64)), *caches, table, ids(where, index), places
        sglang.apply_rope_inplace_with_kvcache(*given, is_neox=is_neox, rope_dim=48)
    turned = by_table(before[1], table, POSITIONS, is_neox)
    check(q, by_table(before[0], table, POSITIONS, is_neox))
    check(k, turned)
    assert torch.equal(v, before[2])
    appended = [i for i, slot in enumerate(slots) if slot >= 0]
    check(caches[0][[slots[i] for i in appended]], tuple(part[appended] for part in turned))
    assert torch.equal(caches[1][[slots[i] for i in appended]].flatten(1), v[appended])
    for cache in caches:
        assert (cache[[slot for slot in range(12) if slot not in slots]] == 7).all()


@pytest.mark.parametrize("rotary_dim", [None, 16])
@pytest.mark.parametrize(
    "is_neox, dtype, yarn", [(True, "bfloat16", (1.0, 0.0, 0.0, 1.0)), (False, "float16", (8.0, 2.0, 6.0, 1.25))]
)
def test_fused_qk_norm_rope(device, is_neox, dtype, yarn, rotary_dim):
    where, (factor, low, high, magnitude) = on(device), yarn
    qkv, weights = randn(where, TOKENS, (3 + 2 + 2) * 64, dtype=dtype), randn(where, 2, 64, dtype=dtype)
    before, again = qkv.clone().unflatten(1, (7, 64)), qkv.clone()
    sglang.fused_qk_norm_rope(
        qkv, 3, 2, 2, 64, 1e-5, *weights, 1e6, is_neox, ids(where, "int32"), *yarn, rotary_dim
    )  # fmt: skip
    n = rotary_dim or 64
    frequencies = np.array([float(f) for f in reference.base_frequencies(n, 1e6)])
    ramp = np.clip((np.arange(n // 2) - low) / (high - low), 0, 1) if factor != 1 else 0
    cos, sin = reference.cos_sin(POSITIONS, frequencies * (1 - ramp) + frequencies / factor * ramp)
    got = qkv.unflatten(1, (7, 64))
    for part, weight in ((slice(0, 3), weights[0]), (slice(3, 5), weights[1])):
        normed = reference.rms_norm(
            reference.exact(array_of(before[:, part])), reference.decode(array_of(weight)), 1e-5, 0.0
        )
        check(got[:, part], rotated(normed, magnitude * cos, magnitude * sin, is_neox))
    assert torch.equal(got[:, 5:], before[:, 5:])
    sglang.fused_qk_norm_rope_out(again, *weights, ids(where), 3, 2, 2, 64, 1e-5, 1e6, is_neox, *yarn, n)
    assert torch.equal(again, qkv)


def test_no_tokens(device):
    where = on(device)
    q, k, none = (torch.empty(0, n, 64, device=where) for n in (2, 1, 1))
    places, caches = torch.empty(0, dtype=torch.int64, device=where), torch.zeros(2, 4, 64, device=where)
    table = torch.ones(ROWS, 64, device=where)
    sglang.apply_rope_inplace_with_kvcache(q, k, none, *caches, table, places, places, is_neox=True)
    assert (caches == 0).all()


def test_compiled(device):
    """With the fused store, without a graph break."""

    def step(q, k, v, caches, table, positions, slots):
        q, k = q + 1, k + 1
        fused = sglang.FusedSetKVBufferArg(v, caches[0], caches[1], slots)
        sglang.apply_rope_with_cos_sin_cache_inplace(q, k, table, positions, is_neox=True, fused_args=fused)
        return q, k, caches * 2

    where = on(device)
    given = [randn(where, TOKENS, n, 64) for n in (2, 1)] + [randn(where, TOKENS, 64)]
    rest = randn(where, ROWS, 64), ids(where), torch.tensor([1, 5, 0, 2, -1, 7], device=where)
    want = step(*given, torch.zeros(2, 8, 64, device=where), *rest)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*given, torch.zeros(2, 8, 64, device=where), *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_refusals(device):
    """Of what is wrong, by name; nothing is written."""
    where = on(device)
    q, k, table = randn(where, TOKENS, 2, 64), randn(where, TOKENS, 1, 64), randn(where, ROWS, 64)
    caches, weight = torch.zeros(2, 8, 64, device=where), torch.ones(64, device=where)
    qkv, at = randn(where, TOKENS, 4 * 64), ids(where)
    before = q.clone(), k.clone(), qkv.clone()
    turn, store, norm = sglang.apply_rope_inplace, sglang.apply_rope_inplace_with_kvcache, sglang.fused_qk_norm_rope
    for text, error, function, arguments, options in (
        ("q: ", ValueError, turn, (q.flatten(1), k, table, at), {}),
        ("k: ", ValueError, turn, (q, k[0], table, at), {}),
        ("k: ", ValueError, turn, (q, k[:3], table, at), {}),
        ("k: ", ValueError, turn, (q.half(), k[:3], table, at), {}),
        ("rope_dim", ValueError, turn, (q, k, table, at), {"rope_dim": 32}),
        ("cos_sin_cache", ValueError, turn, (q, k, table[0], at), {}),
        ("positions", ValueError, turn, (q, k, table, at[:2]), {}),
        ("positions", TypeError, turn, (q, k, table, at.float()), {}),
        ("k_cache", ValueError, store, (q, k, k, caches[0, :, :32], caches[1], table, at, at), {}),
        ("v_cache", ValueError, store, (q, k, k, caches[0], caches[1, :4], table, at, at), {}),
        ("k_cache", TypeError, store, (q, k, k, *caches.half(), table, at, at), {}),
        ("slots", ValueError, store, (q, k, k, *caches, table, at, at[:2]), {}),
        ("qkv", ValueError, norm, (qkv, 3, 1, 1, 64, 1e-6, weight, weight, 1e4, True, at, 1, 0, 0, 1), None),
        ("q_weight", ValueError, norm, (qkv, 2, 1, 1, 64, 1e-6, q[0, 0, :9], weight, 1e4, True, at, 1, 0, 0, 1), None),
        ("rotary_dim", ValueError, norm, (qkv, 2, 1, 1, 64, 1e-6, weight, weight, 1e4, True, at, 1, 0, 0, 1, 65), None),
    ):
        with pytest.raises(error, match=f"^{text}"):
            function(*arguments, **({} if options is None else {"is_neox": True, **options}))
    with pytest.raises(RuntimeError, match="requires grad"):
        turn(q.clone().requires_grad_(), k, table, at, is_neox=True)
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, qkv), strict=True)) and (caches == 0).all()
