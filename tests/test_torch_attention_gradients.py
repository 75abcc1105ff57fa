"""Gradients of pyrope.torch.attention against torch's own, eager, compiled, recomputed and under autocast."""

import pytest

from kit.memory import real_device
from kit.torch_tensors import bhsd, require_torch

torch = require_torch()

import pyrope  # noqa: E402
import pyrope.torch  # noqa: E402

# Of a module of torch 2.11, as it is imported with inductor.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

ATOL = 5e-6  # of float32 gradients of sums of 20 products below 4
LETTERS = {"b": 3, "s": 20, "t": 20, "d": 64}


def tensors(layout, tokens=20, dtype=torch.float32):
    torch.manual_seed(0)
    sizes = LETTERS | {"s": tokens, "t": tokens}
    shapes = ([n if letter == "h" else sizes[letter] for letter in layout] for n in (4, 2, 2))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def attention_of(dtype="float32", **options):
    rope = pyrope.Rope(64, 4, 2, dtype=dtype, device="cpu")
    return pyrope.RopeAttention(rope, **options)


def by_torch(attention, q, k, v, layout, sinks=None, positions=None, causal=True):
    """In [batch, heads, seq, head_dim], by torch's autograd, its rotation pyrope's, which has tests of its own."""
    q, k = pyrope.torch.apply(attention.rope, q, k, layout=layout, positions=positions)
    q, k, v = (bhsd(x, layout) for x in (q, k, v))
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)), -1)
    return scores.softmax(-1)[..., : k.shape[2]] @ v


def gradients(out, inputs):
    """Of a sum with weights that are the same in every layout."""
    torch.manual_seed(1)
    return torch.autograd.grad((out * torch.randn(out.shape)).sum(), inputs)


def check(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ATOL)


@pytest.mark.parametrize("layout", ["bshd", "sbhd", "bhsd", "thd"])
@pytest.mark.parametrize("form", ["causal", "full", "sinks", "positions"])
def test_layouts(layout, form):
    q, k, v = inputs = tensors(layout)
    attention, options = attention_of(causal=form != "full"), {}
    if form == "sinks":
        options["sinks"] = torch.randn(4, requires_grad=True)
        inputs = [*inputs, options["sinks"]]
    elif form == "positions":
        options["positions"] = torch.randint(0, 5000, (20,) if layout == "thd" else (3, 20))
    out = bhsd(pyrope.torch.attention(attention, q, k, v, layout=layout, **options), layout)
    want = by_torch(attention, q, k, v, layout, causal=form != "full", **options)
    check(gradients(out, inputs), gradients(want, inputs))


def test_a_sum():
    """Whose gradient is one number, broadcast."""
    q, k, v = inputs = tensors("bhsd")
    attention = attention_of(causal=True)
    got = torch.autograd.grad(pyrope.torch.attention(attention, q, k, v, layout="bhsd").sum(), inputs)
    check(got, torch.autograd.grad(by_torch(attention, q, k, v, "bhsd").sum(), inputs))


def test_ragged():
    q, k, v = inputs = tensors("thd")
    indptr = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    attention = attention_of(causal=True)
    out = pyrope.torch.attention(attention, q, k, v, layout="thd", q_indptr=indptr, max_q_tokens=13)
    weights = torch.randn(out.shape)
    got = torch.autograd.grad((out * weights).sum(), inputs)
    for begin, end in ((0, 7), (7, 20)):
        rows = [x[begin:end] for x in inputs]
        one = pyrope.torch.attention(attention, *rows, layout="thd")
        for a, b in zip(got, torch.autograd.grad((one * weights[begin:end]).sum(), rows), strict=True):
            assert torch.equal(a[begin:end], b)


def test_rotated_already():
    """The gradients of q and k as they are given, whether both or one are rotated."""
    q, k, v = tensors("bshd")
    attention = attention_of(causal=True)
    out = pyrope.torch.attention(attention, q, k, v)
    want = gradients(out, (q, k, v))
    turned = pyrope.torch.apply(attention.rope, q, k)
    for options in ({"q_rotated": True, "k_rotated": True}, {"k_rotated": True}, {"q_rotated": True}):
        pair = [x if f"{name}_rotated" in options else y for name, x, y in zip("qk", turned, (q, k), strict=True)]
        pair = [x.detach().requires_grad_() for x in pair]
        got = gradients(pyrope.torch.attention(attention, *pair, v, **options), (*pair, v))
        for name, a, b in zip("qkv", got, want, strict=True):
            if f"{name}_rotated" in options:
                a = pyrope.torch.apply(attention.rope, a, inverse=True)[0] if name == "q" else pyrope.torch.apply(
                    attention.rope, None, a, inverse=True)[1]  # fmt: skip
            assert torch.equal(a, b), name


def test_what_is_kept():
    """q and k rotated, in place of themselves."""
    q, k, v = tensors("bshd")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        out, lse = pyrope.torch.attention(attention_of(), q, k, v, return_lse=True)
    assert q.data_ptr() not in kept and k.data_ptr() not in kept
    assert len(kept) == 5 and {v.data_ptr(), out.data_ptr(), lse.data_ptr()} < set(kept)
    with torch.no_grad():
        assert pyrope.torch.attention(attention_of(), q, k, v).grad_fn is None


