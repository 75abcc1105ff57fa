"""pyrope.compat.flashinfer: FlashInfer's names and arguments, its results in float64, its errors."""

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, by_theta, check, signature_of, times
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope  # noqa: E402
import pyrope.compat.flashinfer as flashinfer  # noqa: E402

TOKENS, ROWS = 7, 64

RAGGED = "q, k, indptr, offsets, rotary_dim=None, interleave=False, "
IDS = "q, k, pos_ids, rotary_dim=None, interleave=False, "
PLAIN = "rope_scale=1, rope_theta=10000.0"
LLAMA31 = "rope_scale=8, rope_theta=500000.0, low_freq_factor=1, high_freq_factor=4, old_context_len=8192"
TABLE = "positions, query, key, head_size, cos_sin_cache, is_neox=True"
FP8 = (
    "cos_sin_cache, pos_ids, is_neox=True, quantize_dtype=None, quant_scale_q=1.0, quant_scale_kv=1.0, "
    "q_rope_out=None, k_rope_out=None, q_nope_out=None, k_nope_out=None, enable_pdl=False"
)
SIGNATURES = {  # of FlashInfer fb28d724
    "apply_rope": RAGGED + PLAIN,
    "apply_rope_inplace": RAGGED + PLAIN,
    "apply_rope_pos_ids": IDS + PLAIN,
    "apply_rope_pos_ids_inplace": IDS + PLAIN,
    "apply_llama31_rope": RAGGED + LLAMA31,
    "apply_llama31_rope_inplace": RAGGED + LLAMA31,
    "apply_llama31_rope_pos_ids": IDS + LLAMA31,
    "apply_llama31_rope_pos_ids_inplace": IDS + LLAMA31,
    "apply_rope_with_cos_sin_cache": TABLE,
    "apply_rope_with_cos_sin_cache_inplace": TABLE,
    "mla_rope_quantize_fp8": "q_rope, k_rope, q_nope, k_nope, " + FP8,
    "rope_quantize_fp8": "q_rope, k_rope, q_nope, k_nope, " + FP8 + ", backend='cuda'",
    "rope_quantize_fp8_append_paged_kv_cache": "q_rope, k_rope, q_nope, k_nope, v, cos_sin_cache, pos_ids, "
    "paged_kv_cache, kv_indices, kv_indptr, batch_indices, positions, is_neox=True, quantize_dtype=None, "
    "quant_scale_q=1.0, quant_scale_kv=1.0, page_size=16, kv_layout='NHD', q_rope_out=None, q_nope_out=None, "
    "enable_pdl=False",
    "fused_qk_rmsnorm_rope": "qkv, q_weight, k_weight, *, ppf, pph, ppw, num_frame_channels, num_height_channels, "
    "num_width_channels, num_heads_q, num_heads_k, num_heads_v, head_dim, eps=1e-06, base=10000.0, interleave=True, "
    "factor=1.0, low=0.0, high=0.0, attention_factor=1.0, is_qk_norm=True, output_fp8=False, output_quant_scale=1.0, "
    "v_quant_scale=1.0, q_out=None, k_out=None, v_out=None",
    "append_paged_kv_cache": "append_key, append_value, batch_indices, positions, paged_kv_cache, kv_indices, "
    "kv_indptr, kv_last_page_len, kv_layout='NHD'",
    "append_paged_mla_kv_cache": "append_ckv, append_kpe, batch_indices, positions, ckv_cache, kpe_cache, kv_indices, "
    "kv_indptr, kv_last_page_len",
    "get_batch_indices_positions": "append_indptr, seq_lens, nnz, batch_indices=None, positions=None",
    "get_seq_lens": "kv_indptr, kv_last_page_len, page_size",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert signature_of(getattr(flashinfer, name)) == SIGNATURES[name]


def test_places():
    """Where FlashInfer has them."""
    assert flashinfer.rope.apply_rope is flashinfer.apply_rope
    assert flashinfer.page.get_seq_lens is flashinfer.get_seq_lens
    assert flashinfer.diffusion_ops.fused_qk_rmsnorm_rope is flashinfer.norm.fused_qk_rmsnorm_rope


# ---- angles by theta


def test_example(device):
    """q and k as views of packed qkv; requests of two lengths and positions at which FlashInfer's angles drift."""
    where = on(device)
    qkv = randn(where, TOKENS, (3 + 2 * 2) * 64, dtype="float16")
    q, k = qkv[:, : 3 * 64].reshape(TOKENS, 3, 64), qkv[:, 3 * 64 : 5 * 64].unflatten(1, (2, 64))
    before = qkv.clone()
    indptr = torch.tensor([0, 4, 4, TOKENS], dtype=torch.int32, device=where)
    offsets = torch.tensor([10, 0, 131072], dtype=torch.int32, device=where)
    q_rope, k_rope = flashinfer.apply_rope(q, k, indptr, offsets)
    positions = [10, 11, 12, 13, 131072, 131073, 131074]
    check(q_rope, by_theta(q, positions, 64))
    check(k_rope, by_theta(k, positions, 64))
    assert torch.equal(qkv, before)
    assert q_rope.stride() == torch.empty_like(q).stride() and k_rope.stride() == torch.empty_like(k).stride()


FAMILY = {
    "plain": ("apply_rope", {}, lambda n: reference.base_frequencies(n, 1e4)),
    "scaled": (
        "apply_rope",
        {"rope_scale": 2, "rope_theta": 5e5},
        lambda n: reference.linear_frequencies(n, 5e5, 2),
    ),
    "llama31": ("apply_llama31_rope", {}, lambda n: reference.llama3_frequencies(n, 5e5, 8, 1, 4, 8192)),
    "llama31, other": (
        "apply_llama31_rope",
        {"rope_scale": 4, "rope_theta": 1e4, "low_freq_factor": 2, "high_freq_factor": 8, "old_context_len": 256},
        lambda n: reference.llama3_frequencies(n, 1e4, 4, 2, 8, 256),
    ),
}


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize(
    "form, index, rotary_dim, interleave, dtype",
    [
        ("", "int64", None, False, "bfloat16"),
        ("_inplace", "int32", 20, True, "float16"),
        ("_pos_ids", "int64", 8, False, "float32"),
        ("_pos_ids_inplace", "int32", None, True, "bfloat16"),
    ],
)
def test_by_theta(device, form, index, rotary_dim, interleave, dtype, family):
    name, options, frequencies = FAMILY[family]
    where, index = on(device), getattr(torch, index)
    q, k = (randn(where, TOKENS, heads, 64, dtype=dtype) for heads in (3, 1))
    before = q.clone(), k.clone()
    if "pos_ids" in form:
        positions = [0, 1, 131072, 7, 5, 2**31 - 1, 8]
        places = (torch.tensor(positions, dtype=index, device=where),)
    else:
        positions = [5, 6, 7, 0, 1, 2, 3]
        places = tuple(torch.tensor(x, dtype=index, device=where) for x in ([0, 3, 7], [5, 0]))
    outs = getattr(flashinfer, name + form)(q, k, *places, rotary_dim, interleave, **options)
    if "inplace" in form:
        assert outs is None
        outs = q, k
    else:
        assert torch.equal(q, before[0]) and torch.equal(k, before[1])
    for out, x in zip(outs, before, strict=True):
        check(
            out,
            by_theta(x, positions, rotary_dim or 64, neox=not interleave, frequencies=frequencies(rotary_dim or 64)),
        )


# ---- angles by a table


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("head_size, rotary_dim", [(64, 8), (64, 20), (80, 64), (128, 128), (192, 128)])
def test_by_table(device, head_size, rotary_dim, is_neox, dtype):
    """The sizes that FlashInfer faults on, too; and its numbers, whatever the table holds."""
    where = on(device)
    table = randn(where, ROWS, rotary_dim)
    positions = [0, 63, 5, 5, 1, 40, 2]
    ids = torch.tensor(positions, device=where, dtype=torch.int64 if is_neox else torch.int32)
    packed = randn(where, TOKENS, (3 + 1 + 1) * head_size, dtype=dtype)
    q, k = packed[:, : 3 * head_size], packed[:, 3 * head_size : 4 * head_size]
    values = [by_table(x.unflatten(1, (-1, head_size)), table, positions, is_neox) for x in (q, k)]
    outs = flashinfer.apply_rope_with_cos_sin_cache(ids, q, k, head_size, table, is_neox)
    for out, x, value in zip(outs, (q, k), values, strict=True):
        assert out.shape == x.shape and out.stride() == torch.empty_like(x).stride()
        check(out, value)
    rest = packed[:, 4 * head_size :].clone()
    assert flashinfer.apply_rope_with_cos_sin_cache_inplace(ids, q, k, head_size, table, is_neox) is None
    assert torch.equal(q, outs[0]) and torch.equal(k, outs[1]) and torch.equal(packed[:, 4 * head_size :], rest)


def test_table_of_pyrope(device):
    """A table that pyrope fills is the switch to exact angles: the bits of one that needs no table."""
    where = on(device)
    q, k = (randn(where, TOKENS, heads, 64, dtype="bfloat16") for heads in (2, 1))
    table = torch.empty(ROWS, 64, device=where)
    pyrope.Rope(64, 1, 0, device=device).build_cos_sin(table)
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2], device=where)
    want = flashinfer.apply_rope_pos_ids(q, k, ids)
    flashinfer.apply_rope_with_cos_sin_cache_inplace(ids, q.view(TOKENS, -1), k.view(TOKENS, -1), 64, table)
    assert torch.equal(q, want[0]) and torch.equal(k, want[1])


