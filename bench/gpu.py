"""A CUDA device: memory and streams by cuda-python, timing by events around graph replays."""

import ctypes
import subprocess
from collections.abc import Callable

import numpy as np
from cuda.bindings import runtime
from timing import issue

FOOTPRINT = 256 << 20  # bytes that cold calls rotate through; several times any L2
SIGN = {4: -(1 << 31), 2: -0x7FFF8000}  # sign bits of the elements in an int32


class DeviceError(Exception):
    """The CUDA runtime reported an error."""


def check(result: tuple):
    """The value of a cuda-python call, or a DeviceError."""
    status, *values = result
    if status != runtime.cudaError_t.cudaSuccess:
        raise DeviceError(f"{status.name}: {check(runtime.cudaGetErrorString(status)).decode()}")
    return values[0] if values else None


def optional(name: str):
    """The module, or None if it cannot be imported."""
    try:
        return __import__(name)
    except ImportError:
        return None


class Gpu:
    """One CUDA device with one stream on which everything runs.

    torch and CuPy are used where they are there: torch and the peers that need it share the stream, and one of the two
    gives the elementwise kernel of the ceiling.
    """

    kind = "cuda"
    host_calls = 200  # between synchronisations: far fewer launches than the queue holds
    fewest_calls = 16  # in a sample

    def __init__(self, index: int):
        self.index, self.name = index, f"cuda:{index}"
        check(runtime.cudaSetDevice(index))
        self._stream = check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.stream = int(self._stream)
        self._memory: list[int] = []
        self._graphs: list = []
        self._events = [check(runtime.cudaEventCreate()) for _ in range(2)]
        self._flush = check(runtime.cudaMalloc(FOOTPRINT))
        self.footprint = FOOTPRINT
        self.cache_bytes = self._attribute("L2CacheSize")
        self.torch, self.cupy = optional("torch"), optional("cupy")
        if self.torch and not self.torch.cuda.is_available():
            self.torch = None
        if self.torch:
            self.torch.cuda.set_device(index)
            self._torch_stream = self.torch.cuda.ExternalStream(self.stream, device=self.name)
            self.torch.cuda.set_stream(self._torch_stream)
        elif self.cupy:
            self.cupy.cuda.Device(index).use()
            self.cupy.cuda.ExternalStream(self.stream).use()

    def _attribute(self, name: str) -> int:
        return check(runtime.cudaDeviceGetAttribute(getattr(runtime.cudaDeviceAttr, f"cudaDevAttr{name}"), self.index))

    # ---- memory

    def allocate(self, nbytes: int) -> int:
        self._memory.append(int(check(runtime.cudaMalloc(nbytes))))
        return self._memory[-1]

    def free(self) -> None:
        """Free everything that was allocated or captured."""
        self.synchronize()
        while self._graphs:
            check(runtime.cudaGraphExecDestroy(self._graphs.pop()))
        while self._memory:
            check(runtime.cudaFree(self._memory.pop()))
        if self.torch:
            self.torch.cuda.empty_cache()

    def _copy(self, target: int, source: int, nbytes: int) -> None:
        check(runtime.cudaMemcpyAsync(target, source, nbytes, runtime.cudaMemcpyKind.cudaMemcpyDefault, self._stream))

    def write(self, ptr: int, values: np.ndarray) -> None:
        self._copy(ptr, values.ctypes.data, values.nbytes)
        self.synchronize()

    def read(self, ptr: int, nbytes: int) -> bytes:
        data = ctypes.create_string_buffer(nbytes)
        self._copy(ctypes.addressof(data), ptr, nbytes)
        self.synchronize()
        return data.raw

    def fill(self, ptr: int, nbytes: int, block: bytes) -> None:
        """The block over and over."""
        done = min(len(block), nbytes)
        self.write(ptr, np.frombuffer(block, np.uint8)[:done])
        while done < nbytes:
            size = min(done, nbytes - done)
            self._copy(ptr + done, ptr, size)
            done += size
        self.synchronize()

    def synchronize(self) -> None:
        check(runtime.cudaStreamSynchronize(self._stream))

    # ---- what the hardware can do

    def elementwise(self, source: int, target: int, nbytes: int, itemsize: int) -> tuple[str, Callable] | None:
        """(what it is, call): flip the sign of every element of one flat buffer, in one launch."""
        from memory import Array

        library = self.torch or self.cupy
        if library is None:
            return None
        x, y = (Array(self, ptr, (nbytes // 4,), "int32") for ptr in (source, target))
        x, y = (x.torch, y.torch) if self.torch else (self.cupy.asarray(x), self.cupy.asarray(y))
        mask = SIGN[itemsize] if self.torch else np.int32(SIGN[itemsize])
        return f"{library.__name__}.bitwise_xor", lambda: library.bitwise_xor(x, mask, out=y)

    def copy(self, source: int, target: int, nbytes: int) -> tuple[str, Callable]:
        """(what it is, call): a copy that reads and writes `nbytes`."""
        return "cudaMemcpyAsync", lambda: self._copy(target, source, nbytes)

    # ---- timing

    def samplers(self, kinds: tuple, calls: list[Callable], host: Callable, host_calls: int) -> dict[str, Callable]:
        """Samplers of one implementation: cold and warm L2 (graph replay) and host cost (eager calls).

        calls : those of one sample; the first again and again where the cache is to be warm
        host, host_calls : the call whose issue cost is sampled, and how many between synchronisations
        """
        make = {
            "cold": lambda: self._replay(self._capture(calls), len(calls), self._evict),
            "warm": lambda: self._replay(self._capture(calls[:1] * len(calls)), len(calls)),
            "host": lambda: lambda: issue([host] * host_calls, self.synchronize),
        }
        return {kind: make[kind]() for kind in kinds}

    def timed(self, body: Callable[[], None]) -> Callable[[], float]:
        """A sampler of a body that is captured as one graph: microseconds of all of it, with cold caches."""
        body()  # what is loaded or set up on first use is no part of a graph
        return self._replay(self._capture([body]), 1, self._evict)

    def neighbours(self, inputs) -> tuple[dict, tuple[str, Callable]]:
        """(what surrounds the call in a layer, by kind, (what it is, the least of calls))."""
        import neighbours
        from packed import buffers

        packed = buffers(inputs.case)
        return {kind: make(inputs, packed) for kind, make in neighbours.NEIGHBOURS.items()}, neighbours.floor(inputs)

    def no_step(self) -> str | None:
        """Why calls cannot be measured in a step here, or None."""
        import neighbours

        return neighbours.unable(self)

    def host_call(self, peer, case, inputs, call: Callable) -> Callable:
        """What the host cost is measured with: the call itself, as it only queues the work."""
        return call

    def _evict(self) -> None:
        check(runtime.cudaMemsetAsync(self._flush, 0, FOOTPRINT, self._stream))

    def _replay(self, replay: Callable, calls: int, before: Callable | None = None) -> Callable:
        """A sampler of a replay; `before` (the replay itself if None) sets the cache, and occupies the device while the
        host queues the rest.
        """
        start, end = self._events

        def sample() -> float:
            (before or replay)()
            check(runtime.cudaEventRecord(start, self._stream))
            replay()
            check(runtime.cudaEventRecord(end, self._stream))
            self.synchronize()
            return 1e3 * check(runtime.cudaEventElapsedTime(start, end)) / calls

        return sample

    def _capture(self, calls: list[Callable]) -> Callable:
        """A function that replays the calls as one graph. With torch by torch, which keeps the temporaries' memory."""
        self.synchronize()
        if self.torch:
            graph = self.torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()
            return graph.replay
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            for call in calls:
                call()
        finally:
            captured = check(runtime.cudaStreamEndCapture(self._stream))
        graph = check(runtime.cudaGraphInstantiate(captured, 0))
        check(runtime.cudaGraphDestroy(captured))
        self._graphs.append(graph)
        return lambda: check(runtime.cudaGraphLaunch(graph, self._stream))

    # ---- what it is

    def info(self) -> dict:
        """Name, memory, driver and clocks (MHz) as nvidia-smi says them; clocks are those of this moment."""
        bus = check(runtime.cudaDeviceGetPCIBusId(32, self.index))
        bus = (bus.decode() if isinstance(bus, bytes) else bus).partition("\0")[0]
        fields = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm",
                  "clocks.max.mem", "power.limit", "temperature.gpu"]  # fmt: skip
        found = {
            "kind": "cuda",
            "name": check(runtime.cudaGetDeviceProperties(self.index)).name.decode(),
            "l2_bytes": self.cache_bytes,
            "multiprocessors": self._attribute("MultiProcessorCount"),
            "runtime": check(runtime.cudaRuntimeGetVersion()),
        }
        query = ["nvidia-smi", "-i", bus, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            values = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
            found |= dict(zip(fields, values.split(", "), strict=True))
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            found["nvidia_smi"] = str(error)
        return found