@pytest.mark.parametrize("sinks", [False, True])
def test_compile(fresh_compiler, sinks):
    attention = attention_of(causal=True)
    given = torch.randn(4, requires_grad=True) if sinks else None

    def function(q, k, v):
        return pyrope.torch.attention(attention, q * 2, k, v, layout="bhsd", sinks=given) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (20, 31):
        q, k, v = inputs = tensors("bhsd", tokens)
        inputs = [*inputs, given] if sinks else inputs
        for a, b in zip(gradients(compiled(q, k, v), inputs), gradients(function(q, k, v), inputs), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    """Recomputed activations have the same bits."""
    from torch.utils.checkpoint import checkpoint

    q, k, v = inputs = tensors("bshd")

    def function(q, k, v):
        return pyrope.torch.attention(attention_of(causal=True), q, k, v)

    # Reentrant checkpointing takes backward() alone.
    results = []
    for out in (function(q, k, v), checkpoint(function, q, k, v, use_reentrant=reentrant)):
        out.square().sum().backward()
        results.append([x.grad for x in inputs])
        for x in inputs:
            x.grad = None
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_autocast():
    """Under autocast a projection's results are bfloat16, and so is the attention; gradients come back as float32."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 20, 64), torch.randn(8 * 64, 64, requires_grad=True)
    attention = attention_of("bfloat16", causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = torch.nn.functional.linear(x, weight / 8).unflatten(-1, (8, 64)).split((4, 2, 2), 2)
        out = pyrope.torch.attention(attention, q, k, v)
    assert out.dtype == torch.bfloat16
    (got,) = gradients(out.float(), (weight,))
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = torch.nn.functional.linear(x, weight / 8).unflatten(-1, (8, 64)).split((4, 2, 2), 2)
    want_out = by_torch(attention_of(causal=True), q.float(), k.float(), v.float(), "bshd").transpose(1, 2)
    (want,) = gradients(want_out, (weight,))
    assert got.dtype == torch.float32
    assert (got - want).norm() < 2.0**-6 * want.norm()  # roundings to bfloat16, of 2^-9 each


def test_sinks_alone():
    """A gradient of nothing but sinks."""
    q, k, v = (x.detach() for x in tensors("bshd"))
    sinks = torch.randn(4, requires_grad=True)
    attention = attention_of(causal=True)
    out = pyrope.torch.attention(attention, q, k, v, sinks=sinks)
    want = by_torch(attention, q, k, v, "bshd", sinks).transpose(1, 2)
    check(gradients(out, (sinks,)), gradients(want, (sinks,)))


@pytest.mark.parametrize("parts", [("out", "lse"), ("lse",)])
@pytest.mark.parametrize("compiled", [False, True])
def test_logarithms(parts, compiled, fresh_compiler):
    """They are results that have a gradient too."""
    q, k, v = inputs = tensors("bshd")
    attention = attention_of(causal=True)

    def function(q, k, v):
        return dict(zip(("out", "lse"), pyrope.torch.attention(attention, q, k, v, return_lse=True), strict=True))

    results = torch.compile(function, fullgraph=True, backend="aot_eager")(q, k, v) if compiled else function(q, k, v)
    turned_q, turned_k = (x.transpose(1, 2) for x in pyrope.torch.apply(attention.rope, q, k))
    scores = turned_q @ turned_k.repeat_interleave(2, 1).transpose(-1, -2) / 8
    want = {"out": by_torch(attention, q, k, v, "bshd").transpose(1, 2),
            "lse": scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf).logsumexp(-1)}  # fmt: skip
    weights = {name: torch.randn(x.shape) for name, x in want.items()}
    got, expected = (
        torch.autograd.grad(sum((x[name] * weights[name]).sum() for name in parts), inputs, allow_unused=True)
        for x in (results, want)
    )
    check(got[:2], expected[:2])
    assert (got[2] == 0).all() if parts == ("lse",) else torch.allclose(got[2], expected[2], atol=ATOL)


@real_device
@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_on_a_gpu(heads, compiled, fresh_compiler):
    """In bfloat16 against torch in float32, as far as roundings go; the same bits with deterministic algorithms."""
    torch.manual_seed(0)
    rope = pyrope.Rope(128, *heads, dtype="bfloat16", device="cuda")
    attention = pyrope.RopeAttention(rope, causal=True)
    inputs = [torch.randn(2, 300, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
              for n in (heads[0], heads[1], heads[1])]  # fmt: skip
    weights = torch.randn(2, 300, heads[0], 128, device="cuda")

    def function(q, k, v):
        return pyrope.torch.attention(attention, q, k, v)

    call = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    got = torch.autograd.grad((call(*inputs).float() * weights).sum(), inputs)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    turned = pyrope.torch.apply(pyrope.Rope(128, *heads, dtype="float32", device="cuda"), *wide[:2])
    rows = [x.transpose(1, 2) for x in (*turned, wide[2])]
    out = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True).transpose(1, 2)
    for x, y in zip(got, torch.autograd.grad((out * weights).sum(), wide), strict=True):
        assert (x.float() - y).norm() < 2.0**-6 * y.norm()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad((call(*inputs).float() * weights).sum(), inputs) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first, second))


def test_refusals():
    q, k, v = tensors("bshd")
    attention = attention_of()
    (first,) = torch.autograd.grad(pyrope.torch.attention(attention, q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    spec = pyrope.torch._specs.attention_spec_of(attention)
    values = (None, None, None, None, 0, 0, 0, False, False)
    out, *_ = torch.ops.pyrope.attention.default(q, k, v, *values, False, "bshd", spec)
    with pytest.raises(RuntimeError, match="keeps: False, must be True"):
        out.sum().backward()
    out, *_ = torch.ops.pyrope.attention.default(q, k, v, *values, True, "bshd", spec)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention: has no second derivative"):
        first.sum().backward()
