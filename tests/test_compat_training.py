"""pyrope.compat.transformer_engine, megatron and liger: names and arguments, results in float64, errors."""

import inspect

import numpy as np
import pytest

from kit import reference
from kit.torch_tensors import array_of, on, randn, require_torch

torch = require_torch()
import pyrope.compat.liger as liger  # noqa: E402
import pyrope.compat.megatron as megatron  # noqa: E402
import pyrope.compat.transformer_engine as engine  # noqa: E402

BATCH, SEQ, HEADS, DIM, ROWS = 2, 6, 3, 64, 32

SIGNATURES = {  # of TransformerEngine d0067d0d, megatron-core 0.16.1 and Liger-Kernel ead96b61
    engine.apply_rotary_pos_emb: "t, freqs, tensor_format='sbhd', start_positions=None, interleaved=False, "
    "fused=False, cu_seqlens=None, cp_size=1, cp_rank=0",
    engine.apply_fused_qkv_rotary_pos_emb: "qkv, q_freqs, k_freqs, qkv_split_arg_list, tensor_format='sbhd', "
    "start_positions=None, interleaved=False, cu_seqlens=None, cp_size=1, cp_rank=0",
    engine.RotaryPositionEmbedding: "dim, rotary_percent=1.0, seq_len_interpolation_factor=None, "
    "pretrained_max_position_embeddings=None, rotary_base=10000.0, interleaved=False",
    engine.RotaryPositionEmbedding.forward: "self, max_seq_len, offset=0",
    megatron.fused_apply_mla_rope_for_q: "t, cos, sin, qk_head_dim, emb_dim, cu_seqlens_q=None, cp_rank=0, cp_size=1, "
    "rotary_interleaved=False",
    megatron.fused_apply_mla_rope_for_kv: "kv, k_pos_emb, cos, sin, emb_dim, k_dim, v_dim, cu_seqlens_kv=None, "
    "cp_rank=0, cp_size=1, rotary_interleaved=False",
    liger.liger_rotary_pos_emb: "q, k, cos, sin, position_ids=None, unsqueeze_dim=1",
    liger.liger_rotary_pos_emb_vision: "q, k, cos, sin",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_signatures(function):
    parameters = inspect.signature(function).parameters.values()
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == SIGNATURES[function]


def rotated(x, angles, pairing, conjugate=False, first=0, magnitudes=None):
    """Float64 of x [.., heads, dim] by angles [.., pairs] of its tokens, with the error of float32; NaN: as it is."""
    x, angles = array_of(x), np.asarray(angles, np.float64)
    angles = np.broadcast_to(angles, (*x.shape[:-2], angles.shape[-1])).reshape(-1, angles.shape[-1])
    still = np.isnan(angles)
    cos, sin = np.where(still, 1, np.cos(angles)), np.where(still, 0, np.sin(angles))
    flat = reference.exact(x.reshape(-1, *x.shape[-2:]))
    value = reference.rotate(flat, cos, -sin if conjugate else sin, pairing, 2 * angles.shape[-1], first)
    return tuple(part.reshape(x.shape) for part in value)


def check(got, value, dtype="float32"):
    """float32 tables besides: an ulp of cos and sin."""
    error = value[1] + np.abs(value[0]) * 2.0**-23 + 2.0**-22
    good = reference.within(array_of(got), (value[0], error), dtype)
    assert good.all(), (array_of(got)[~good][:4], value[0][~good][:4])


def freqs_of(device, rotary_dim, interleaved):
    """Angles that are no multiples of anything: positions may be fractions."""
    torch.manual_seed(rotary_dim)
    angles = torch.rand(ROWS, rotary_dim // 2) * 20 - 10
    both = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    return both[:, None, None].to(on(device)), angles.numpy()


def strided(device, shape, strides, dtype="float32"):
    """In memory with more around it, and with other orders of dimensions."""
    if strides == "contiguous":
        return randn(device, *shape, dtype=dtype)
    x = randn(device, *shape[:-1], shape[-1] + 3, dtype=dtype)[..., 1 : shape[-1] + 1]
    return (
        x if strides == "packed" else randn(device, *reversed(shape), dtype=dtype).permute(*reversed(range(len(shape))))
    )


CASES = [  # format, rotary_dim, interleaved, start_positions, cp, strides, dtype
    ("sbhd", 64, False, False, None, "contiguous", "float32"),
    ("sbhd", 32, True, False, None, "packed", "bfloat16"),
    ("bshd", 32, False, True, None, "reversed", "float16"),
    ("bshd", 64, True, False, (4, 2), "packed", "float32"),
    ("sbhd", 64, True, True, None, "packed", "float32"),
    ("sbhd", 32, False, False, (2, 1), "reversed", "bfloat16"),
    ("thd", 64, True, False, None, "packed", "float32"),
    ("thd", 32, False, True, None, "contiguous", "bfloat16"),
    ("thd", 64, False, False, (2, 0), "reversed", "float32"),
    ("thd", 32, True, False, (2, 1), "contiguous", "float16"),
]


def zigzag(length, size, rank):
    """Positions of a rank: of 2 * size chunks its own and that from the end."""
    n = length // 2
    return np.concatenate([np.arange(n) + rank * n, np.arange(n) + (2 * size - 1 - rank) * n])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_transformer_engine(device, case):
    tensor_format, rotary_dim, interleaved, started, cp, strides, dtype = case
    size, rank = cp or (1, 0)
    freqs, angles = freqs_of(device, rotary_dim, interleaved)
    options = {"tensor_format": tensor_format, "interleaved": interleaved, "cp_size": size, "cp_rank": rank}
    starts = [3, 0, 7] if tensor_format == "thd" else [3, 0]
    if started:
        options["start_positions"] = torch.tensor(starts, device=on(device), dtype=torch.int32)
    starts = starts if started else [0] * 3
    if tensor_format == "thd":
        lengths = [4, 0, 6]  # of this rank; two tokens more are in no sequence
        ends = np.cumsum([0, *lengths]) * size
        options["cu_seqlens"] = torch.tensor(ends, device=on(device), dtype=torch.int32)
        shape = (sum(lengths) + 2, HEADS, DIM)
        rows = [zigzag(n, size, rank) if cp else start + np.arange(n) for n, start in zip(lengths, starts, strict=True)]
        wanted = np.full((shape[0], rotary_dim // 2), np.nan)
        wanted[: sum(lengths)] = angles[np.concatenate(rows)]
    else:
        rows = zigzag(SEQ, size, rank) if cp else np.array(starts[:BATCH])[:, None] + np.arange(SEQ)
        wanted = np.broadcast_to(angles[rows], (BATCH, SEQ, rotary_dim // 2))
        wanted = wanted if tensor_format == "bshd" else wanted.swapaxes(0, 1)
        shape = (BATCH, SEQ, HEADS, DIM) if tensor_format == "bshd" else (SEQ, BATCH, HEADS, DIM)
    t = strided(device, shape, strides, dtype).detach().requires_grad_()
    before, pairing = t.detach().clone(), "gptj" if interleaved else "neox"
    out = engine.apply_rotary_pos_emb(t, freqs, **options)
    assert out.is_contiguous() and torch.equal(t, before)
    check(out, rotated(t, wanted, pairing), dtype)
    g = randn(device, *shape, dtype=dtype)
    (grad,) = torch.autograd.grad(out, t, g)
    check(grad, rotated(g, wanted, pairing, conjugate=True), dtype)
    assert torch.equal(engine.apply_rotary_pos_emb(t, freqs, fused=True, **options), out)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("tensor_format", ["sbhd", "bshd"])
def test_fused_qkv(device, tensor_format, same):
    """Two heads of q for each of k; values as wide as they like."""
    shape = (BATCH, SEQ) if tensor_format == "bshd" else (SEQ, BATCH)
    qkv = randn(device, *shape, HEADS, 2 * DIM + DIM + 8).requires_grad_()
    q_freqs, _ = freqs_of(device, 32, False)
    k_freqs = q_freqs if same else freqs_of(device, DIM, False)[0]
    outs = engine.apply_fused_qkv_rotary_pos_emb(qkv, q_freqs, k_freqs, [2 * DIM, DIM, 8], tensor_format)
    q, k, v = qkv.split([2 * DIM, DIM, 8], -1)
    q = q.reshape(*shape, 2 * HEADS, DIM)
    wants = [engine.apply_rotary_pos_emb(x, f, tensor_format) for x, f in ((q, q_freqs), (k, k_freqs))]
    assert all(out.is_contiguous() for out in outs)
    for out, want in zip(outs, [*wants, v], strict=True):
        assert torch.equal(out, want)
    weights = [torch.randn_like(out) for out in outs]
    grads = [torch.autograd.grad(list(results), qkv, weights) for results in (outs, (*wants, v))]
    assert torch.equal(grads[0][0], grads[1][0])


def test_transformer_engine_module():
    """Angles rounded once, of positions that are divided: by the factor, or by more in long sequences."""
    module = engine.RotaryPositionEmbedding(64, 0.5, 4, 8, rotary_base=5e5, interleaved=True)
    assert list(module.state_dict()) == ["inv_freq"] and module.inv_freq.shape == (16,)
    frequencies = np.array(reference.base_frequencies(32, 5e5), np.float64)
    for length, offset, factor in ((6, 2, 4), (32, 0, 4), (64, 5, 8)):
        angles = module(length, offset)
        assert angles.shape == (length, 1, 1, 32) and angles.dtype == torch.float32
        want = np.outer((offset + np.arange(length)) / factor, frequencies)
        np.testing.assert_allclose(array_of(angles)[:, 0, 0, ::2], want, rtol=2.0**-24, atol=0)
        assert torch.equal(angles[..., ::2], angles[..., 1::2])
    halves = engine.RotaryPositionEmbedding(32)(5, 1000)[:, 0, 0]
    assert torch.equal(halves[:, :16], halves[:, 16:]) and float(halves[1, 0]) == 1001


def mla_tables(device):
    torch.manual_seed(3)
    angles = torch.rand(ROWS, 16) * 20 - 10
    return [t.repeat(1, 2)[:, None, None].to(on(device)) for t in (angles.cos(), angles.sin())], angles.numpy()


def halves(x):
    return np.concatenate((x[..., ::2], x[..., 1::2]), -1)


RAGGED = ([4, 0, 6], [None, (2, 1)])


@pytest.mark.parametrize("cp", RAGGED[1])
@pytest.mark.parametrize("ragged", [False, True])
def test_megatron(device, ragged, cp):
    if cp and not ragged:
        cp = None
    size, rank = cp or (1, 0)
    (cos, sin), angles = mla_tables(device)
    options = {"cp_rank": rank, "cp_size": size}
    lead = (SEQ, BATCH)
    wanted = angles[np.arange(SEQ)][:, None]
    cu_seqlens = None
    if ragged:
        rows = [zigzag(n, size, rank) if cp else np.arange(n) for n in RAGGED[0]]
        wanted, lead = angles[np.concatenate(rows)], (sum(RAGGED[0]),)
        cu_seqlens = torch.tensor(np.cumsum([0, *RAGGED[0]]) * size, device=on(device), dtype=torch.int32)
    t = randn(device, *lead, HEADS, 24 + 32).requires_grad_()
    before, g = t.detach().clone(), randn(device, *lead, HEADS, 24 + 32)
    out = megatron.fused_apply_mla_rope_for_q(t, cos, sin, 24, 32, cu_seqlens, **options)
    assert out.data_ptr() == t.data_ptr() and torch.equal(out[..., :24], before[..., :24])
    check(out[..., 24:], tuple(map(halves, rotated(before[..., 24:], wanted, "gptj"))))
    (grad,) = torch.autograd.grad(out, t, g)
    assert torch.equal(grad[..., :24], g[..., :24])
    value = rotated(g[..., 24:], wanted, "neox", conjugate=True)
    check(grad[..., 24:], [np.stack(np.split(part, 2, -1), -1).reshape(part.shape) for part in value])

    kv, k_pos_emb = (randn(device, *lead, h, d).requires_grad_() for h, d in ((HEADS, 24 + 40), (1, 32)))
    key, value = megatron.fused_apply_mla_rope_for_kv(kv, k_pos_emb, cos, sin, 32, 24, 40, cu_seqlens, **options)
    assert key.is_contiguous() and value.is_contiguous()
    assert torch.equal(key[..., :24], kv[..., :24]) and torch.equal(value, kv[..., 24:])
    turned = tuple(map(halves, rotated(k_pos_emb, wanted, "gptj")))
    check(key[..., 24:], tuple(np.broadcast_to(part, key[..., 24:].shape) for part in turned))
    whole = torch.autograd.grad(key, k_pos_emb, torch.ones_like(key))[0]
    one = torch.autograd.grad(
        megatron.fused_apply_mla_rope_for_kv(kv[..., :1, :], k_pos_emb, cos, sin, 32, 24, 40, cu_seqlens, **options)[0],
        k_pos_emb, torch.ones(*lead, 1, 56, device=on(device)),
    )[0]  # fmt: skip
    torch.testing.assert_close(whole, HEADS * one)


def test_liger(device):
    torch.manual_seed(0)
    angles = torch.rand(BATCH, SEQ, DIM // 2) * 20 - 10
    cos, sin = (torch.cat((t, t), -1).to(on(device)) for t in (angles.cos(), angles.sin()))
    q, k = (randn(device, BATCH, h, SEQ, DIM).requires_grad_() for h in (HEADS, 1))
    outs = liger.liger_rotary_pos_emb(q, k, cos.requires_grad_(), sin)
    for x, out in zip((q, k), outs, strict=True):
        assert out.transpose(1, 2).is_contiguous()
        check(out.transpose(1, 2), rotated(x.transpose(1, 2), angles, "neox"))
        g = randn(device, *out.shape)
        (grad,) = torch.autograd.grad(out, x, g, retain_graph=True)
        check(grad.transpose(1, 2), rotated(g.transpose(1, 2), angles, "neox", conjugate=True))
    one = [t[:1, :1].expand(BATCH, -1, -1) for t in (cos, sin)]  # rows of stride 0
    first = liger.liger_rotary_pos_emb(q[:, :, :1], k[:, :, :1], *one)
    assert torch.equal(first[0][0], outs[0][0, :, :1])
    none = liger.liger_rotary_pos_emb(q[:, :, :0], k[:, :, :0], cos[:, :0], sin[:, :0])
    assert [x.shape for x in none] == [(BATCH, HEADS, 0, DIM), (BATCH, 1, 0, DIM)]
    flat = q[0].transpose(0, 1)
    vision = liger.liger_rotary_pos_emb_vision(flat, flat, cos[0], sin[0])
    assert vision[0].is_contiguous() and torch.equal(vision[0], outs[0][0].transpose(0, 1))


def test_errors(device):
    t, (freqs, _) = randn(device, SEQ, BATCH, HEADS, DIM), freqs_of(device, DIM, False)
    starts = torch.zeros(BATCH, device=t.device, dtype=torch.int32)
    for error, text, arguments, options in (
        (AssertionError, "CP SIZE > 1 is not supported", (t, freqs, "sbhd", starts), {"cp_size": 2}),
        (AssertionError, "cu_seqlens must not be None", (t[0], freqs, "thd"), {}),
        (AssertionError, "only supported up to 32 sequence length", (t.repeat(6, 1, 1, 1), freqs), {}),
        (AssertionError, "only supported up to 32 sequence length", (t, freqs), {"cp_size": 6}),
        (ValueError, "Unsupported tensor_format: bhsd", (t, freqs, "bhsd"), {}),
        (AssertionError, "Unsupported tensor_format: bhsd", (t, freqs, "bhsd"), {"fused": True}),
        (ValueError, r"freqs: shape \(32, 64\)", (t, freqs[:, 0, 0]), {}),
        (ValueError, r"freqs: shape \(32, 1, 1, 64\), must be \[s2, 1, 1, at most 32\]", (t[..., :32], freqs), {}),
    ):
        with pytest.raises(error, match=text):
            engine.apply_rotary_pos_emb(*arguments, **options)
    with pytest.raises(AssertionError, match="Unsupported tensor_format: thd"):
        engine.apply_fused_qkv_rotary_pos_emb(t, freqs, freqs, [32, 16, 16], "thd")
    (cos, sin), _ = mla_tables(device)
    before = t.clone()
    for q_dim, emb_dim, interleaved, x in ((32, 32, True, t), (24, 32, False, t), (62, 2, False, t)):
        with pytest.raises(AssertionError):
            megatron.fused_apply_mla_rope_for_q(x, cos, sin, q_dim, emb_dim, rotary_interleaved=interleaved)
    with pytest.raises(AssertionError):
        megatron.fused_apply_mla_rope_for_q(t.transpose(-1, -2), cos, sin, 0, HEADS + 1)
    assert torch.equal(t, before)
    with pytest.raises(ValueError, match="must have a row for each of 2 x 6 tokens"):
        liger.liger_rotary_pos_emb(*[t.permute(1, 2, 0, 3)] * 2, *[torch.ones(1, 5, DIM, device=t.device)] * 2)


# Of dynamo's own making; the second of a module of torch 2.11, as dynamo imports it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["thd of two ranks", "start_positions", "qkv", "megatron"])
def test_compiled_in_one_graph(name):
    ((cos, sin), _), (freqs, _) = mla_tables("cpu"), freqs_of("cpu", 32, False)
    cu_seqlens, starts = torch.tensor([0, 4, 12], dtype=torch.int32), torch.tensor([3, 0])
    call = {
        "thd of two ranks": lambda t: engine.apply_rotary_pos_emb(
            t[:, 0], freqs, "thd", cu_seqlens=cu_seqlens, cp_size=2
        ),
        "start_positions": lambda t: engine.apply_rotary_pos_emb(t, freqs, "sbhd", starts),
        "qkv": lambda t: engine.apply_fused_qkv_rotary_pos_emb(t[:, :, :2], freqs, freqs, [16, 32, 16])[0],
        "megatron": lambda t: megatron.fused_apply_mla_rope_for_q(t * 1, cos, sin, 32, 32),
    }[name]
    torch._dynamo.reset()
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        t = randn("cpu", SEQ, BATCH, HEADS, DIM).requires_grad_()
        out = function(t)
        out.square().sum().backward()
        results.append((out, t.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
