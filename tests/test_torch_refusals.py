"""What pyrope.torch refuses: the text begins with the argument, and nothing is written."""

import pytest

import pyrope
from kit.refusals import rows
from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402

BATCH, SEQ = 2, 5
V, T, R = ValueError, TypeError, RuntimeError


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


def q_of(device="cpu", dtype=torch.float32, heads=Q_HEADS):
    return torch.ones(BATCH, SEQ, heads, DIM, dtype=dtype, device=device)


# Each: what of the call apply_(rope, q, k) is replaced, the error, the beginning of its text.
MISTAKES = rows(
    ("dtype", {"q": lambda d: q_of(d, torch.float16)}, T, r"q: dtype torch.float16, must be float32"),
    ("k's dtype", {"k": lambda d: q_of(d, torch.bfloat16, K_HEADS)}, T, r"k: dtype torch.bfloat16, must be float32"),
    ("heads", {"k": lambda d: q_of(d)}, V, r"k: shape \(2, 5, 3, 64\), must be"),
    ("head_dim", {"q": lambda d: q_of(d)[..., :32]}, V, r"q: shape \(2, 5, 3, 32\), must be"),
    ("tokens", {"k": lambda d: q_of(d, heads=K_HEADS)[:, 1:]}, V, r"k: shape \(2, 4, 2, 64\), its batch and sequence"),
    ("batch", {"k": lambda d: q_of(d, heads=K_HEADS)[:1]}, V, r"k: shape \(1, 5, 2, 64\), its batch and sequence"),
    ("dimensions", {"q": lambda d: q_of(d)[0]}, V, r"q: 3 dimensions, layout='bshd' is \[batch, seq, heads, h"),
    ("dimensions of thd", {"layout": "thd"}, V, r"q: 4 dimensions, layout='thd' is \[tokens, heads, head_dim\]; for"),
    ("layout", {"layout": "neox"}, V, r"layout: 'neox', must be 'thd', 'bshd'"),
    ("neither", {"q": None, "k": None}, T, r"q and k: both None"),
    ("array", {"q": lambda d: [1.0]}, T, r"q: list, must be a torch.Tensor"),
    ("broadcast", {"q": lambda d: q_of(d)[:, :, :1].expand(-1, -1, Q_HEADS, -1)}, V, r"q: a broadcast array"),
    ("positions' shape", {"positions": lambda d: ones(4, dtype=torch.int64, device=d)}, V, r"positions: shape \(4,\)"),
    ("positions' rank", {"positions": lambda d: ones(1, 2, 5, dtype=torch.int64, device=d)}, V, "positions: shape"),
    ("positions' dtype", {"positions": lambda d: ones(BATCH, SEQ).double().to(d)}, T, "positions: dtype torch.float64"),
    ("positions and offset", {"positions": lambda d: ones(SEQ, dtype=torch.int64, device=d), "offset": 3}, V, "off"),
    ("offset", {"offset": 1.5}, T, "offset: 1.5 is not an integer"),
    ("inverse", {"inverse": 1}, T, r"inverse: 1 is not a bool"),
    ("indptr", {"indptr": lambda d: torch.tensor([0, 10], device=d)}, V, r"indptr: only allowed with layout='thd'"),
    ("pointers' argument", {"num_requests": 1}, T, r"num_requests: not an argument of pyrope.torch"),
    ("stream", {"stream": 0}, T, r"stream: not an argument of pyrope.torch"),
    ("weight", {"q_weight": lambda d: ones(DIM, device=d)}, T, r"apply\(\) got an unexpected keyword arg"),
)  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "text"), MISTAKES)
def test_mistakes(device, changes, error, text):
    where = on(device)
    operands = {"q": q_of(where), "k": q_of(where, heads=K_HEADS)}
    before = {name: x.clone() for name, x in operands.items()}
    given = operands | {name: x(where) if callable(x) else x for name, x in changes.items()}
    with pytest.raises(error, match=f"^{text}"):
        face.apply_(make(device), given.pop("q"), given.pop("k"), **given)
    assert all(torch.equal(x, before[name]) for name, x in operands.items())


