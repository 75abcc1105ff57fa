"""What a caller may pass: each form of memory, number and stream gives the result of the plain pointer call."""

import ctypes
import mmap
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from memory import EMULATED, Tensor, memory_of, run
from reference import DTYPES

import pyrope

TOKENS, Q_HEADS, K_HEADS, DIM = 6, 4, 2, 64
POSITIONS = np.array([5, 0, 2**31 - 1, 77, -1, 1 << 20])

real_device = pytest.mark.skipif(EMULATED, reason="there is no CUDA device: the kernels were compiled for the CPU")


def make(device="cpu", dtype="float32", **options):
    return pyrope.Rope(DIM, Q_HEADS, K_HEADS, dtype=dtype, device=device, **options)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def case(dtype, rng):
    """q and k of a dtype, and what they become."""
    q, k = (Tensor(dtype, (TOKENS, heads, DIM), rng=rng) for heads in (Q_HEADS, K_HEADS))
    want = run(make(dtype=dtype), {"q": q, "k": k}, positions=POSITIONS)
    arrays = {name: np.ascontiguousarray(t.view()) for name, t in (("q", q), ("k", k))}
    return SimpleNamespace(
        dtype=dtype, rope=make(dtype=dtype), want_q=q.view(want["q"]), want_k=k.view(want["k"]), **arrays
    )


def equal(got, want):
    return np.array_equal(np.ascontiguousarray(got).view(np.uint8), np.ascontiguousarray(want).view(np.uint8))


# ---- pointers and numbers


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def cuda_driver():
    return pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)


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
    x = Tensor("float32", (3, 2, 64), token_stride=160, head_stride=80, rng=rng)
    want = run(pyrope.Rope(64, 2, 0, dtype="float32", rotary_dim=32, rotary_offset=8, device="cpu"), {"q": x}, offset=9)
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
    x = Tensor("float32", (5, Q_HEADS, DIM), rng=rng)
    want = x.view(run(make(), {"q": x}, positions=np.array([9, 10, 0, 1, 2]))["q"])
    for options in ({}, {"position_dtype": "int32"}):
        for arguments in (
            {"positions": np.array([9, 10, 0, 1, 2], index)},
            {"indptr": np.array([0, 2, 5], index), "offsets": np.array([9, 0], index)},
        ):
            for wrap in (lambda a: a, OnlyDLPack, OnlyInterface):
                q = x.view().copy()
                make(**options).apply(q, **{name: wrap(a) for name, a in arguments.items()})
                assert equal(q, want)


class OnlyDLPack:
    """An array that offers __dlpack__ and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyInterface:
    """An array that offers __array_interface__ and nothing else."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.keep = array


@pytest.mark.parametrize("wrap", [OnlyDLPack, OnlyInterface])
@pytest.mark.parametrize("dtype", ["float32", "float16"])  # neither protocol of NumPy knows bfloat16
def test_numpy_behind_a_protocol(case, wrap):
    for form in (FORMS["3-D"], FORMS["4-D"], FORMS["padded"]):
        q, k = form(case.q), form(case.k)
        case.rope.apply(wrap(q), wrap(k), positions=wrap(POSITIONS))
        assert equal(q.reshape(case.q.shape), case.want_q) and equal(k.reshape(case.k.shape), case.want_k)


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


# Code and bits.
DLPACK_CODES = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "int64": (0, 64), "float64": (2, 64)}


class Producer:
    """A DLPack producer of any memory and dtype, which counts what becomes of its capsules."""

    DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    NAME = b"dltensor"

    def __init__(self, address, shape, dtype, device_type=1, *, lanes=1, strides=None, byte_offset=0):
        self.deleted, self.streams = [], []
        self.deleter = self.DELETER(self.deleted.append)
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        steps = (ctypes.c_int64 * len(shape))(*strides) if strides else None
        self.tensor = DLTensor(
            address - byte_offset,
            device_type,
            0,
            len(shape),
            *DLPACK_CODES[dtype],
            lanes,
            sizes,
            steps,
            byte_offset,
            None,
            ctypes.cast(self.deleter, ctypes.c_void_p),
        )

    def __dlpack_device__(self):
        return self.tensor.device_type, 0

    def __dlpack__(self, **arguments):
        self.streams.append(arguments.get("stream"))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), self.NAME, None)


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


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dtype": "float64"}, TypeError, "q: dtype unknown, must be float32"),
        ({"dtype": "bfloat16"}, TypeError, "q: dtype unknown, must be float32"),
        ({"lanes": 2}, TypeError, "q: dtype unknown, must be float32"),
        ({"shape": (TOKENS, 3, DIM)}, ValueError, "q: shape"),
        ({"device_type": 2}, ValueError, "q: the array is on a CUDA device, must be in host memory"),
        ({"device_type": 10}, ValueError, "q: the array is on"),
    ],
)
def test_refused_dlpack_is_deleted(change, error, text):
    q = np.zeros((TOKENS, Q_HEADS, DIM), np.float32)
    x = Producer(**{"address": q.ctypes.data, "shape": q.shape, "dtype": "float32"} | change)
    with pytest.raises(error, match=text):
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
        with pytest.raises(ValueError, match="q: the array is read-only"):
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


