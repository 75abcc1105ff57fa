"""What a caller may pass: each form of memory and number gives the result of the plain pointer call."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import pyrope
from kit.blocks import Block, call, equal, normal_block
from kit.memory import memory_of, real_device
from kit.objects import Index, OnlyDLPack, OnlyInterface, Producer, cuda_driver, exchanging
from kit.reference import DTYPES
from kit.refusals import refused
from kit.ropes import DIM, K_HEADS, Q_HEADS, TOKENS, make
from pyrope._view import Rows

POSITIONS = np.array([5, 0, 2**31 - 1, 77, -1, 1 << 20])


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def case(dtype, rng):
    """q and k of a dtype, and what they become."""
    q, k = (normal_block(rng, dtype, (TOKENS, heads, DIM)) for heads in (Q_HEADS, K_HEADS))
    want = call(make(dtype=dtype), {"q": q, "k": k, "positions": POSITIONS})
    arrays = {name: np.ascontiguousarray(t.view()) for name, t in (("q", q), ("k", k))}
    return SimpleNamespace(
        dtype=dtype, rope=make(dtype=dtype), want_q=q.view(want["q"]), want_k=k.view(want["k"]), **arrays
    )


# ---- pointers and numbers


POINTERS = {
    "int": int,
    "numpy.uint64": np.uint64,
    "numpy.intp": np.intp,
    "__index__": Index,
    "CUdeviceptr": lambda x: cuda_driver().CUdeviceptr(x),
    "cuda.core.Buffer": lambda x: pytest.importorskip("cuda.core", exc_type=ImportError).Buffer.from_handle(x, 1 << 20),
}


@pytest.mark.parametrize("pointer", POINTERS.values(), ids=POINTERS)
def test_pointers(case, device, pointer):
    memory, positions = memory_of(device), POSITIONS
    q, k, ids = (memory.put(x) for x in (case.q, case.k, positions))
    out = memory.put(np.zeros_like(case.q))
    out_k = memory.put(np.zeros_like(case.k))
    rope = make(device, case.dtype)
    buffers = {"q_out": out, "k_out": out_k, "positions": ids}
    moved = positions != -1
    rope.apply(
        pointer(memory.pointer(q)),
        pointer(memory.pointer(k)),
        TOKENS,
        **{name: pointer(memory.pointer(b)) for name, b in buffers.items()},
    )
    assert equal(memory.get(out)[moved], case.want_q[moved]) and equal(memory.get(out_k)[moved], case.want_k[moved])


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, Index], ids=lambda x: x.__name__)
def test_numbers(integer, rng):
    x = Block("float32", (3, 2, 64), (160, 80, 1), values=rng.standard_normal((3, 2, 64)))
    want = call(make(num_q_heads=2, rotary_dim=32, rotary_offset=8), {"q": x, "offset": 9})
    rope = pyrope.Rope(
        integer(64),
        integer(2),
        integer(0),
        rotary_dim=integer(32),
        rotary_offset=integer(8),
        theta=np.float32(1e4),
        attention_factor=np.int8(1),
        num_threads=integer(1),
        dtype="float32",
        device="cpu",
    )
    rope.apply(x.flat.ctypes.data, None, integer(3), q_strides=[integer(160), integer(80)], offset=integer(9))
    assert equal(x.flat, want["q"])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (np.float32, "float32"),
        (np.dtype("float16"), "float16"),
        (DTYPES["bfloat16"], "bfloat16"),
        (np.dtype(DTYPES["bfloat16"]), "bfloat16"),
        ("float16", "float16"),
    ],
)
def test_dtypes(given, name):
    assert make(dtype=given).dtype == name
    assert make(position_dtype=np.int32).position_dtype == "int32"


# ---- arrays


def padded(x, before=1, after=2):
    """x inside of a larger buffer, with gaps between heads, tokens and around."""
    room = np.zeros((x.shape[0] + before, x.shape[1] + after, x.shape[2] + 16), x.dtype)
    view = room[before:, : x.shape[1], 8 : 8 + x.shape[2]]
    view[...] = x
    return view


# Each makes a view from [tokens, heads, head_dim] and leads back to it.
FORMS = {
    "3-D": lambda x: x.copy(),
    "2-D": lambda x: x.reshape(TOKENS, -1).copy(),
    "4-D": lambda x: x.reshape(2, 3, *x.shape[1:]).copy(),
    "5-D with ones": lambda x: x.reshape(1, 3, 1, 2, *x.shape[1:]).copy(),
    "padded": padded,
    "4-D padded": lambda x: padded(x, 0).reshape(TOKENS, *x.shape[1:])[None],
    "heads outside": lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
}


SHAPE = (TOKENS, Q_HEADS, DIM)

# Each as NumPy describes it in its own way.
ODD = {
    "float32": lambda: np.ones(SHAPE, np.float32),
    "bfloat16": lambda: np.ones(SHAPE, DTYPES["bfloat16"]),
    "backwards": lambda: np.ones(SHAPE, np.float32)[::-1, ::-1, ::-1],
    "elements apart": lambda: np.ones((TOKENS, Q_HEADS, 2 * DIM), np.float32)[:, :, ::2],
    "one token": lambda: np.ones((TOKENS, Q_HEADS, DIM), np.float32)[:1],
    "one token of many": lambda: np.ones((TOKENS, 3 * Q_HEADS, DIM), np.float32)[1:2, :Q_HEADS],
    "no tokens": lambda: np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (0, Q_HEADS, DIM), (0, 0, 0)),
    "broadcast": lambda: np.broadcast_to(np.ones(DIM, np.float32), SHAPE),
    "read-only": lambda: np.frombuffer(np.ones(SHAPE, np.float32).tobytes(), np.float32).reshape(SHAPE),
    "big-endian": lambda: np.ones(SHAPE, ">f4"),
    "of fields": lambda: np.zeros(SHAPE, [("x", "f4")]),
    "in fields": lambda: np.zeros(SHAPE, [("x", "f4"), ("y", "u1")])["x"],
    "int32": lambda: np.ones(SHAPE, np.int32),
    "uint16": lambda: np.ones(SHAPE, np.uint16),
    "bool": lambda: np.ones(SHAPE, bool),
    "text": lambda: np.full(SHAPE, "x"),
    "times": lambda: np.zeros(SHAPE, "m8[ns]"),
    "no dimension": lambda: np.array(1.0, np.float32),
    "nine dimensions": lambda: np.ones((1,) * 6 + SHAPE, np.float32),
}


@pytest.mark.parametrize("array", ODD.values(), ids=ODD)
def test_array_struct_and_dictionary(array, dtype):
    """What the structure in C says is what the dictionary says, also of what is refused."""
    rope, outcomes = make(dtype=dtype), []
    for wrap in (lambda a: a, OnlyInterface):
        x = array()
        given = wrap(x)
        if given is not x:
            given.dtype = x.dtype
        try:
            rope.apply(given, offset=7)
            outcomes.append(x.tobytes())
        except (TypeError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_numpy(case, form):
    q, k = form(case.q), form(case.k)
    case.rope.apply(q, k, positions=POSITIONS)
    assert equal(q.reshape(case.q.shape), case.want_q) and equal(k.reshape(case.k.shape), case.want_k)
    q, k = form(case.q), form(case.k)
    q_out, k_out = np.zeros_like(case.q), np.zeros_like(case.k)
    case.rope.apply(q, k, TOKENS, positions=POSITIONS, q_out=q_out, k_out=k_out)
    moved = POSITIONS != -1
    assert equal(q_out[moved], case.want_q[moved]) and equal(k_out[moved], case.want_k[moved])
    assert equal(q.reshape(case.q.shape), case.q) and not q_out[~moved].any()


def test_packed_qkv(case):
    qkv = np.zeros((TOKENS, Q_HEADS + 2 * K_HEADS, DIM), case.q.dtype)
    q, k, v = qkv[:, :Q_HEADS], qkv[:, Q_HEADS:-K_HEADS], qkv[:, -K_HEADS:]
    q[...], k[...], v[...] = case.q, case.k, 3
    case.rope.apply(q, k, positions=POSITIONS)
    assert equal(q, case.want_q) and equal(k, case.want_k) and (v == 3).all()


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_index_arrays(index, rng):
    """Arrays bring their own integer type, whatever position_dtype says of pointers."""
    x = normal_block(rng, "float32", (5, Q_HEADS, DIM))
    want = x.view(call(make(), {"q": x, "positions": np.array([9, 10, 0, 1, 2])})["q"])
    for options in ({}, {"position_dtype": "int32"}):
        for arguments in (
            {"positions": np.array([9, 10, 0, 1, 2], index)},
            {"indptr": np.array([0, 2, 5], index), "offsets": np.array([9, 0], index)},
        ):
            for wrap in (lambda a: a, OnlyDLPack, OnlyInterface):
                q = x.view().copy()
                make(**options).apply(q, **{name: wrap(a) for name, a in arguments.items()})
                assert equal(q, want)


@pytest.mark.parametrize("wrap", [OnlyDLPack, OnlyInterface])
@pytest.mark.parametrize("dtype", ["float32", "float16"])  # neither protocol of NumPy knows bfloat16
def test_numpy_behind_a_protocol(case, wrap):
    for form in (FORMS["3-D"], FORMS["4-D"], FORMS["padded"]):
        q, k = form(case.q), form(case.k)
        case.rope.apply(wrap(q), wrap(k), positions=wrap(POSITIONS))
        assert equal(q.reshape(case.q.shape), case.want_q) and equal(k.reshape(case.k.shape), case.want_k)


@pytest.mark.parametrize("layout", ["contiguous", "strides", "byte offset", "managed", "no deleter"])
def test_dlpack(case, device, layout):
    """Each capsule is deleted once; strides may be missing; on CUDA the producer hears of the stream."""
    memory = memory_of(device)
    q, k, ids = (memory.put(x) for x in (case.q, case.k, POSITIONS))
    kind = 1 if device == "cpu" else 13 if layout == "managed" else 2
    more = {"strides": {"strides": (Q_HEADS * DIM, DIM, 1)}, "byte offset": {"byte_offset": 256}}.get(layout, {})
    objects = [
        Producer(memory.pointer(q), case.q.shape, case.dtype, kind, **more),
        Producer(memory.pointer(k), case.k.shape, case.dtype, kind),
        Producer(memory.pointer(ids), POSITIONS.shape, "int64", kind),
    ]
    if layout == "no deleter":
        objects[0].tensor.deleter = None
    make(device, case.dtype).apply(*objects[:2], positions=objects[2])
    assert equal(memory.get(q), case.want_q) and equal(memory.get(k), case.want_k)
    for x in objects:
        assert x.deleted == ([ctypes.addressof(x.tensor)] if x.tensor.deleter else [])
        assert x.streams == [None if device == "cpu" else 1]


@pytest.mark.parametrize("heads_first", [False, True])
def test_rows(case, heads_first):
    """An array of four dimensions that front ends hand on in the order of the core."""
    q = case.q.reshape(2, 3, Q_HEADS, DIM)
    x = q.transpose(0, 2, 1, 3) if heads_first else q
    rows = Rows("q", x, heads_first, 0)
    assert (rows.outer, rows.inner, rows.folded, rows.dtype) == (2, 3, True, q.dtype)
    case.rope.apply(rows, positions=POSITIONS)
    assert equal(case.q, case.want_q)
    assert not Rows("q", np.ascontiguousarray(q.transpose(0, 2, 1, 3)), True, 0).folded
    assert Rows("q", q[:, :0], False, 0).folded
    with refused(ValueError, "q: 3 dimensions, must be 4"):
        Rows("q", case.q, heads_first, 0)


@pytest.mark.parametrize("refusal", [None, "another version", "requires grad", "another stream"])
def test_exchange_table(case, device, refusal):
    """Read without a capsule, but where that would say less than one does: that tensors require grad, and on CUDA what
    is pending on the producer's stream."""
    if refusal == "another stream" and device == "cpu":
        pytest.skip("the CPU has no streams")
    memory = memory_of(device)
    q, ids = (memory.put(x) for x in (case.q, POSITIONS))
    kind = 1 if device == "cpu" else 2
    cls, asked = exchanging(2 if refusal == "another version" else 1, 0 if refusal != "another stream" else 1 << 20)
    x = cls(memory.pointer(q), case.q.shape, case.dtype, kind, strides=(Q_HEADS * DIM, DIM, 1))
    x.requires_grad = refusal == "requires grad"
    make(device, case.dtype).apply(x, positions=Producer(memory.pointer(ids), POSITIONS.shape, "int64", kind))
    assert equal(memory.get(q), case.want_q)
    assert len(x.streams) == len(x.deleted) == (0 if refusal is None else 1)
    if refusal in (None, "another stream"):
        assert asked == ["borrow"] + ([(2, 0)] if device == "cuda" else [])
    else:
        assert asked == []


