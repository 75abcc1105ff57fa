"""pyrope.compat.flash_attn: flash-attn's names and arguments, its results in float64, its errors."""

import inspect

import numpy as np
import pytest

from kit import reference
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope.compat.flash_attn as flash_attn  # noqa: E402

BATCH, SEQ, HEADS, DIM, ROWS = 2, 5, 3, 64, 16

SIGNATURES = {  # of flash-attn 0251105a
    "apply_rotary_emb": "x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, "
    "max_seqlen=None",
    "apply_rotary_emb_func": "x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, "
    "max_seqlen=None",
    "apply_rotary_emb_qkv_": "qkv, cos, sin, cos_k=None, sin_k=None, interleaved=False, seqlen_offsets=0, "
    "num_heads_q=None",
    "apply_rotary_emb_kv_": "kv, cos, sin, interleaved=False, seqlen_offsets=0",
    "apply_rotary": "x, cos, sin, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None, interleaved=False, "
    "inplace=False, conjugate=False",
    "RotaryEmbedding": "dim, base=10000.0, interleaved=False, scale_base=None, device=None",
    "RotaryEmbedding.forward": "self, qkv, kv=None, seqlen_offset=0, max_seqlen=None, num_heads_q=None",
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    function = flash_attn
    for part in name.split("."):
        function = getattr(function, part)
    parameters = inspect.signature(function).parameters.values()
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == SIGNATURES[name]


def test_places():
    """Where flash-attn has them."""
    assert flash_attn.layers.rotary.apply_rotary_emb is flash_attn.apply_rotary_emb
    assert flash_attn.ops.triton.rotary.apply_rotary is flash_attn.apply_rotary
    assert flash_attn.apply_rotary_emb_func is flash_attn.apply_rotary_emb


def tables(device, rotary_dim, dtype="float32", seed=0):
    """cos and sin of any numbers: rows are what the caller says."""
    return randn(device, 2, ROWS + seed, rotary_dim // 2, dtype=dtype)[:, :ROWS]


def rotated(x, cos, sin, positions, interleaved, conjugate=False):
    """Float64 of [batch, seq, heads, dim], with the error of float32; of positions that are no rows x itself."""
    rows, inside = np.clip(positions.ravel(), 0, len(cos) - 1), (positions < len(cos)).ravel()
    c, s = (np.where(inside[:, None], reference.decode(array_of(t))[rows], other) for t, other in ((cos, 1), (sin, 0)))
    flat = array_of(x).reshape(-1, *x.shape[-2:])
    pairing = "gptj" if interleaved else "neox"
    value = reference.rotate(reference.exact(flat), c, -s if conjugate else s, pairing, 2 * c.shape[1], 0)
    return tuple(part.reshape(x.shape) for part in value)


def check(got, value, dtype="float32"):
    good = reference.within(array_of(got), value, dtype)
    assert good.all(), (array_of(got)[~good][:4], value[0][~good][:4])


OFFSETS = {
    "int": lambda device: (7, np.arange(7, 7 + SEQ)[None].repeat(BATCH, 0)),
    "tensor": lambda device: (
        torch.tensor([13, 2], device=device, dtype=torch.int32),  # the first runs out of the table
        np.array([[13], [2]]) + np.arange(SEQ),
    ),
}


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [32, 64])
def test_apply(device, rotary_dim, interleaved, inplace, offsets, dtype):
    """Values, and the gradient of x, which may be a leaf even in place."""
    seqlen_offsets, positions = OFFSETS[offsets](on(device))
    cos, sin = tables(device, rotary_dim, dtype)
    x = randn(device, BATCH, SEQ, HEADS, DIM, dtype=dtype).requires_grad_()
    before, g = x.detach().clone(), randn(device, BATCH, SEQ, HEADS, DIM + 1, dtype=dtype)[..., 1:]
    out = flash_attn.apply_rotary_emb(x, cos, sin, interleaved, inplace, seqlen_offsets)
    check(out, rotated(before, cos, sin, positions, interleaved), dtype)
    assert torch.equal(x, out if inplace else before) and (out.data_ptr() == x.data_ptr()) == inplace
    (got,) = torch.autograd.grad(out, x, g)
    check(got, rotated(g, cos, sin, positions, interleaved, conjugate=True), dtype)
    back = flash_attn.apply_rotary(g, cos, sin, seqlen_offsets, interleaved=interleaved, conjugate=True)
    assert torch.equal(got, back)


@pytest.mark.parametrize("offsets", [0, 3, "tensor"])
@pytest.mark.parametrize("inplace", [False, True])
def test_varlen(device, inplace, offsets):
    where = on(device)
    cos, sin = tables(device, DIM)
    x = randn(device, 9, HEADS, DIM)
    before, cu_seqlens = x.clone(), torch.tensor([0, 4, 4, 7], device=where, dtype=torch.int32)
    starts = [5, 0, 12] if offsets == "tensor" else [offsets] * 3
    given = torch.tensor(starts, device=where) if offsets == "tensor" else offsets
    out = flash_attn.apply_rotary_emb(x, cos, sin, False, inplace, given, cu_seqlens, 4)
    positions = np.concatenate([starts[0] + np.arange(4), starts[2] + np.arange(3), [ROWS, ROWS]])  # two in no sequence
    check(out, rotated(before, cos, sin, positions, False))
    assert torch.equal(x, out if inplace else before)


def test_grad_of_a_sum_in_place(device):
    """The gradient that came may be shared, and is left alone."""
    cos, sin = tables(device, DIM)
    x = randn(device, BATCH, SEQ, HEADS, DIM).requires_grad_()
    y = x * 1
    out = flash_attn.apply_rotary_emb(y, cos, sin, inplace=True)
    (got,) = torch.autograd.grad((out + x).sum(), x)
    ones = torch.ones_like(x)
    value, error = rotated(ones, cos, sin, np.arange(SEQ)[None].repeat(BATCH, 0), False, conjugate=True)
    check(got, (value + 1, error + 2.0**-22))


@pytest.mark.parametrize("strides", ["contiguous", "last dimension apart"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("packed", ["3", "heads"])
def test_qkv(device, packed, own, strides):
    cos, sin = tables(device, 32)
    cos_k, sin_k = tables(device, 32, seed=3) if own else (None, None)
    shape, q_heads = ((3, HEADS), None) if packed == "3" else ((4 + 2 * 2,), 4)
    qkv = randn(device, BATCH, SEQ, *shape, DIM)
    if strides != "contiguous":
        qkv = qkv.transpose(1, -1).contiguous().transpose(1, -1)
    qkv.requires_grad_()
    before, g = qkv.detach().clone(), torch.ones_like(qkv)
    out = flash_attn.apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, seqlen_offsets=2, num_heads_q=q_heads)
    assert out.data_ptr() == qkv.data_ptr() and torch.equal(out, qkv)
    (grad,) = torch.autograd.grad(out, qkv, g)
    positions = np.arange(2, 2 + SEQ)[None].repeat(BATCH, 0)
    k_tables = (cos_k, sin_k) if own else (cos, sin)
    for got, x, conjugate in ((qkv, before, False), (grad, g, True)):
        parts = (x[:, :, 0], x[:, :, 1]) if packed == "3" else (x[:, :, :4], x[:, :, 4:6])
        turned = (got[:, :, 0], got[:, :, 1], got[:, :, 2]) if packed == "3" else got.split((4, 2, 2), 2)
        check(turned[0], rotated(parts[0], cos, sin, positions, False, conjugate))
        check(turned[1], rotated(parts[1], *k_tables, positions, False, conjugate))
        assert torch.equal(turned[2], x[:, :, 2] if packed == "3" else x[:, :, 6:])


def test_kv(device):
    cos, sin = tables(device, DIM)
    kv = randn(device, BATCH, SEQ, 2, HEADS, DIM)
    before = kv.clone()
    out = flash_attn.apply_rotary_emb_kv_(kv, cos, sin, interleaved=True, seqlen_offsets=4)
    assert out.data_ptr() == kv.data_ptr() and torch.equal(kv[:, :, 1], before[:, :, 1])
    check(kv[:, :, 0], rotated(before[:, :, 0], cos, sin, np.arange(4, 4 + SEQ)[None].repeat(BATCH, 0), True))


@pytest.mark.parametrize("scale_base", [None, 512])
@pytest.mark.parametrize("form", ["qkv", "grouped", "q and kv"])
def test_module(device, form, scale_base):
    """Exact angles of RoFormer; with scale_base times or over xPos's magnitudes around the middle."""
    rotary = flash_attn.RotaryEmbedding(32, base=5e5, scale_base=scale_base, device=on(device))
    assert list(rotary.state_dict()) == [] and rotary.inv_freq.shape == (16,)
    shapes = {"qkv": [(3, HEADS)], "grouped": [(4 + 2 * 2,)], "q and kv": [(HEADS,), (2, HEADS)]}[form]
    xs = [randn(device, BATCH, SEQ, *shape, DIM) for shape in shapes]
    before = [x.clone() for x in xs]
    outs = rotary(*xs, seqlen_offset=1000, num_heads_q=4 if form == "grouped" else None)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(outs if len(xs) == 2 else [outs], xs, strict=True))
    positions = np.arange(1000, 1000 + SEQ)
    cos, sin = reference.cos_sin(positions, reference.base_frequencies(32, 5e5))
    factor = np.ones(cos.shape)
    if scale_base:
        factor = reference.xpos((positions - (1000 + SEQ) // 2)[:, None] * np.ones(16), 32, scale_base, 0.4)

    def parts(ts):
        if form == "q and kv":
            return ts[0], ts[1][:, :, 0], ts[1][:, :, 1]
        return (ts[0][:, :, 0], ts[0][:, :, 1], ts[0][:, :, 2]) if form == "qkv" else ts[0].split((4, 2, 2), 2)

    for got, x, f in zip(parts(xs), parts(before), (factor, 1 / factor, None), strict=True):
        if f is None:
            assert torch.equal(got, x)
            continue
        c, s = (np.tile(t * f, (BATCH, 1)) for t in (cos, sin))
        flat = reference.exact(array_of(x).reshape(-1, *x.shape[2:]))
        value = reference.rotate(flat, c, s, "neox", 32, 0, reference.ROTATION + reference.XPOS)
        check(got, tuple(part.reshape(got.shape) for part in value))


def test_asserts(device):
    """flash-attn's kind of error."""
    x, (cos, sin) = randn(device, BATCH, SEQ, HEADS, DIM), tables(device, DIM)
    cu_seqlens = torch.tensor([0, 5], device=x.device)
    for text, arguments in (
        ("rotary_dim must be <= headdim", (x[..., :32], cos, sin)),
        ("seqlen_ro must be >= seqlen", (x, cos[:4], sin[:4])),
        ("Input and cos/sin must have the same dtype", (x, cos.half(), sin.half())),
        ("cos and sin must have the same dtype", (x, cos, sin.half())),
        (None, (x, cos, sin[:, :8])),
        (None, (x, cos, sin, False, False, 12)),
        (None, (x, cos, sin, False, False, torch.tensor([1, 2, 3], device=x.device))),
        ("If cu_seqlens is passed in, then max_seqlen", (x[0], cos, sin, False, False, 0, cu_seqlens)),
    ):
        with pytest.raises(AssertionError, match=text):
            flash_attn.apply_rotary_emb(*arguments)
    for qkv, heads in ((x, None), (x[:, :, :2], 1), (x[:, :, None], None)):
        with pytest.raises(AssertionError):
            flash_attn.apply_rotary_emb_qkv_(qkv, cos, sin, num_heads_q=heads)
    with pytest.raises(AssertionError):
        flash_attn.apply_rotary_emb_kv_(x, cos, sin)