# ---- the object itself


def test_properties():
    rope = pyrope.Rope(
        96,
        4,
        2,
        rotary_dim=64,
        rotary_offset=16,
        theta=5e5,
        scaling=pyrope.Llama3(),
        layout="gptj",
        dtype="float16",
        angle="fp32",
        device="cpu",
        position_dtype="int32",
        attention_factor=1.5,
    )
    values = {
        "head_dim": 96,
        "num_q_heads": 4,
        "num_k_heads": 2,
        "rotary_dim": 64,
        "rotary_offset": 16,
        "theta": 5e5,
        "scaling": pyrope.Llama3(),
        "layout": "gptj",
        "dtype": "float16",
        "angle": "fp32",
        "device": "cpu",
    }
    for name, value in values.items():
        assert getattr(rope, name) == value and type(getattr(rope, name)) is type(value)
        assert f"{name}={value!r}" in repr(rope)
    assert (rope.position_dtype, rope.attention_factor) == ("int32", 1.5)
    assert repr(rope).startswith("Rope(head_dim=96, ")


def test_inv_freq():
    rope = make()
    assert rope.inv_freq.dtype == np.float64 and rope.inv_freq.shape == (32,) and rope.inv_freq[0] == 1
    rope.inv_freq[:] = 0  # a copy
    assert rope.inv_freq[0] == 1 and rope.attention_factor == 1.0 and rope.theta == 1e4 and rope.scaling is None
    values = np.linspace(-2, 1e9, 32)
    for given in (values, list(values), tuple(values)):
        custom = make(inv_freq=given)
        np.testing.assert_array_equal(custom.inv_freq, values)
        assert custom.theta is None and "inv_freq=..." in repr(custom)


@pytest.mark.parametrize("name", ["head_dim", "theta", "layout", "inv_freq", "attention_factor", "scaling", "new"])
def test_immutable(name):
    rope = make()
    with pytest.raises(AttributeError):
        setattr(rope, name, 1)
    with pytest.raises(AttributeError):
        delattr(rope, name)


def test_initialised_once():
    rope = make()
    before = repr(rope)
    with pytest.raises(pyrope.RopeError, match="immutable"):
        rope.__init__(32, 1, 1)
    assert repr(rope) == before


def test_refused_by_its_constructor(rng):
    """What __init__ refused cannot be used, and may be initialised after all."""
    rope = pyrope.Rope.__new__(pyrope.Rope)
    q = rng.standard_normal((3, 1, 32)).astype(np.float32)
    before, want = q.copy(), q.copy()
    options = {"dtype": "float32", "device": "cpu"}
    for wrong in ({"inv_freq": [1.0] * 15}, {"attention_factor": -1}):
        with pytest.raises(ValueError):
            rope.__init__(32, 1, 0, **options, **wrong)
        with pytest.raises(pyrope.RopeError, match="never initialised"):
            rope.apply(q, offset=5)
        assert equal(q, before)
    rope.__init__(32, 1, 0, **options)
    rope.apply(q, offset=5)
    pyrope.Rope(32, 1, 0, **options).apply(want, offset=5)
    assert equal(q, want)


def test_threads(rng):
    """One Rope in many threads at once, some of which call wrongly: each gets its own result and its own error."""
    rope = make(dtype="bfloat16", num_threads=2)
    q = [Tensor("bfloat16", (200 + i, Q_HEADS, DIM), rng=rng) for i in range(8)]
    want = [run(rope, {"q": x}, offset=1000 * i)["q"] for i, x in enumerate(q)]
    faults = []

    def work(i):
        try:
            for _ in range(20):
                assert equal(run(rope, {"q": q[i]}, offset=1000 * i)["q"], want[i])
                with pytest.raises(ValueError, match=f"num_tokens: {2**31 + i}, "):
                    rope.apply(1 << 16, None, 2**31 + i)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert faults == []


# ---- more than 2^31 elements