def test_requires_grad():
    """As torch's tensors that do, which give no capsule."""

    class Tensor(OnlyDLPack):
        requires_grad = True

        def __dlpack__(self, **options):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    q = np.zeros((TOKENS, Q_HEADS, DIM), np.float32)
    with refused(TypeError, "q: requires grad, of which this call knows nothing; use pyrope.torch.apply, or pass what"):
        make().apply(Tensor(q))
    Tensor.requires_grad = False
    with pytest.raises(BufferError, match="Can't export"):
        make().apply(Tensor(q))


@pytest.mark.gpu
def test_two_devices(case):
    """Arrays that say that they are on different CUDA devices."""
    memory = memory_of("cuda")
    q, k = memory.put(case.q), memory.put(case.k)
    x, y = (Producer(memory.pointer(b), t.shape, case.dtype, 2) for b, t in ((q, case.q), (k, case.k)))
    y.tensor.device_id = 1
    with refused(ValueError, "k: on CUDA device 1, must be on 0, as the other arguments"):
        make("cuda", case.dtype).apply(x, y)
    assert equal(memory.get(q), case.q) and equal(memory.get(k), case.k)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dtype": "float64"}, TypeError, "q: dtype unknown, must be float32"),
        ({"dtype": "bfloat16"}, TypeError, "q: dtype unknown, must be float32"),
        ({"lanes": 2}, TypeError, "q: dtype unknown, must be float32"),
        ({"shape": (TOKENS, Q_HEADS + 1, DIM)}, ValueError, "q: shape"),
        ({"device_type": 2}, ValueError, "q: the array is on a CUDA device, must be in host memory"),
        ({"device_type": 10}, ValueError, "q: the array is on"),
    ],
)
def test_refused_dlpack_is_deleted(change, error, text):
    q = np.zeros((TOKENS, Q_HEADS, DIM), np.float32)
    x = Producer(**{"address": q.ctypes.data, "shape": q.shape, "dtype": "float32"} | change)
    with refused(error, text):
        make().apply(x)
    assert len(x.deleted) == 1 and not q.any()


