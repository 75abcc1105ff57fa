"""Gradients of pyrope.torch against float64 formulas of torch's own autograd.

A rotation is linear. So gradcheck, which compares with finite differences in float64, is replaced by what is stronger:
in float32 each gradient is the transposed matrix's product, to the error bound of the rotation itself.
"""

import numpy as np
import pytest

import pyrope
from kit.reference import ROTATION, U
from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import LAYOUTS, batch_first, laid_out, on, require_torch, rotate64

torch = require_torch()
import pyrope.torch as face  # noqa: E402

BATCH, SEQ = 2, 5
POSITIONS = [4, 0, 9000, -1, 2]
FORMS = ("offset", "positions")


def randn(device, heads, dtype=torch.float32, seed=0):
    torch.manual_seed(heads + 100 * seed)
    return torch.randn(BATCH, SEQ, heads, DIM, dtype=dtype).to(device)


def leaf(x):
    return x.detach().clone().requires_grad_()


def arguments(form, device):
    """(arguments of a call, positions of a sequence)"""
    if form == "offset":
        return {"offset": 11}, np.arange(11, 11 + SEQ)
    return {"positions": torch.tensor(POSITIONS, device=device)}, np.array(POSITIONS)


def turn64(x, rope, positions):
    """Float64, by torch's own operations; a token of position -1 as it is."""
    y = rotate64(x, rope, np.where(positions == -1, 0, positions))
    return torch.where(torch.tensor(positions == -1, device=x.device)[:, None, None], x, y)


def lengths(x, rope):
    """An upper bound of every pair's length."""
    return x.double().square().sum(-1, keepdim=True).sqrt()


def check(got, want, scale, relative=ROTATION):
    assert got.shape == want.shape
    error = (got.double() - want).abs()
    assert (error <= relative * scale).all(), (error / scale).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pairing", ["neox", "gptj"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation(device, layout, pairing, form):
    """First derivatives of every layout; broadcast gradients, such as a sum's, too."""
    rope = make(device, layout=pairing, rotary_dim=32, rotary_offset=16, attention_factor=1.5)
    where = on(device)
    call, positions = arguments(form, where)
    q, k = leaf(randn(where, Q_HEADS)), leaf(randn(where, K_HEADS))
    outs = face.apply(rope, laid_out(q, layout), laid_out(k, layout), layout=layout, **call)
    weights = [randn(where, heads, seed=1) for heads in (Q_HEADS, K_HEADS)]
    (batch_first(outs[0], layout) * weights[0]).sum().backward(retain_graph=True)
    assert k.grad is None or not k.grad.any()
    k.grad = None
    batch_first(outs[1], layout).sum().backward()
    for x, w in ((q, weights[0]), (k, torch.ones_like(k))):
        want = leaf(x.double())
        (turn64(want, rope, positions) * w).sum().backward()
        check(x.grad, want.grad, 1.5 * lengths(w, rope))


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(device, form):
    """Of f = sum((R q)^3 w): a gradient's own gradient."""
    rope, where = make(device), on(device)
    call, positions = arguments(form, where)
    q, w = leaf(randn(where, Q_HEADS)), randn(where, Q_HEADS, seed=1)

    def derivatives(q, turned):
        (first,) = torch.autograd.grad((turned**3 * w).sum(), q, create_graph=True)
        return torch.autograd.grad((first**2).sum(), q)[0]

    got = derivatives(q, face.apply(rope, q, **call)[0])
    q64 = leaf(q.double())
    want = derivatives(q64, turn64(q64, rope, positions))
    check(got, want, want.abs().max(), 20 * ROTATION)  # four rotations, powers and products between them


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(device, dtype):
    """The gradient is the inverse rotation, to the bit of the core's."""
    rope, where = make(device, dtype), on(device)
    q = leaf(randn(where, Q_HEADS, getattr(torch, dtype)))
    w = randn(where, Q_HEADS, getattr(torch, dtype), seed=1)
    (got,) = torch.autograd.grad(face.apply(rope, q, offset=7)[0], q, w)
    assert torch.equal(got, face.apply(rope, w, offset=7, inverse=True)[0])


def test_nothing_is_kept_but_positions(device):
    rope, where = make(device), on(device)
    q, positions = leaf(randn(where, Q_HEADS)), torch.tensor(POSITIONS, device=where)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        face.apply(rope, q, offset=1)
        assert kept == []
        face.apply(rope, q, positions=positions)
    assert [x.data_ptr() for x in kept] == [positions.data_ptr()]


def test_frozen_inputs_cost_nothing(device, monkeypatch):
    """No graph without a tensor that requires grad; no gradient computed of one that does not."""
    rope, where = make(device), on(device)
    q, k = randn(where, Q_HEADS), randn(where, K_HEADS)
    assert face.apply(rope, q, k)[0].grad_fn is None
    with torch.no_grad():
        assert face.apply(rope, leaf(q), k)[0].grad_fn is None
    calls, compute = [], pyrope.torch._outputs.compute
    monkeypatch.setattr(
        "pyrope.torch._functions.compute",
        lambda rope, layout, rows, options: calls.append(sorted(rows)) or compute(rope, layout, rows, options),
    )
    q = leaf(q)
    out, k_out = face.apply(rope, q, k)
    (out.sum() + k_out.sum()).backward()
    assert calls == [["k", "q"], ["q"]]