@pytest.mark.parametrize(
    ("shape", "offset", "text"),
    [
        ((BATCH, SEQ + 1), 0, r"angles: shape \(2, 6, 32\), must be \[rows, columns\] or \[2 or 1, 5, columns\]"),
        ((BATCH, SEQ), 1, "offset: 1, not allowed where angles has a row for each token of a batch"),
    ],
)
def test_rows_of_other_tokens(device, shape, offset, text):
    rope, q = make(device, fused=True, angle="radians"), q_of(on(device))
    with pytest.raises(V, match=f"^{text}"):
        face.apply_(rope, q, angles=ones(*shape, DIM // 2, device=q.device), offset=offset)
    assert q.eq(1).all()


@pytest.mark.parametrize("leaf", [True, False])
def test_grad_in_place(device, leaf):
    q = q_of(on(device)).requires_grad_()
    x = q if leaf else q * 1
    with pytest.raises(R, match=r"^q: requires grad, which an in-place call has not; use pyrope.torch.apply"):
        face.apply_(make(device), x)
    assert x.eq(1).all()
    with torch.no_grad():  # as torch's own in-place operations
        face.apply_(make(device), q, offset=3)
    assert not q.eq(1).all() and q.is_leaf and q.requires_grad


@pytest.mark.parametrize("name", ["cos", "sin"])
def test_grad_of_tables(device, name):
    rope, where = make(device, fused=True, angle="cos_sin"), on(device)
    tables = {n: ones(SEQ, DIM // 2, device=where).requires_grad_(n == name) for n in ("cos", "sin")}
    with pytest.raises(R, match=f"^{name}: requires grad, which has no gradient"):
        face.apply(rope, q_of(where), **tables)


def test_rows_of_bytes_are_given(device):
    """Of stored types whose rows have not as many elements as the tensor's, which torch has no dtype for."""
    rope = make(device, fused=True, q_out_dtype="q8_0")
    with pytest.raises(V, match=r"^q_out: required with q_out_dtype='q8_0', whose rows are bytes"):
        face.apply(rope, q_of(on(device)), q_of(on(device), heads=K_HEADS))


def test_grad_with_effects(device):
    where = on(device)
    rope = make(device, fused=True, q_out_dtype="int8")
    with pytest.raises(R, match=r"^q: requires grad, a call with a cache, a quantised output"):
        face.apply(rope, q_of(where).requires_grad_())
    rope = make(device)
    with pytest.raises(R, match=r"^k: requires grad, a call with a cache"):
        face.apply(rope, None, q_of(where, heads=K_HEADS).requires_grad_(), k_out=q_of(where, heads=K_HEADS))


@pytest.mark.gpu
def test_other_memory():
    on("cuda")
    with pytest.raises(V, match=r"^q: the array is in host memory, must be on the CUDA device"):
        face.apply_(make("cuda"), q_of("cpu"))
    with pytest.raises(V, match=r"^q: the array is on a CUDA device, must be in host memory"):
        face.apply_(make("cpu"), q_of("cuda"))
    with pytest.raises(V, match=r"^k: the array is in host memory"):
        face.apply_(make("cuda"), q_of("cuda"), q_of("cpu", heads=K_HEADS))
    with pytest.raises(V, match=r"^positions: the array is in host memory"):
        face.apply_(make("cuda"), q_of("cuda"), positions=torch.arange(SEQ))


def test_subclass():
    """A graph holds a Rope as text, which that of another class would be no more."""

    class Mine(pyrope.Rope):
        pass

    with pytest.raises(T, match=r"^rope: Mine, must be a pyrope.Rope or pyrope.FusedRope"):
        face.RotaryEmbedding(Mine(DIM, 1, 1, device="cpu"))


def test_requires_grad_is_refused_by_the_core(device):
    """Rope.apply, which would drop the gradient, leaves that to torch."""
    q = q_of(on(device))[0].requires_grad_()
    with pytest.raises(T, match=r"^q: requires grad, .*use pyrope.torch.apply, or pass what detach"):
        make(device).apply(q)
    assert q.eq(1).all()


@pytest.mark.gpu
def test_core_waits_for_another_stream():
    """Rope.apply on a stream of its own waits for torch's current one, where the tensor is being made."""
    on("cuda")
    rope, want = make("cuda"), q_of("cuda")[0]
    torch.cuda.synchronize()
    stream, q = torch.cuda.Stream(), torch.zeros_like(want)
    torch.cuda._sleep(50_000_000)
    q.copy_(want)
    rope.apply(q, offset=3, stream=stream.cuda_stream)
    rope.apply(want, offset=3, stream=torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(q, want)
