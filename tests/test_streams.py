"""CUDA streams and graphs: the order of the work, and what a capture keeps."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import pyrope
from kit.blocks import call, equal, normal_block
from kit.memory import EMULATED, memory_of, real_device
from kit.objects import Index, Producer, Stream, cuda_driver
from kit.ropes import DIM, Q_HEADS, TOKENS, make

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
    x = normal_block(rng, "bfloat16", (3000, Q_HEADS, DIM))
    want = call(make("cpu", "bfloat16"), {"q": x, "offset": 3})["q"]
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
    x = normal_block(rng, "bfloat16", (tokens, Q_HEADS, DIM))
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


@pytest.mark.gpu
@real_device
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("tokens", [1, 17, 300, 4000])
def test_pdl_chain_of_pipelines(tokens, early, rng):
    """The same, of kernels with a norm, which let their successors in before or behind their own wait."""
    memory, dtype = memory_of("cuda"), ml_dtypes.bfloat16
    x = rng.standard_normal((tokens, 8, 128)).astype(dtype)
    weight = (1 + 0.1 * rng.standard_normal(128)).astype(dtype)
    ids = rng.integers(-1, 1 << 31, tokens)
    want, q, weights, positions = x.copy(), memory.put(x), memory.put(weight), memory.put(ids)
    options = {"norm": pyrope.RMSNorm(eps=1e-6), "dtype": "bfloat16"}
    cpu = pyrope.FusedRope(128, 8, 0, device="cpu", **options)
    cuda = pyrope.FusedRope(128, 8, 0, device="cuda", enable_pdl=True, positions_ready=early, **options)
    stream = memory.call("cudaStreamCreate")
    memory.call("cudaDeviceSynchronize")
    for _ in range(30):
        cpu.apply(want, positions=ids, q_weight=weight)
        cuda.apply(q.address, None, tokens, positions=positions.address, q_weight=weights.address, stream=stream)
    memory.call("cudaStreamSynchronize", stream)
    memory.call("cudaStreamDestroy", stream)
    assert equal(memory.get(q), want)


GRAPH = """
from functools import partial
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
rope = MAKE(64, 4, 0, dtype="float32", device="cuda", **OPTIONS)
call("cudaStreamBeginCapture", stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
rope.apply(q, None, 40, positions=ids, stream=stream)  # the first call of the process
rope.inverse(q, None, 40, offset=7, stream=stream)
graph = call("cudaGraphInstantiate", call("cudaStreamEndCapture", stream), 0)
cpu = MAKE(64, 4, 0, dtype="float32", device="cpu")
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
@pytest.mark.parametrize("make", ["pyrope.Rope", "partial(pyrope.FusedRope, xpos=pyrope.XPos())"])
def test_graph_capture_in_a_fresh_process(make, options, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GRAPH.replace("OPTIONS", str(options)).replace("MAKE", make)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