NORMS = {
    "before": {},
    "after": {"after": True},
    "across heads": {"across_heads": True, "weight_bias": 1.0, "eps": 1e-2},
    "across heads, after": {"across_heads": True, "after": True},
}


def norm64(x, weight, norm):
    """arXiv:1910.07467, equation 4, of [..., heads, dim]."""
    over = (-2, -1) if norm.across_heads else (-1,)
    return x / (x.square().mean(over, keepdim=True) + norm.eps).sqrt() * (weight + norm.weight_bias)


def normed64(x, weight, rope, positions):
    if rope.norm.after:
        y = norm64(turn64(x, rope, positions), weight, rope.norm)
    else:
        y = turn64(norm64(x, weight, rope.norm), rope, positions)
    return torch.where(torch.tensor(positions == -1, device=x.device)[:, None, None], x, y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "thd"])
@pytest.mark.parametrize("norm", NORMS)
def test_norm(device, norm, layout, form):
    """Of q, k and the weights, once and twice."""
    rope, where = make(device, fused=True, norm=pyrope.RMSNorm(**NORMS[norm])), on(device)
    call, positions = arguments(form, where)
    for name, heads in (("q", Q_HEADS), ("k", K_HEADS)):
        x = randn(where, heads)[:1] if layout == "thd" else randn(where, heads)
        shape = (heads, DIM) if rope.norm.across_heads else (DIM,)
        x, weight, g = leaf(x), leaf(torch.rand(shape) + 0.5).to(where), randn(where, heads, seed=1)[: len(x)]
        x, weight = leaf(x), leaf(weight)
        given = {"q": None, "k": None} | {name: laid_out(x, layout)}
        out = face.apply(rope, **given, **{f"{name}_weight": weight}, layout=layout, **call)["qk".index(name)]
        x64, weight64 = leaf(x.double()), leaf(weight.double())
        want = normed64(x64, weight64, rope, positions)
        out = out[None] if layout == "thd" else batch_first(out, layout)
        check(out, want, lengths(want, rope), 4 * ROTATION)
        first, first64 = (
            torch.autograd.grad((y * g).sum(), inputs, create_graph=True)
            for y, inputs in ((out, (x, weight)), (want, (x64, weight64)))
        )
        # Sums of float32 products, of at most BATCH * SEQ * heads * DIM terms, in any order; relative to the largest.
        for got, expected in zip(first, first64, strict=True):
            check(got, expected, expected.abs().max(), 64 * U)
        second, second64 = (
            torch.autograd.grad(sum(d.square().sum() for d in ds), inputs)
            for ds, inputs in ((first, (x, weight)), (first64, (x64, weight64)))
        )
        for got, expected in zip(second, second64, strict=True):
            check(got, expected, expected.abs().max(), 256 * U)


def test_norm_of_one(device):
    """The weight that is left out leaves its tensor without a norm, and without a weight's gradient."""
    rope, where = make(device, fused=True, norm=pyrope.RMSNorm()), on(device)
    q, k, weight = leaf(randn(where, Q_HEADS)), leaf(randn(where, K_HEADS)), leaf(torch.ones(DIM, device=where))
    _, k_out = face.apply(rope, q, k, q_weight=weight, offset=3)
    g = randn(where, K_HEADS, seed=1)
    gradients = torch.autograd.grad(k_out, (q, k, weight), g, allow_unused=True)
    want = leaf(k.double())
    turn64(want, rope, np.arange(3, 3 + SEQ)).backward(g.double())
    check(gradients[1], want.grad, lengths(g, rope))
    assert gradients[2] is None or not gradients[2].any()


def test_values_pass(device):
    """v and q_nope, which are stored as they are, pass their gradients on."""
    rope, where = make(device, fused=True, q_nope_dim=DIM), on(device)
    q, v, nope = (leaf(randn(where, heads)) for heads in (Q_HEADS, K_HEADS, Q_HEADS))
    _, _, v_out, nope_out = face.apply(rope, q, v=v, q_nope=nope)
    w = randn(where, K_HEADS, seed=1)
    ((v_out * w).sum() + nope_out.sum()).backward()
    assert torch.equal(v.grad, w) and torch.equal(nope.grad, torch.ones_like(nope))


