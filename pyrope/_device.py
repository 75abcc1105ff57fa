"""Memory for the selftest and the names of devices, through cuda-python where it is installed."""

import importlib
from array import array
from typing import Any, Protocol

import pyrope


class Memory(Protocol):
    """A copy of some bytes where a device can reach them."""

    address: int

    def __init__(self, data: bytes) -> None: ...
    def read(self) -> bytes: ...


class HostMemory:
    def __init__(self, data: bytes) -> None:
        # 64-bit elements, for their alignment.
        self.size, self.words = len(data), array("q", data + bytes(-len(data) % 8 + 8))
        self.address = self.words.buffer_info()[0]

    def read(self) -> bytes:
        return self.words.tobytes()[: self.size]


def cuda_call(name: str, *arguments: Any) -> Any:
    """A function of the CUDA runtime."""
    runtime = importlib.import_module("cuda.bindings.runtime")
    error, *result = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        raise pyrope.CudaError(f"{name}: {error.name}")
    return result[0] if result else None


class CudaMemory:
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.address = int(cuda_call("cudaMalloc", max(self.size, 1)))
        host = HostMemory(data)
        self._copy(self.address, host.address, "cudaMemcpyHostToDevice")

    def _copy(self, target: int, source: int, kind: str) -> None:
        kinds = importlib.import_module("cuda.bindings.runtime").cudaMemcpyKind
        cuda_call("cudaMemcpy", target, source, self.size, getattr(kinds, kind))

    def read(self) -> bytes:
        host = HostMemory(bytes(self.size))
        self._copy(host.address, self.address, "cudaMemcpyDeviceToHost")
        return host.read()

    def __del__(self) -> None:
        cuda_call("cudaFree", self.address)


def is_emulated() -> bool:
    """Whether the kernels were compiled for the CPU, and take host memory."""
    return "compiled for the CPU" in pyrope.build_info()


def memory(device: str) -> type[Memory]:
    return HostMemory if device == "cpu" or is_emulated() else CudaMemory


def why_not_cuda() -> str:
    """Why the CUDA backend cannot be tried here; "" if it can."""
    if not any(row[0] == "cuda" for row in pyrope.supported()):
        return "built without CUDA"
    if pyrope.device_count() == 0:
        return "no CUDA device that this pyrope can use"
    if is_emulated():
        return ""
    try:
        importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return "memory is allocated with cuda-python, which is not installed"
    return ""


def device_names() -> list[str]:
    """One line a device."""
    if is_emulated() or why_not_cuda():
        return [f"CUDA device {i}" for i in range(pyrope.device_count())]
    found = []
    for i in range(pyrope.device_count()):
        p = cuda_call("cudaGetDeviceProperties", i)
        found.append(
            f"{p.name.decode().rstrip(chr(0))}, compute capability {p.major}.{p.minor}, "
            f"{p.totalGlobalMem / 2**30:.0f} GiB"
        )
    return found
