"""pyrope.torch.apply and apply_: tensors in every layout against float64, and what a FusedRope adds."""

import numpy as np
import pytest

import pyrope
from kit.reference import DTYPES
from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import LAYOUTS, array_of, batch_first, check_rotated, laid_out, on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402

BATCH, SEQ = 2, 5
POSITIONS = np.array([[3, 0, -1, 2**31 - 1, 70001], [9, 8, 7, -1, 5]])


def randn(device, dtype, heads, batch=BATCH, seq=SEQ, dim=DIM):
    """[batch, seq, heads, dim]"""
    torch.manual_seed(heads)
    return torch.randn(batch, seq, heads, dim).to(device, getattr(torch, dtype))


def packed(device, dtype):
    """Views of q and k in one tensor of q, k and v."""
    qkv = randn(device, dtype, Q_HEADS + 2 * K_HEADS)
    return qkv[:, :, :Q_HEADS], qkv[:, :, Q_HEADS:-K_HEADS]


def apart(device, dtype):
    """Tokens whose batch and sequence do not fold."""
    q, k = (randn(device, dtype, heads, seq=SEQ + 1) for heads in (Q_HEADS, K_HEADS))
    return q[:, 1:], k[:, :-1]


PLACES = {
    "contiguous": lambda device, dtype: (randn(device, dtype, Q_HEADS), randn(device, dtype, K_HEADS)),
    "packed": packed,
    "apart": apart,
}


def tensors(place, layout, device, dtype):
    """q and k of a layout, either contiguous in it or views of what has another order."""
    name, _, order = place.partition(", ")
    pair = [laid_out(x, layout) for x in PLACES[name](device, dtype)]
    return [x.contiguous() for x in pair] if order else pair


ALL_PLACES = ("contiguous", "contiguous, in order", "packed", "apart")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ALL_PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, place, dtype):
    """Every sequence begins at the offset; out of place, inputs are left as they are; in place, gaps are."""
    rope, where = make(device, dtype), on(device)
    q, k = tensors(place, layout, where, dtype)
    before = q.clone(), k.clone()
    rows = np.tile(np.arange(1000, 1000 + SEQ), (BATCH, 1))
    outs = face.apply(rope, q, k, layout=layout, offset=1000)
    for x, out, old in zip((q, k), outs, before, strict=True):
        check_rotated(rope, out, old, layout, rows)
        assert torch.equal(x, old) and out.stride() == torch.empty_like(x).stride()
    base = q._base.clone() if q._base is not None else None
    assert face.apply_(rope, q, k, layout=layout, offset=1000)[0] is q
    assert torch.equal(q, outs[0]) and torch.equal(k, outs[1])
    if base is not None:
        touched = torch.zeros(base.shape, dtype=torch.bool, device=where)
        for x in (q, k) if k._base is q._base else (q,):
            torch.as_strided(touched, x.shape, x.stride(), x.storage_offset()).fill_(True)
        assert torch.equal(q._base[~touched], base[~touched])