@pytest.mark.gpu
def test_cuda_array_interface(case):
    """Alone, with and without strides; it has no name for bfloat16, so producers make do."""
    names = {"float32": ["<f4"], "float16": ["<f2"], "bfloat16": ["<V2", "<f2", "<u2"]}[case.dtype]
    memory = memory_of("cuda")
    for name in names:
        q, ids = memory.put(case.q), memory.put(POSITIONS)
        itemsize = case.q.itemsize
        for strides in (None, (Q_HEADS * DIM * itemsize, DIM * itemsize, itemsize)):
            q = memory.put(case.q)
            interface = {
                "shape": case.q.shape,
                "typestr": name,
                "data": (int(memory.pointer(q)), False),
                "version": 3,
                "strides": strides,
            }
            index = {"shape": POSITIONS.shape, "typestr": "<i8", "data": (int(memory.pointer(ids)), True), "version": 3}
            make("cuda", case.dtype).apply(
                SimpleNamespace(__cuda_array_interface__=interface),
                positions=SimpleNamespace(__cuda_array_interface__=index),
            )
            assert equal(memory.get(q), case.want_q)
        interface["data"] = (interface["data"][0], True)
        with refused(ValueError, "q: the array is read-only"):
            make("cuda", case.dtype).apply(SimpleNamespace(__cuda_array_interface__=interface))