class Room:
    """Much memory, of which little is touched; addresses count bytes from its start."""

    def __init__(self, device, size):
        self.memory = None if device == "cpu" or EMULATED else memory_of(device)
        if self.memory:
            self.address = self.memory.call("cudaMalloc", size)
        else:
            no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
            self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
            self.bytes = np.frombuffer(self.map, np.uint8)
            self.address = self.bytes.ctypes.data

    def put(self, at, array):
        if self.memory:
            kind = self.memory.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            self.memory.call("cudaMemcpy", self.address + at, array.ctypes.data, array.nbytes, kind)
        else:
            self.bytes[at : at + array.nbytes] = array.view(np.uint8).ravel()

    def get(self, at, like):
        result = np.empty_like(like)
        if self.memory:
            kind = self.memory.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.memory.call("cudaMemcpy", result.ctypes.data, self.address + at, result.nbytes, kind)
        else:
            result.view(np.uint8).ravel()[...] = self.bytes[at : at + result.nbytes]
        return result

    def __del__(self):
        if self.memory:
            self.memory.call("cudaFree", self.address)


FAR = 2**31 + 64


@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize(
    ("shape", "token_stride", "head_stride"),
    [((2, 3, 64), FAR, 64), ((2, 3, 64), -FAR, 64), ((3, 2, 64), 64, FAR), ((2, 3, 64), FAR, 80)],
    ids=["far tokens", "far tokens backwards", "far heads", "far tokens, padded"],
)
def test_beyond_32_bits(device, shape, token_stride, head_stride, layout, rng):
    rope = pyrope.Rope(64, shape[1], 0, dtype="bfloat16", layout=layout, device=device)
    x = Tensor("bfloat16", shape, rng=rng)
    want = x.view(run(rope, {"q": x}, offset=5)["q"])
    room = Room(device, 2 * FAR + (1 << 20))
    base = 2 * FAR if token_stride < 0 else 0
    places = [(t, h, base + 2 * (t * token_stride + h * head_stride)) for t in range(shape[0]) for h in range(shape[1])]
    for t, h, at in places:
        room.put(at, np.ascontiguousarray(x.view()[t, h]))
    rope.apply(room.address + base, None, shape[0], q_strides=(token_stride, head_stride), offset=5)
    for t, h, at in places:
        assert equal(room.get(at, want[t, h]), want[t, h])
    out = Tensor("bfloat16", shape)
    back = memory_of(device).put(out.flat)
    rope.inverse(
        room.address + base,
        None,
        shape[0],
        q_strides=(token_stride, head_stride),
        offset=5,
        q_out=memory_of(device).pointer(back),
    )
    again = Tensor("bfloat16", shape)
    again.view()[...] = want
    assert equal(out.view(memory_of(device).get(back)), again.view(run(rope, {"q": again}, "inverse", offset=5)["q"]))


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("in_place", [True, False])
def test_many_elements(in_place, rng):
    """2^31 elements and more in one call, contiguous."""
    heads, dim = 16, 128
    tokens = 2**31 // (heads * dim) + 5
    rope = pyrope.Rope(dim, heads, 0, dtype="bfloat16", device="cuda")
    row = heads * dim * 2
    room = Room("cuda", tokens * row)
    out = room if in_place else Room("cuda", tokens * row)
    x = Tensor("bfloat16", (8, heads, dim), rng=rng)
    starts = [0, tokens // 2, tokens - 8]
    for start in starts:
        room.put(start * row, np.ascontiguousarray(x.view()))
    rope.apply(room.address, None, tokens, offset=3, q_out=out.address)
    for start in starts:
        want = x.view(run(rope, {"q": x}, offset=3 + start)["q"])
        assert equal(out.get(start * row, want), want)


# ---- streams and graphs


class Stream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, int(self.handle)


STREAMS = {
    "int": int,
    "numpy.uint64": lambda s: np.uint64(int(s)),
    "__index__": lambda s: Index(int(s)),
    "__cuda_stream__": Stream,
    "cudaStream_t": lambda s: s,
    "CUstream": lambda s: cuda_driver().CUstream(int(s)),
    "cuda.core.Stream": lambda s: pytest.importorskip("cuda.core", exc_type=ImportError).Stream.from_handle(int(s)),
}


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("form", STREAMS.values(), ids=STREAMS)
def test_streams(form, rng):
    """Work on another stream runs in that stream's order: behind its copies, before those that follow."""
    memory = memory_of("cuda")
    kinds = memory.runtime.cudaMemcpyKind
    stream = memory.call("cudaStreamCreateWithFlags", memory.runtime.cudaStreamNonBlocking)
    rope = make("cuda", "bfloat16")
    x = Tensor("bfloat16", (3000, Q_HEADS, DIM), rng=rng)
    want = run(make("cpu", "bfloat16"), {"q": x}, offset=3)["q"]
    q, result = memory.put(np.zeros_like(x.flat)), np.zeros_like(x.flat)
    memory.call("cudaDeviceSynchronize")  # the stream does not wait for put()
    given = form(stream)
    memory.call("cudaMemcpyAsync", q.address, x.flat.ctypes.data, x.flat.nbytes, kinds.cudaMemcpyHostToDevice, stream)
    rope.apply(q.address, None, x.shape[0], offset=3, stream=given)
    memory.call("cudaMemcpyAsync", result.ctypes.data, q.address, x.flat.nbytes, kinds.cudaMemcpyDeviceToHost, stream)
    memory.call("cudaStreamSynchronize", stream)
    memory.call("cudaStreamDestroy", stream)
    assert equal(result, want)


@pytest.mark.gpu
def test_dlpack_hears_of_the_stream(rng):
    """The producer is told the stream, so that its own work on the array comes first."""
    memory = memory_of("cuda")
    stream = 7 if EMULATED else memory.call("cudaStreamCreate")
    x = rng.standard_normal((TOKENS, Q_HEADS, DIM)).astype(np.float32)
    q = memory.put(x)
    producer = Producer(int(memory.pointer(q)), x.shape, "float32", 2)
    make("cuda").apply(producer, stream=Stream(stream))
    assert producer.streams == [int(stream)] and len(producer.deleted) == 1
    if not EMULATED:
        memory.call("cudaStreamSynchronize", stream)
        memory.call("cudaStreamDestroy", stream)


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("tokens", [1, 17, 4000])
def test_pdl_chain(tokens, rng):
    """Each kernel of a chain may start before its predecessor has ended, and yet reads what that one wrote."""
    memory = memory_of("cuda")
    x = Tensor("bfloat16", (tokens, Q_HEADS, DIM), rng=rng)
    cpu, cuda = make("cpu", "bfloat16"), make("cuda", "bfloat16", enable_pdl=True)
    stream = memory.call("cudaStreamCreate")
    q, want = memory.put(x.flat), x.flat.copy()
    for i in range(100):
        for rope, address, options in ((cpu, want.ctypes.data, {}), (cuda, q.address, {"stream": stream})):
            rope.apply(address, None, tokens, offset=i, **options)
            rope.inverse(address, None, tokens, offset=3 * i, **options)
    memory.call("cudaStreamSynchronize", stream)
    memory.call("cudaStreamDestroy", stream)
    assert equal(memory.get(q), want)


GRAPH = """
import numpy as np
import pyrope
from cuda.bindings import runtime

def call(name, *arguments):
    error, *result = getattr(runtime, name)(*arguments)
    assert error == runtime.cudaError_t.cudaSuccess, f"{name}: {error.name}"
    return result[0] if result else None

x = np.random.default_rng(1).standard_normal((40, 4, 64)).astype(np.float32)
positions = np.arange(40)
kind = runtime.cudaMemcpyKind
q, ids = call("cudaMalloc", x.nbytes), call("cudaMalloc", positions.nbytes)
stream = call("cudaStreamCreate")
rope = pyrope.Rope(64, 4, 0, dtype="float32", device="cuda", **OPTIONS)
call("cudaStreamBeginCapture", stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
rope.apply(q, None, 40, positions=ids, stream=stream)  # the first call of the process
rope.inverse(q, None, 40, offset=7, stream=stream)
graph = call("cudaGraphInstantiate", call("cudaStreamEndCapture", stream), 0)
cpu = pyrope.Rope(64, 4, 0, dtype="float32", device="cpu")
for shift in (0, 1000):  # positions are read when the graph runs
    moved, want, got = positions + shift, x.copy(), np.empty_like(x)
    call("cudaMemcpy", q, x.ctypes.data, x.nbytes, kind.cudaMemcpyHostToDevice)
    call("cudaMemcpy", ids, moved.ctypes.data, moved.nbytes, kind.cudaMemcpyHostToDevice)
    for _ in range(3):
        call("cudaGraphLaunch", graph, stream)
        cpu.apply(want, positions=moved)
        cpu.inverse(want, offset=7)
    call("cudaStreamSynchronize", stream)
    call("cudaMemcpy", got.ctypes.data, q, got.nbytes, kind.cudaMemcpyDeviceToHost)
    assert (got.view(np.uint32) == want.view(np.uint32)).all(), shift
"""


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("options", [{}, {"enable_pdl": True}, {"enable_pdl": True, "positions_ready": True}])
def test_graph_capture_in_a_fresh_process(options, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GRAPH.replace("OPTIONS", str(options))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
