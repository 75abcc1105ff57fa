"""pyrope.torch.attention against torch's own attention, in every layout, eager and compiled."""

import pytest

from kit.torch_tensors import bhsd, require_torch

torch = require_torch()

import pyrope  # noqa: E402
import pyrope.torch  # noqa: E402

# Of a module of torch 2.11, as it is imported with inductor.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

ATOL = 2e-6  # of float32 results below 4: sums of 64 products and of 20 weights, in two orders


def tensors(layout, tokens=20, heads=(4, 2, 2), batch=3, dim=64):
    torch.manual_seed(0)
    sizes = {"b": batch, "s": tokens, "t": tokens, "d": dim}
    return [torch.randn([n if letter == "h" else sizes[letter] for letter in layout]) for n in heads]


def attention_of(device="cpu", **options):
    rope = pyrope.Rope(64, 4, 2, dtype="float32", device=device)
    return pyrope.RopeAttention(rope, **options)


def expected(attention, q, k, v, layout, positions=None, **options):
    q, k = pyrope.torch.apply(attention.rope, q, k, layout=layout, positions=positions)
    q, k, v = (bhsd(x, layout) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)


@pytest.mark.parametrize("layout", ["bshd", "sbhd", "bhsd", "thd"])
@pytest.mark.parametrize("causal", [False, True])
def test_layouts(layout, causal):
    q, k, v = tensors(layout)
    attention = attention_of(causal=causal)
    out, lse = pyrope.torch.attention(attention, q, k, v, layout=layout, return_lse=True)
    assert out.shape == q.shape
    want = expected(attention, q, k, v, layout, is_causal=causal)
    torch.testing.assert_close(bhsd(out, layout), want, rtol=0, atol=ATOL)
    turned_q, turned_k = (bhsd(x, layout) for x in pyrope.torch.apply(attention.rope, q, k, layout=layout))
    scores = turned_q @ turned_k.repeat_interleave(2, 1).transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(lse if layout != "thd" else lse[None], scores.logsumexp(-1), rtol=0, atol=4e-6)


@pytest.mark.parametrize("layout", ["bshd", "sbhd", "bhsd"])
def test_positions(layout):
    q, k, v = tensors(layout)
    attention = attention_of()
    for positions in (torch.arange(20) * 3, torch.randint(0, 5000, (3, 20))):
        out = pyrope.torch.attention(attention, q, k, v, layout=layout, positions=positions)
        want = expected(attention, q, k, v, layout, positions)
        torch.testing.assert_close(bhsd(out, layout), want, rtol=0, atol=ATOL)


def test_ragged():
    q, k, v = tensors("thd")
    indptr = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    attention = attention_of(causal=True)
    out = pyrope.torch.attention(attention, q, k, v, layout="thd", q_indptr=indptr, max_q_tokens=13)
    for begin, end in ((0, 7), (7, 20)):
        one = pyrope.torch.attention(attention, *(x[begin:end] for x in (q, k, v)), layout="thd")
        assert torch.equal(out[begin:end], one)


def test_keys_of_a_cache():
    """A prompt, then a token more over its rotated keys: the last row of all at once."""
    q, k, v = tensors("bshd")
    attention = attention_of(causal=True)
    whole = pyrope.torch.attention(attention, q, k, v)
    keys = pyrope.torch.apply(attention.rope, None, k)[1]
    last = pyrope.torch.attention(attention, q[:, -1:], keys, v, k_rotated=True)
    assert torch.equal(last, whole[:, -1:])


def test_compile(fresh_compiler):
    attention = attention_of(causal=True)

    def function(q, k, v):
        return pyrope.torch.attention(attention, q * 2, k, v, layout="bhsd") + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (20, 31):
        q, k, v = tensors("bhsd", tokens)
        assert torch.equal(compiled(q, k, v), function(q, k, v))


def test_opcheck():
    q, k, v = tensors("bshd")
    spec = pyrope.torch._specs.attention_spec_of(attention_of(causal=True))
    values = (None, None, None, None, 0, 0, 0, False, False)
    torch.library.opcheck(torch.ops.pyrope.attention.default, (q, k, v, *values, False, "bshd", spec))
    q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    torch.library.opcheck(torch.ops.pyrope.attention.default, (q, k, v, *values, True, "bshd", spec))
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse, *kept = torch.ops.pyrope.attention.default(q, k, v, *values, True, "bshd", spec)
    for d_lse in (None, torch.ones_like(lse)):
        arguments = (torch.ones_like(out), d_lse, *kept, v, out, lse, *values, "bshd", spec)
        torch.library.opcheck(torch.ops.pyrope.attention_backward.default, arguments)


def test_refusals():
    q, k, v = tensors("bshd")
    attention = attention_of()
    for text, changed, error in (
        ("v: 3 dimensions", {"v": v[0]}, ValueError),
        ("layout: 'hsd', must be", {"layout": "hsd"}, ValueError),
        ("q: list, must be a torch.Tensor", {"q": [1]}, TypeError),
        ("q_indptr: only allowed with layout='thd'", {"q_indptr": torch.zeros(2, dtype=torch.int32)}, ValueError),
        ("q: dtype torch.float64, must be float32", {"q": q.double()}, TypeError),
    ):
        with pytest.raises(error, match=text), torch.no_grad():
            pyrope.torch.attention(**{"attention": attention, "q": q, "k": k, "v": v} | changed)
