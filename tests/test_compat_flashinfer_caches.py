"""pyrope.compat.flashinfer: rotations to fp8, appends to paged caches, and where to append."""

import numpy as np
import pytest

from kit import reference
from kit.serving import by_table, check, quantised, times
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope.compat.flashinfer as flashinfer  # noqa: E402

TOKENS, ROWS = 7, 64


# ---- to fp8


def parts(device, q_heads, k_heads, rope_dim, nope_dim, dtype="bfloat16"):
    """q and k as views of one tensor each, as models have them; of latent attention without heads."""
    q = randn(device, TOKENS, q_heads, nope_dim + rope_dim, dtype=dtype)
    k = randn(device, TOKENS, *([k_heads] if k_heads else []), nope_dim + rope_dim, dtype=dtype)
    return q[..., nope_dim:], k[..., nope_dim:], q[..., :nope_dim], k[..., :nope_dim]


def threes(x):
    return x if x.ndim == 3 else x.unsqueeze(1)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("outs", ["made", "given"])
@pytest.mark.parametrize(
    "k_heads, nope_dim, is_neox", [(None, 512, False), (2, 64, True), (2, 0, True), (3, 24, False)]
)
def test_rope_quantize(device, k_heads, nope_dim, is_neox, outs, dtype):
    where, dtype = on(device), getattr(torch, dtype)
    q_rope, k_rope, q_nope, k_nope = inputs = parts(where, 4, k_heads, 64, nope_dim)
    table, positions = randn(where, ROWS, 64), [9, 0, 63, 1, 2, 2, 8]
    ids = torch.tensor(positions, device=where)
    given = {}
    if outs == "given":  # slices of one tensor, as SGLang gives them
        for side, rope, nope in (("q", q_rope, q_nope), ("k", k_rope, k_nope)):
            both = torch.zeros(*rope.shape[:-1], nope.shape[-1] + 64, dtype=dtype, device=where)
            given |= {f"{side}_nope_out": both[..., :-64], f"{side}_rope_out": both[..., -64:]}
    function = flashinfer.mla_rope_quantize_fp8 if k_heads is None else flashinfer.rope_quantize_fp8
    arguments = (q_rope, k_rope, None, None) if nope_dim == 0 and outs == "made" else inputs
    got = function(
        *arguments, table, ids, is_neox, None if outs == "given" else dtype, quant_scale_q=0.7, quant_scale_kv=3.0,
        **given,
    )  # fmt: skip
    for out, name in zip(got, ("q_rope", "k_rope", "q_nope", "k_nope"), strict=True):
        assert out.dtype == dtype and (outs == "made" or out is given[f"{name}_out"])
    for out, x, scale in zip(got[:2], (q_rope, k_rope), (0.7, 3.0), strict=True):
        assert out.shape == x.shape
        check(threes(out), times(by_table(threes(x), table, positions, is_neox), scale))
    for out, x, scale in zip(got[2:], (q_nope, k_nope), (0.7, 3.0), strict=True):
        assert out.shape == x.shape
        check(out, times(reference.exact(array_of(x)), scale))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("k_heads, nope_dim, is_neox", [(None, 512, False), (2, 64, True), (2, 0, False), (1, 8, True)])
def test_rope_quantize_append(device, k_heads, nope_dim, is_neox, layout):
    """Pages by a table; nothing else of the cache is written."""
    where, dtype, page_size, pages = on(device), torch.float8_e4m3fn, 4, 9
    q_rope, k_rope, q_nope, k_nope = parts(where, 4, k_heads, 32, nope_dim)
    table, positions = randn(where, ROWS, 32), [9, 0, 63, 1, 2, 2, 8]
    head_dim = 32 + nope_dim
    if k_heads is None:
        v, shapes = None, [(pages, page_size, nope_dim), (pages, page_size, 32)]
    else:
        v = randn(where, TOKENS, k_heads, head_dim, dtype="bfloat16")
        order = (page_size, k_heads) if layout == "NHD" else (k_heads, page_size)
        shapes = [(pages, *order, head_dim)] * 2
    caches = tuple(torch.full(shape, 7, dtype=torch.uint8, device=where).view(dtype) for shape in shapes)
    places = {
        "kv_indices": torch.tensor([3, 8, 0, 5], device=where),
        "kv_indptr": torch.tensor([0, 2, 4], device=where),
        "batch_indices": torch.tensor([0, 0, 0, 1, 1, -1, 1], device=where),
        "positions": torch.tensor([3, 4, 5, 0, 1, 2, 6], device=where),
    }
    rows = [3 * 4 + 3, 8 * 4 + 0, 8 * 4 + 1, 0, 1, None, 5 * 4 + 2]
    got = flashinfer.rope_quantize_fp8_append_paged_kv_cache(
        q_rope, k_rope, q_nope if nope_dim else None, k_nope if nope_dim else None, v, table,
        torch.tensor(positions, device=where), caches, **places, is_neox=is_neox, quant_scale_q=0.7,
        quant_scale_kv=3.0, page_size=page_size, kv_layout=layout,
    )  # fmt: skip
    check(got[0], times(by_table(q_rope, table, positions, is_neox), 0.7))
    check(got[1], times(reference.exact(array_of(q_nope)), 0.7))
    appended = [i for i, row in enumerate(rows) if row is not None]
    turned = tuple(part[appended] for part in by_table(threes(k_rope), table, positions, is_neox))
    plain = tuple(part[appended] for part in reference.exact(array_of(threes(k_nope))))
    values = (plain, turned) if k_heads is None else (
        tuple(np.concatenate(both, -1) for both in zip(turned, plain, strict=True)),
        tuple(part[appended] for part in reference.exact(array_of(v))),
    )  # fmt: skip
    for cache, value in zip(caches, values, strict=True):
        flat = threes(cache.flatten(0, 1)) if k_heads is None else (
            cache if layout == "NHD" else cache.transpose(1, 2)
        ).flatten(0, 1)  # fmt: skip
        check(flat[[rows[i] for i in appended]], times(value, 3.0))
        untouched = [row for row in range(pages * page_size) if row not in rows]
        assert (quantised(flat)[0].view(np.uint8)[untouched] == 7).all()