def as_torch(x, torch, device):
    name = "int64" if x.dtype == np.int64 else "uint8"
    tensor = torch.from_numpy(x.view(name).copy()).to(device)
    return tensor if name == "int64" else tensor.view(getattr(torch, x.dtype.name)).reshape(x.shape)


def from_torch(x, torch):
    return x.contiguous().view(torch.uint8).cpu().numpy()


def check_torch(case, torch, device, **arguments):
    q, k, ids = (as_torch(x, torch, device) for x in (case.q, case.k, POSITIONS))
    rope = make("cpu" if device == "cpu" else "cuda", getattr(torch, case.dtype))
    rope.apply(q, k, positions=ids, **arguments)
    batched = as_torch(case.q, torch, device).reshape(2, 3, Q_HEADS, DIM)
    out = torch.zeros_like(batched)
    rope.apply(batched, positions=ids, q_out=out, **arguments)
    if device != "cpu":
        torch.cuda.synchronize()
    moved = POSITIONS != -1
    assert equal(from_torch(q, torch), case.want_q) and equal(from_torch(k, torch), case.want_k)
    assert equal(from_torch(out.reshape(q.shape), torch)[moved], case.want_q[moved])


def test_torch_cpu(case):
    torch = pytest.importorskip("torch")
    check_torch(case, torch, "cpu")
    assert make(device=torch.device("cpu")).device == "cpu"