POSITION_FORMS = {
    "[batch, seq]": lambda p: (p, p),
    "[tokens]": lambda p: (p.ravel(), p),
    "[seq]": lambda p: (p[0], np.tile(p[0], (BATCH, 1))),
    "[1, seq]": lambda p: (p[:1], np.tile(p[0], (BATCH, 1))),
    "[batch, 1]": lambda p: (p[:, :1], np.tile(p[:, :1], (1, SEQ))),
    "[1]": lambda p: (p[0, :1], np.full((BATCH, SEQ), p[0, 0])),
}


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("form", POSITION_FORMS)
@pytest.mark.parametrize("place", ["contiguous", "apart"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions(device, layout, place, form, index):
    """A token of position -1 is returned as it is."""
    rope = make(device)
    q, k = tensors(place, layout, on(device), "float32")
    ids, rows = POSITION_FORMS[form](POSITIONS)
    if form == "[tokens]" and layout == "sbhd":
        ids = np.ascontiguousarray(POSITIONS.T).ravel()  # in the order of the layout's dimensions
    ids = torch.from_numpy(np.array(ids, index)).to(q.device)
    outs = face.apply(rope, q, k, layout=layout, positions=ids)
    back = face.apply(rope, q, k, layout=layout, positions=ids, inverse=True)
    for x, out, inverse in zip((q, k), outs, back, strict=True):
        check_rotated(rope, out, x, layout, rows)
        check_rotated(rope, inverse, x, layout, rows, inverse=True)
    face.apply_(rope, q, k, layout=layout, positions=ids)
    assert torch.equal(q, outs[0]) and torch.equal(k, outs[1])


@pytest.mark.parametrize("flat", [False, True])
def test_one_sequence(device, flat):
    """[tokens, heads, head_dim] and [tokens, heads * head_dim], and ragged requests in them."""
    rope, tokens = make(device), 7
    q = randn(on(device), "float32", Q_HEADS, 1, tokens)[0]
    x = q.flatten(1) if flat else q
    (out, none) = face.apply(rope, x, layout="thd", offset=5)
    assert none is None and out.shape == x.shape
    check_rotated(rope, out.view(q.shape), q, "thd", np.arange(5, 5 + tokens))
    indptr, offsets = (torch.tensor(t, device=q.device) for t in ([0, 3, 6], [10, 20]))
    out, _ = face.apply(rope, x, layout="thd", indptr=indptr, offsets=offsets)
    check_rotated(rope, out.view(q.shape), q, "thd", [10, 11, 12, 20, 21, 22, -1])  # the last is outside


@pytest.mark.parametrize("which", ["q", "k"])
def test_one_tensor(device, which):
    rope = make(device)
    x = randn(on(device), "float32", {"q": Q_HEADS, "k": K_HEADS}[which])
    outs = face.apply(rope, **{"q": None, "k": None, which: x}, positions=torch.from_numpy(POSITIONS).to(x.device))
    out, other = outs if which == "q" else reversed(outs)
    assert other is None
    check_rotated(rope, out, x, "bshd", POSITIONS)


def test_elements_apart_and_broadcast(device):
    """Out of place, broadcast and non-contiguous elements are fine; in place, those apart are."""
    rope = make(device)
    one = randn(on(device), "float32", 1, 1)
    q = one.expand(BATCH, SEQ, Q_HEADS, DIM)
    k = randn(on(device), "float32", K_HEADS).transpose(2, 3).contiguous().transpose(2, 3)
    for x, out in zip((q, k), face.apply(rope, q, k), strict=True):
        check_rotated(rope, out, x, "bshd", np.tile(np.arange(SEQ), (BATCH, 1)))
    turned, _ = face.apply(rope, None, k)[1], face.apply_(rope, None, k)
    assert torch.equal(k, turned)


def test_values_a_token_of_sequences_apart(device):
    """Slots are those of the tokens in the layout's order, wherever the tokens are."""
    where = on(device)
    rope = make(device, fused=True, cache=pyrope.PagedCache(16, 1))
    k = randn(where, "float32", K_HEADS)
    slots = torch.randperm(BATCH * SEQ).to(where)
    caches = [torch.zeros(1, 16, K_HEADS, DIM, device=where) for _ in "ab"]
    face.apply(rope, None, laid_out(k, "bhsd").contiguous(), layout="bhsd", slots=slots, k_cache=caches[0], offset=3)
    face.apply(rope, None, k, slots=slots, k_cache=caches[1], offset=3)
    assert torch.equal(*caches) and caches[0].any()


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("seq", [0, 1])
def test_few_tokens(device, batch, seq):
    rope = make(device)
    q = randn(on(device), "float32", Q_HEADS, batch, seq)
    for layout in LAYOUTS:
        out, _ = face.apply(rope, laid_out(q, layout), layout=layout, offset=4)
        check_rotated(rope, out, laid_out(q, layout), layout, np.full((batch, seq), 4))


def test_empty_in_place(device):
    q = torch.empty(0, SEQ, Q_HEADS, DIM, device=on(device))
    assert face.apply_(make(device), q)[0].shape == q.shape


# ---- FusedRope: as the core has it on pointers, which its own tests compare with float64


def pointers(rope, **operands):
    """The core's own results in copies of tensors [tokens, ...] by name."""
    copies = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in operands.items()}
    at = {name: x.data_ptr() if isinstance(x, torch.Tensor) else x for name, x in copies.items()}
    if rope.device == "cuda":
        at["stream"] = torch.cuda.current_stream().cuda_stream
    rope.apply(at.pop("q"), at.pop("k"), operands["q"].shape[0], **at)
    return copies


def ids(device, *values):
    return torch.tensor(values, device=on(device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stages(device, layout):
    """A norm, quantised outputs, v and q_nope, returned in order; what is left alone and quantised is 0."""
    rope = make(device, fused=True, norm=pyrope.RMSNorm(), q_nope_dim=32, q_out_dtype="float8_e4m3fn",
                v_out_dtype="int8", v_scale_kind="dynamic")  # fmt: skip
    where = on(device)
    rows = {"q": randn(where, "float32", Q_HEADS), "k": randn(where, "float32", K_HEADS),
            "v": randn(where, "float32", K_HEADS), "q_nope": randn(where, "float32", Q_HEADS, dim=32)}  # fmt: skip
    options = {name: torch.rand(DIM, device=where) for name in ("q_weight", "k_weight")} | {"q_scale": 0.5}
    v_scale = torch.zeros(BATCH * SEQ, K_HEADS, device=where)
    positions = torch.from_numpy(POSITIONS).to(where)
    given = {n: laid_out(x, layout) for n, x in rows.items()}
    outs = face.apply(rope, **given, layout=layout, positions=positions, v_scale=v_scale, **options)
    assert [out.dtype for out in outs] == [torch.float8_e4m3fn, torch.float32, torch.int8, torch.float8_e4m3fn]
    bytes_of = {n: torch.zeros(x.flatten(0, 1).shape, dtype=torch.uint8, device=where) for n, x in rows.items()}
    want = pointers(rope, **{n: x.flatten(0, 1) for n, x in rows.items()}, positions=positions.flatten(),
                    v_scale=torch.zeros_like(v_scale), k_out=rows["k"].flatten(0, 1), q_out=bytes_of["q"],
                    v_out=bytes_of["v"], q_nope_out=bytes_of["q_nope"], **options)  # fmt: skip
    for name, out in zip(rows, outs, strict=True):
        got = batch_first(out, layout).flatten(0, 1)
        got = got if name == "k" else got.view(torch.uint8)
        assert torch.equal(got, want[f"{name}_out"]), name
    if layout == "sbhd":  # one scale a token, in the order of the layout
        v_scale = v_scale.view(SEQ, BATCH, K_HEADS).transpose(0, 1).reshape(BATCH * SEQ, K_HEADS)
    assert torch.equal(v_scale, want["v_scale"])


def test_cache(device):
    """Keys and values go to pages; in place and out of place q is the same."""
    where = on(device)
    rope = make(device, fused=True, cache=pyrope.PagedCache(page_size=4, num_pages=3))
    q, k, v = (randn(where, "float32", heads)[0] for heads in (Q_HEADS, K_HEADS, K_HEADS))
    slots, positions = ids(device, 3, 4, -1, 11, 0), ids(device, 7, 8, 9, 10, 11)

    def caches():
        return {name: torch.zeros(3, 4, K_HEADS, DIM, device=where) for name in ("k_cache", "v_cache")}

    want = pointers(rope, q=q, k=k, v=v, slots=slots, positions=positions, **caches())
    given, before = caches(), k.clone()
    out, k_out, v_out = face.apply(rope, q, k, v=v, layout="thd", slots=slots, positions=positions, **given)
    assert k_out is None and v_out is None and torch.equal(out, want["q"]) and torch.equal(k, before)
    assert all(torch.equal(given[name], want[name]) for name in given)
    again = caches()
    face.apply_(rope, q, k, v=v, layout="thd", slots=slots, positions=positions, **again)
    assert torch.equal(q, out) and all(torch.equal(again[name], want[name]) for name in again)


def test_given_outputs(device):
    rope = make(device)
    q, k = (randn(on(device), "float32", heads) for heads in (Q_HEADS, K_HEADS))
    room = torch.empty_like(q)
    out, k_out = face.apply(rope, q, k, offset=3, q_out=room)
    want = face.apply(rope, q, k, offset=3)
    assert out is room and torch.equal(out, want[0]) and torch.equal(k_out, want[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["[streams, batch, seq]", "[streams, seq]", "[streams, tokens]"])
def test_sections(device, layout, form):
    rope = make(device, fused=True, sections=(16, 8, 8))
    q = randn(on(device), "float32", Q_HEADS)
    positions = torch.arange(3 * BATCH * SEQ, device=q.device).view(3, BATCH, SEQ) * 37
    if form == "[streams, seq]":
        positions = positions[:, :1].expand(3, BATCH, SEQ)
    ids = {"[streams, batch, seq]": positions, "[streams, seq]": positions[:, 0].contiguous()}.get(
        form, (positions.transpose(1, 2) if layout == "sbhd" else positions).reshape(3, -1)
    )
    out, _ = face.apply(rope, laid_out(q, layout), layout=layout, positions=ids)
    want = pointers(rope, q=q.flatten(0, 1), k=None, positions=positions.reshape(3, -1).contiguous())["q"]
    assert torch.equal(batch_first(out, layout).flatten(0, 1), want)


def test_cos_sin(device):
    """A token whose position is no row is returned as it is."""
    plain, rope = make(device), make(device, fused=True, angle="cos_sin")
    cos, sin = (torch.from_numpy(x).to(on(device)) for x in plain.cos_sin(SEQ))
    q = randn(on(device), "float32", Q_HEADS)
    out, _ = face.apply(rope, q, cos=cos, sin=sin, offset=2)
    rows = [2, 3, 4, -1, -1]
    check_rotated(plain, out, q, "bshd", np.tile(rows, (BATCH, 1)))


@pytest.mark.parametrize("place", ["contiguous", "another order"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_for_each_token(device, layout, place):
    """[batch, seq, columns], whatever the order of the tokens in memory; the gradient turns back by the same rows."""
    rope = make(device, fused=True, angle="radians")
    angles, q = randn(on(device), "float32", 1, dim=DIM // 2)[:, :, 0], randn(on(device), "float32", Q_HEADS)
    x = laid_out(q, layout)
    x = (x.contiguous() if place == "contiguous" else x).detach().requires_grad_()
    out, _ = face.apply(rope, x, layout=layout, angles=angles)
    flat, rows = q.flatten(0, 1), angles.flatten(0, 1)
    want = pointers(rope, q=flat, k=None, angles=rows, cos_sin_rows=len(rows))["q"]
    assert torch.equal(batch_first(out, layout).flatten(0, 1), want)
    out.backward(x.detach())
    back = pointers(rope, q=flat, k=None, angles=rows, cos_sin_rows=len(rows), inverse=True)["q"]
    assert torch.equal(batch_first(x.grad, layout).flatten(0, 1), back)


@pytest.mark.gpu
def test_current_stream():
    """What is pending on torch's current stream comes first, and the call is captured in a graph of it."""
    on("cuda")
    rope, q = make("cuda"), randn("cuda", "float32", Q_HEADS)
    want, _ = face.apply(rope, q, offset=3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    x = torch.zeros_like(q)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(q)
        face.apply_(rope, x, offset=3)
    stream.synchronize()
    assert torch.equal(x, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = face.apply(rope, x, offset=3)
    x.copy_(q)
    graph.replay()
    assert torch.equal(out, want)


@pytest.mark.gpu
def test_other_device():
    """Tensors of a device that is not the current one."""
    on("cuda")
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    rope, q = make("cuda"), randn("cuda:1", "float32", Q_HEADS)
    out, _ = face.apply(rope, q, offset=3)
    check_rotated(rope, out, q, "bshd", np.tile(np.arange(3, 3 + SEQ), (BATCH, 1)))
    with pytest.raises(ValueError, match=r"^k: on CUDA device 0, must be on 1"):
        face.apply_(rope, q, randn("cuda:0", "float32", K_HEADS))


def test_same_bits_as_numpy(device):
    """What the same Rope makes of an array of the CPU."""
    rope = make(device)
    q = randn(on(device), "float32", Q_HEADS)
    want = array_of(q).copy()
    make("cpu").apply(want, positions=POSITIONS.ravel())
    got = face.apply(rope, q, positions=torch.from_numpy(POSITIONS).to(q.device))[0]
    np.testing.assert_array_equal(array_of(got), want)