def test_left_alone(device):
    """Positions of no row, where FlashInfer reads outside; without a table -1 turns backwards."""
    where = on(device)
    q, k, table = randn(where, 3, 128), randn(where, 3, 64), randn(where, ROWS, 64)
    before = q.clone(), k.clone()
    ids = torch.tensor([ROWS, 7, -1], device=where)
    outs = flashinfer.apply_rope_with_cos_sin_cache(ids, q, k, 64, table)
    flashinfer.apply_rope_with_cos_sin_cache_inplace(ids, q, k, 64, table)
    for out, x, old in zip(outs, (q, k), before, strict=True):
        assert torch.equal(out, x) and torch.equal(x[::2], old[::2])
        check(x[1:2], by_table(old[1:2].unflatten(1, (-1, 64)), table, [7]))
    q, k = (x.unflatten(1, (-1, 64)) for x in before)
    out, _ = flashinfer.apply_rope_pos_ids(q, k, ids)
    check(out, by_theta(q, [ROWS, 7, -1], 64))


def test_gradient(device):
    """Out of place there is one, the rotation backwards."""
    where = on(device)
    q, k = randn(where, TOKENS, 2, 64).requires_grad_(), randn(where, TOKENS, 1, 64).requires_grad_()
    ids, table = torch.arange(TOKENS, device=where), randn(where, ROWS, 64)
    ones = [torch.ones_like(x) for x in (q, k)]
    for got, one in zip(torch.autograd.grad(flashinfer.apply_rope_pos_ids(q, k, ids), (q, k), ones), ones, strict=True):
        check(got, by_theta(one, [-i for i in range(TOKENS)], 64))
    flat = q.detach().view(TOKENS, 128).requires_grad_()
    out, _ = flashinfer.apply_rope_with_cos_sin_cache(ids, flat, k.detach().view(TOKENS, 64), 64, table)
    (got,) = torch.autograd.grad(out, flat, torch.ones_like(flat))
    check(got, by_table(torch.ones_like(q), table, range(TOKENS), inverse=True))