# ---- where to append


def test_where_to_append(device):
    """FlashInfer's own example, and padding."""
    where = on(device)
    indptr = torch.tensor([0, 45, 53, 78, 100], dtype=torch.int32, device=where)
    page_indptr = torch.tensor([0, 3, 4, 6, 8], dtype=torch.int32, device=where)
    last = torch.tensor([13, 8, 9, 6], dtype=torch.int32, device=where)
    lengths = flashinfer.get_seq_lens(page_indptr, last, 16)
    assert lengths.tolist() == [45, 8, 25, 22] and lengths.dtype == torch.int32
    batch_indices, positions = flashinfer.get_batch_indices_positions(indptr, lengths, 100)
    assert batch_indices.dtype == positions.dtype == torch.int32
    assert batch_indices.tolist() == [0] * 45 + [1] * 8 + [2] * 25 + [3] * 22
    assert positions.tolist() == [*range(45), *range(8), *range(25), *range(22)]
    indptr, lengths = (torch.tensor(x, dtype=torch.int32, device=where) for x in ([0, 1, 1, 3], [5, 9, 5]))
    batch_indices, positions = flashinfer.get_batch_indices_positions(indptr, lengths, 5)
    assert batch_indices.tolist() == [0, 2, 2, -1, -1] and positions.tolist() == [4, 3, 4, 0, 0]
    given = [torch.full((5,), 8, dtype=torch.int32, device=where) for _ in range(2)]
    got = flashinfer.get_batch_indices_positions(indptr, lengths, 5, *given)
    assert all(a is b for a, b in zip(got, given, strict=True))
    assert given[0].tolist() == [0, 2, 2, -1, -1] and given[1].tolist() == [4, 3, 4, 8, 8]
    with pytest.raises(ValueError, match="positions"):
        flashinfer.get_batch_indices_positions(indptr, lengths, 5, given[0], given[1].long())
    with pytest.raises(ValueError, match="batch_indices"):
        flashinfer.get_batch_indices_positions(indptr, lengths, 4, given[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("form", ["NHD", "HND", "one tensor", "latent", "latent, ckv", "latent, kpe"])
def test_append(device, form, dtype):
    """Bits of whatever they are, NaNs and infinities too; nothing else of the cache is written."""
    where, pages, page_size, heads, dims = on(device), 9, 4, 2, (16, 16)
    lead, rows = (TOKENS, heads), [15, 32, 33, 0, 1, None, 22]
    if form.startswith("latent"):
        lead, dims = (TOKENS,), (32, 16)
    raw = [torch.randint(0, 256, (*lead, n * torch.empty(0, dtype=getattr(torch, dtype)).itemsize), dtype=torch.uint8)
           for n in dims]  # fmt: skip
    k, v = (x.to(where).view(getattr(torch, dtype)) for x in raw)
    heads_first = form == "HND"
    order = (heads, page_size) if heads_first else (page_size, *lead[1:])
    caches = [torch.full((pages, *order, x.shape[-1] * x.itemsize), 7, dtype=torch.uint8, device=where) for x in (k, v)]
    if form == "one tensor":
        both = torch.stack(caches, 1)
        caches = list(both.unbind(1))
    typed = [cache.view(k.dtype) for cache in caches]
    places = [torch.tensor(x, device=where) for x in ([0, 0, 0, 1, 1, -1, 1], [3, 4, 5, 0, 1, 2, 6])]
    table = [torch.tensor(x, device=where) for x in ([3, 8, 0, 5], [0, 2, 4], [2, 3])]
    if form.startswith("latent"):
        left_out = {"latent, ckv": 1, "latent, kpe": 0}.get(form)
        given = [None if i == left_out else cache for i, cache in enumerate(typed)]
        flashinfer.append_paged_mla_kv_cache(k, v, *places, *given, *table)
    else:
        left_out, given = None, both.view(k.dtype) if form == "one tensor" else tuple(typed)
        flashinfer.append_paged_kv_cache(k, v, *places, given, *table, "HND" if heads_first else "NHD")
    for i, (cache, x) in enumerate(zip(caches, (k, v), strict=True)):
        got = (cache.transpose(1, 2) if heads_first else cache).flatten(0, 1)
        want = torch.full_like(got, 7)
        for token, row in enumerate(rows):
            if row is not None and i != left_out:
                want[row] = x[token].view(torch.uint8)
        assert torch.equal(got, want)


# ---- bad input


def test_append_refusals(device):
    """Of what is wrong, by name; nothing is written."""
    where = on(device)
    k, pages = randn(where, TOKENS, 64), torch.zeros(2, 4, 1, 64, device=where)
    k3, latents = k[:, None], pages[:, :, 0]
    at = [torch.zeros(n, dtype=torch.int32, device=where) for n in (7, 7, 2, 2, 1)]
    append, latent = flashinfer.append_paged_kv_cache, flashinfer.append_paged_mla_kv_cache
    for text, error, function, arguments in (
        ("append_key", ValueError, append, (k, k3, *at[:2], (pages, pages), *at[2:])),
        ("cache: ", ValueError, append, (k3, k3, *at[:2], (pages.half(), pages), *at[2:])),
        ("k_cache", ValueError, append, (k3, k3, *at[:2], (pages[..., :8], pages), *at[2:])),
        ("paged_kv_cache", ValueError, append, (k3, k3, *at[:2], pages, *at[2:])),
        (".kv_layout", KeyError, append, (k3, k3, *at[:2], (pages, pages), *at[2:], "DHN")),
        ("append_kpe", ValueError, latent, (k, k3, *at[:2], latents, latents, *at[2:])),
    ):
        with pytest.raises(error, match=f"^{text}"):
            function(*arguments)
    assert not pages.any()


def test_fp8_refusals(device):
    where = on(device)
    q_rope, k_rope, q_nope, k_nope = parts(where, 2, None, 32, 64)
    table, ids = randn(where, ROWS, 32), torch.arange(TOKENS, device=where)
    call = flashinfer.rope_quantize_fp8
    good = (q_rope, k_rope, q_nope, k_nope, table, ids)
    other = torch.zeros_like(q_rope, dtype=torch.float8_e5m2)
    for text, arguments, options in (
        ("cos_sin_cache should be float32", (*good[:4], table.half(), ids), {}),
        ("quantize_dtype", good, {"quantize_dtype": torch.int8}),
        ("quantize_dtype", good, {"quantize_dtype": torch.float16}),
        ("q_rope_out", good, {"quantize_dtype": torch.float8_e4m3fn, "q_rope_out": other}),
        ("quant_scale_q", good, {"quant_scale_q": 0.0}),
        ("quant_scale_kv", good, {"quant_scale_kv": -1.0}),
        ("backend", good, {"backend": "triton"}),
        ("q_rope", (q_rope[0], *good[1:]), {}),
        ("k_rope", (q_rope, k_rope[:, :16], *good[2:]), {}),
        ("k_rope", (q_rope, k_rope[0], *good[2:]), {}),
        ("q_nope", (*good[:2], q_nope[:3], *good[3:]), {}),
        ("k_nope_out", good, {"k_nope_out": torch.zeros(3, 64, dtype=torch.float8_e4m3fn, device=where)}),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            call(*arguments, **options)
    caches = [torch.zeros(3, 4, n, dtype=torch.float8_e4m3fn, device=where) for n in (64, 32)]
    places = [torch.zeros(n, dtype=torch.int32, device=where) for n in (3, 2, TOKENS, TOKENS)]
    append = flashinfer.rope_quantize_fp8_append_paged_kv_cache
    deep = [cache[:, :, None] for cache in caches]
    for error, text, k, v, cache, options in (
        (ValueError, "paged_kv_cache", k_rope, None, caches[:1], {}),
        (ValueError, "v: given", k_rope, q_rope, caches, {}),
        (ValueError, "v: None", k_rope[:, None], None, caches, {}),
        (ValueError, "v: shape", k_rope[:, None], q_rope, caches, {}),
        (ValueError, "paged_kv_cache: shapes", k_rope[:, None], randn(where, TOKENS, 1, 96), deep, {}),
        (ValueError, "paged_kv_cache", k_rope, None, [x.view(torch.uint8) for x in caches], {}),
        (ValueError, "paged_kv_cache", k_rope, None, deep, {}),
        (ValueError, "paged_kv_cache: shape .* page_size=8", k_rope, None, caches, {"page_size": 8}),
        (KeyError, '"kv_layout: ', k_rope, None, caches, {"kv_layout": "DHN"}),
        (ValueError, "k_cache", k_rope, None, caches[::-1], {}),
    ):
        with pytest.raises(error, match=f"^{text}"):
            nope = k_nope if k.ndim == 2 else k_nope[:, None]
            append(q_rope, k, q_nope, nope, v, table, ids, cache, *places, **{"page_size": 4, **options})
    assert all((quantised(cache)[0] == 0).all() for cache in caches)