@pytest.mark.parametrize("fused", [False, True])
def test_autocast(device, fused):
    """Behind a layer that autocast runs in bfloat16 the rotation is bfloat16's; weights stay float32."""
    where = on(device)
    options = {"fused": True, "norm": pyrope.RMSNorm()} if fused else {}
    rotary = face.RotaryEmbedding(make(device, **options)).to(where)
    layer = torch.nn.Linear(DIM, Q_HEADS * DIM).to(where)
    x = torch.randn(BATCH, SEQ, DIM, device=where)
    with torch.autocast(where, torch.bfloat16):
        q = layer(x).view(BATCH, SEQ, Q_HEADS, DIM)
        out, _ = rotary(q, offset=2)
    assert q.dtype == out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().sum() > 0
    if fused:
        assert rotary.q_weight.grad.dtype == torch.float32 and rotary.q_weight.grad.abs().sum() > 0


def test_transforms(device):
    """torch.func: a map over a batch of calls, gradients, and both."""
    rope, where = make(device), on(device)
    q, k = randn(where, Q_HEADS), randn(where, K_HEADS)
    positions = torch.tensor([POSITIONS, POSITIONS[::-1]], device=where)

    def turn(q, k, positions):
        return face.apply(rope, q, k, positions=positions, layout="thd")

    want = face.apply(rope, q, k, positions=positions)
    got = torch.func.vmap(turn)(q, k, positions)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    got = torch.func.vmap(turn, in_dims=(2, None, None), out_dims=1)(q.movedim(0, 2), k[0], positions[0])
    assert torch.equal(got[0][:, 1], turn(q[1], k[0], positions[0])[0]) and torch.equal(
        got[1][:, 1], turn(q[1], k[0], positions[0])[1]
    )

    def loss(q, k, positions):
        return turn(q, k, positions)[0].square().sum()

    got = torch.func.vmap(torch.func.grad(loss))(q, k, positions)
    check(got, 2 * q.double(), 2 * lengths(q, rope), 4 * ROTATION)  # a rotation keeps lengths
    with pytest.raises(RuntimeError, match=r"^torch\.func\.vmap: not over a call that writes"):
        torch.func.vmap(lambda q: face.apply_(rope, q, layout="thd"))(q)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pairing", ["neox", "gptj"])
def test_pairs_laid_out_otherwise(device, pairing, form):
    """The gradient comes in the output's layout and goes back to the input's."""
    other = "neox" if pairing == "gptj" else "gptj"
    rope = make(device, fused=True, layout=pairing, out_layout=other)
    where = on(device)
    call, _ = arguments(form, where)
    if form == "positions":
        call["positions"] = call["positions"].clamp(min=0)  # what is left alone is not laid out either
    q, weight = leaf(randn(where, Q_HEADS)), randn(where, Q_HEADS, seed=1)
    order = torch.arange(DIM, device=where).view(2, -1).T.ravel() if other == "gptj" else (
        torch.arange(DIM, device=where).view(-1, 2).T.ravel())  # fmt: skip
    out, _ = face.apply(rope, q, **call)
    plain, _ = face.apply(make(device, layout=pairing), q, **call)
    assert torch.equal(out, plain[..., order])
    (out * weight).sum().backward()
    got, q.grad = q.grad, None
    (plain * weight[..., order.argsort()]).sum().backward()
    assert torch.equal(got, q.grad)


def test_a_norm_without_a_rotation(device):
    rope, where = make(device, fused=True, rotary_dim=0, norm=pyrope.RMSNorm(eps=1e-5)), on(device)
    q, weight = leaf(randn(where, Q_HEADS)), leaf(torch.rand(DIM, device=where))
    ids = torch.tensor(POSITIONS, device=where)
    out, _ = face.apply(rope, q, q_weight=weight, positions=ids)
    y, w = leaf(q.double()), leaf(weight.double())
    want = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * w
    want = torch.where((ids == -1)[:, None, None], y, want)
    check(out, want, want.abs() + 1, 1e-6)
    out.square().sum().backward()
    want.square().sum().backward()
    check(q.grad, y.grad, y.grad.abs() + 10, 1e-5)
    check(weight.grad, w.grad, w.grad.abs() + 10, 1e-5)


@pytest.mark.parametrize("options", [{}, {"after": True}, {"across_heads": True}], ids=["before", "after", "across"])
def test_norm_of_k_of_another_dtype(device, options):
    """The gradients of a Rope that has k alone, of its dtype."""
    where, norm = on(device), pyrope.RMSNorm(**options)
    both = make(device, "bfloat16", fused=True, k_dtype="float16", norm=norm)
    alone = make(device, "float16", fused=True, num_q_heads=0, norm=norm)
    heads = K_HEADS if "across_heads" in options else 1
    q, k = randn(where, Q_HEADS, torch.bfloat16), leaf(randn(where, K_HEADS, torch.float16))
    weight = leaf(randn(where, heads, torch.float16)[0, 0].flatten())
    positions = {"positions": torch.tensor(POSITIONS, device=where)}
    found = []
    for rope, first in ((both, q), (alone, None)):
        out = face.apply(rope, first, k, k_weight=weight, **positions)[1]
        found.append(torch.autograd.grad(out.float().square().sum(), (k, weight)))
    for got, want in zip(*found, strict=True):
        assert got.dtype == torch.float16 and got.any() and torch.equal(got, want)