def test_numbers_in_memory(device):
    """Integers that are tensors, of the device too."""
    where = on(device)
    q, k, ids = randn(where, TOKENS, 128), randn(where, TOKENS, 64), torch.arange(TOKENS, device=where)
    table, number = randn(where, ROWS, 64), torch.tensor(64, device=where)
    want = flashinfer.apply_rope_with_cos_sin_cache(ids, q, k, 64, table)
    assert torch.equal(flashinfer.apply_rope_with_cos_sin_cache(ids, q, k, number, table)[0], want[0])
    q, k = q.view(TOKENS, 2, 64), k.view(TOKENS, 1, 64)
    want = flashinfer.apply_rope_pos_ids(q, k, ids, 32)
    assert torch.equal(flashinfer.apply_rope_pos_ids(q, k, ids, number // 2)[0], want[0])
    indptr = torch.tensor([0, TOKENS], device=where)
    got = flashinfer.get_batch_indices_positions(indptr, indptr[1:], indptr[1])
    assert got[1].tolist() == list(range(TOKENS))


def test_no_tokens(device):
    where = on(device)
    q, k, ids = torch.empty(0, 2, 64, device=where), torch.empty(0, 1, 64, device=where), torch.empty(0, device=where)
    for out, x in zip(flashinfer.apply_rope_pos_ids(q, k, ids.long()), (q, k), strict=True):
        assert out.shape == x.shape
    table = torch.ones(ROWS, 64, device=where)
    outs = flashinfer.apply_rope_with_cos_sin_cache(ids.int(), q.view(0, 128), k.view(0, 64), 64, table)
    assert [out.shape for out in outs] == [(0, 128), (0, 64)]
    indptr = torch.tensor([0, 0], device=where)
    assert flashinfer.apply_rope(q, k, indptr, indptr[:1])[0].shape == q.shape


# ---- norm


@pytest.mark.parametrize("is_qk_norm", [True, False])
@pytest.mark.parametrize(
    "ndim, interleave, yarn, output_fp8",
    [(3, True, {}, False), (2, False, {"factor": 4.0, "low": 2.0, "high": 9.0, "attention_factor": 1.25}, False),
     (3, False, {}, True)],
)  # fmt: skip
def test_fused_qk_rmsnorm_rope(device, ndim, interleave, yarn, output_fp8, is_qk_norm):
    where, (f, h, w), heads, dim, channels = on(device), (2, 3, 4), (3, 2, 1), 64, (24, 20, 20)
    qkv = randn(where, 2, f * h * w, sum(heads) * dim, dtype="bfloat16")
    given = qkv if ndim == 3 else qkv.flatten(0, 1)
    weights = [randn(where, n * dim, dtype="bfloat16", seed=1) for n in heads[:2]]
    got = flashinfer.fused_qk_rmsnorm_rope(
        given, *weights, ppf=f, pph=h, ppw=w, num_frame_channels=24, num_height_channels=20, num_width_channels=20,
        num_heads_q=3, num_heads_k=2, num_heads_v=1, head_dim=dim, interleave=interleave, is_qk_norm=is_qk_norm,
        output_fp8=output_fp8, output_quant_scale=2.0, v_quant_scale=0.5, eps=1e-5, **yarn,
    )  # fmt: skip
    where_each = np.stack(np.meshgrid(range(f), range(h), range(w), indexing="ij")).reshape(3, -1)
    tables = []
    for stream, n in enumerate(channels):
        frequencies = [float(x) for x in reference.base_frequencies(n, 1e4)]
        if yarn:
            ramp = np.clip((np.arange(n // 2) - 2.0) / 7.0, 0, 1)
            frequencies = np.array(frequencies) * (1 - ramp) + np.array(frequencies) / 4 * ramp
        tables.append(reference.cos_sin(where_each[stream], frequencies))
    cos, sin = (
        np.tile(np.concatenate(t, -1), (2, 1)) * yarn.get("attention_factor", 1) for t in zip(*tables, strict=True)
    )
    for out, x, n, weight in zip(
        got, qkv.flatten(0, 1).split([n * dim for n in heads], 1), heads, [*weights, None], strict=True
    ):
        assert out.shape == (*given.shape[:-1], n, dim) and out.is_contiguous()
        value = reference.exact(array_of(x))
        if weight is not None:
            if is_qk_norm:
                value = reference.rms_norm(value, reference.decode(array_of(weight)), 1e-5, 0.0)
            value = tuple(part.reshape(-1, n, dim) for part in value)
            value = reference.rotate(value, cos, sin, "gptj" if interleave else "neox", dim, 0)
        if output_fp8:
            value = times(value, 0.5 if weight is None else 2.0)
        check(out, value)


# ---- bad input


def test_refusals(device):
    """Of what is wrong, by name; nothing is written."""
    where = on(device)
    q, k, table = randn(where, TOKENS, 128), randn(where, TOKENS, 64), randn(where, ROWS, 64)
    q3, k3, before = q.view(TOKENS, 2, 64), k.view(TOKENS, 1, 64), q.clone()
    ids = torch.arange(TOKENS, device=where)
    indptr, offsets = torch.tensor([0, TOKENS], device=where), torch.tensor([0], device=where)
    in_place = flashinfer.apply_rope_with_cos_sin_cache_inplace
    for text, error, function, arguments in (
        ("cos_sin_cache should be float32", ValueError, in_place, (ids, q, k, 64, table.bfloat16())),
        ("cos_sin_cache", ValueError, in_place, (ids, q, k, 64, table[0])),
        ("query", ValueError, in_place, (ids, q, k, 48, table)),
        ("query: 128 elements", ValueError, in_place, (ids, q, k, 0, table)),
        ("rotary_dim", ValueError, in_place, (ids, q, k, 32, table)),
        ("rotary_dim", ValueError, in_place, (ids, q, k, 64, table[:, :7])),
        ("positions", ValueError, in_place, (ids[:3], q, k, 64, table)),
        ("positions", TypeError, in_place, (ids.float(), q, k, 64, table)),
        ("k: ", ValueError, in_place, (ids, q, k[:3], 64, table)),
        ("k: ", TypeError, in_place, (ids, q, k.half(), 64, table)),
        ("q: ", ValueError, flashinfer.apply_rope_pos_ids_inplace, (q, k3, ids)),
        ("rotary_dim", ValueError, flashinfer.apply_rope_pos_ids_inplace, (q3, k3, ids, 128)),
        ("offsets", TypeError, flashinfer.apply_rope_inplace, (q3, k3, indptr, offsets.int())),
        ("offsets", ValueError, flashinfer.apply_rope_inplace, (q3, k3, indptr, indptr)),
        ("factor", ValueError, flashinfer.apply_rope_pos_ids_inplace, (q3, k3, ids, None, False, 0)),
    ):
        with pytest.raises(error, match=f"^{text}"):
            function(*arguments)
    grown = q.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        in_place(ids, grown, k, 64, table)
    assert torch.equal(q, before)


def test_norm_refusals(device):
    where = on(device)
    qkv, weight = randn(where, 6, 4 * 64, dtype="bfloat16"), randn(where, 128, dtype="bfloat16")
    good = {
        "ppf": 1, "pph": 2, "ppw": 3, "num_frame_channels": 24, "num_height_channels": 20, "num_width_channels": 20,
        "num_heads_q": 2, "num_heads_k": 1, "num_heads_v": 1, "head_dim": 64,
    }  # fmt: skip
    for text, error, change, x, w in (
        ("num_height_channels", ValueError, {"num_height_channels": 21, "num_width_channels": 19}, qkv, weight),
        ("head_dim", ValueError, {"num_frame_channels": 22}, qkv, weight),
        ("attention_factor", ValueError, {"attention_factor": 2.0}, qkv, weight),
        ("qkv", ValueError, {"ppw": 4}, qkv, weight),
        ("qkv", ValueError, {"num_heads_v": 2}, qkv, weight),
        ("qkv", ValueError, {}, qkv[None, :4], weight),
        ("q_weight", ValueError, {}, qkv, weight[:64]),
        ("q_weight", TypeError, {}, qkv, weight.half()),
        ("q_out", ValueError, {"q_out": torch.zeros(6, 128, device=where, dtype=torch.bfloat16)}, qkv, weight),
        ("k_out", ValueError, {"k_out": torch.zeros(6, 1, 64, device=where)}, qkv, weight),
    ):
        with pytest.raises(error, match=f"^{text}"):
            flashinfer.fused_qk_rmsnorm_rope(x, w, weight[:64], **good | change)


def test_compiled(device):
    """Without a graph break, in place and out of place, any number of tokens."""

    def step(ids, q, k, table):
        q, k = q + 1, k + 1
        flashinfer.apply_rope_with_cos_sin_cache_inplace(ids, q, k, 64, table)
        return flashinfer.apply_llama31_rope_pos_ids(q.unflatten(1, (2, 64)), k.unflatten(1, (1, 64)), ids)

    where = on(device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    table = randn(where, ROWS, 64)
    for tokens in (3, 5):
        q, k, ids = randn(where, tokens, 128), randn(where, tokens, 64), torch.arange(tokens, device=where)
        for a, b in zip(compiled(ids, q, k, table), step(ids, q, k, table), strict=True):
            assert torch.equal(a, b)