@pytest.mark.gpu
@real_device
def test_torch_cuda(case):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    check_torch(case, torch, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        check_torch(case, torch, "cuda", stream=stream)
        check_torch(case, torch, "cuda", stream=stream.cuda_stream)


def test_jax(case):
    """Inputs alone: JAX takes its arrays to be constant."""
    jax = pytest.importorskip("jax")
    with jax.default_device(jax.devices("cpu")[0]):
        q, ids = jax.numpy.asarray(case.q), jax.numpy.asarray(POSITIONS % 2**31, jax.numpy.int32)
    out, want = np.zeros_like(case.q), np.zeros_like(case.q)
    case.rope.apply(q, positions=ids, q_out=out)
    case.rope.apply(case.q, positions=POSITIONS % 2**31, q_out=want)
    assert equal(out, want)


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cupy(case):
    cupy = pytest.importorskip("cupy")
    q, k, ids = (cupy.asarray(x) for x in (case.q, case.k, POSITIONS))
    make("cuda", case.dtype).apply(q, k, positions=ids, stream=cupy.cuda.get_current_stream())
    assert equal(q.get(), case.want_q) and equal(k.get(), case.want_k)


def test_references(rng):
    """A call keeps no reference to anything, whether it succeeds or not."""
    rope = make()
    q = rng.standard_normal((TOKENS, Q_HEADS, DIM)).astype(np.float32)
    k = rng.standard_normal((TOKENS, K_HEADS, DIM)).astype(np.float32)
    ids, strides, offset = np.arange(TOKENS), (Q_HEADS * DIM, DIM + 0), Index(7)
    objects = [rope, q, k, ids, OnlyDLPack(q), OnlyDLPack(ids), offset, strides]
    before = [sys.getrefcount(x) for x in objects]
    for _ in range(10):
        rope.apply(q, k, positions=ids)
        rope.apply(objects[4], k, positions=objects[5])
        rope.apply(q.ctypes.data, None, TOKENS, q_strides=strides, offset=offset)
        for wrong in ({"q": objects[4], "num_tokens": 1}, {"q": q, "positions": ids[:2]}, {"q": q, "k": q}):
            with pytest.raises(ValueError):
                rope.apply(**wrong)
        del wrong
    assert [sys.getrefcount(x) for x in objects] == before
