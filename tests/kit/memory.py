"""Memory of the backend under test.

A pyrope built with the kernels compiled for the CPU takes host memory for device memory.
"""

import functools
import mmap
import os
from types import SimpleNamespace

import numpy as np
import pytest

import pyrope

HAS_CUDA = any(row[0] == "cuda" for row in pyrope.supported())
EMULATED = "compiled for the CPU" in pyrope.build_info()
REQUIRE_GPU = os.environ.get("PYROPE_REQUIRE_GPU") == "1"
real_device = pytest.mark.skipif(EMULATED, reason="there is no CUDA device: the kernels were compiled for the CPU")


class HostMemory:
    """Buffers of the CPU backend."""

    def put(self, array):
        return array.copy()

    def pointer(self, buffer):
        return buffer.ctypes.data

    def get(self, buffer):
        return buffer


class CudaMemory:
    """Buffers on the current CUDA device."""

    def __init__(self):
        from cuda.bindings import runtime

        self.runtime = runtime

    def call(self, name, *arguments):
        error, *result = getattr(self.runtime, name)(*arguments)
        assert error == self.runtime.cudaError_t.cudaSuccess, f"{name}: {error.name}"
        return result[0] if result else None

    class Buffer:
        def __init__(self, memory, array):
            self.memory, self.like = memory, array
            self.address = memory.call("cudaMalloc", max(array.nbytes, 1))
            memory.call(
                "cudaMemcpy",
                self.address,
                array.ctypes.data,
                array.nbytes,
                memory.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
            )

        def __del__(self):
            self.memory.call("cudaFree", self.address)

    def put(self, array):
        return self.Buffer(self, np.ascontiguousarray(array))

    def pointer(self, buffer):
        return buffer.address

    def get(self, buffer):
        result = np.empty_like(buffer.like)
        self.call(
            "cudaMemcpy",
            result.ctypes.data,
            buffer.address,
            result.nbytes,
            self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost,
        )
        return result


@functools.cache
def memory_of(device):
    """The memory that a Rope of this device works on."""
    return HostMemory() if device == "cpu" or EMULATED else CudaMemory()


class Buffers:
    """Arrays by name in memory of a device; `at` has their addresses."""

    def __init__(self, device, arrays):
        self.memory, self.arrays = memory_of(device), arrays
        self.buffers = {name: self.memory.put(array) for name, array in arrays.items()}
        self.at = SimpleNamespace(**{name: int(self.memory.pointer(b)) for name, b in self.buffers.items()})

    def untouched(self):
        """Whether every array is what it was."""
        return all(np.array_equal(self.memory.get(b), self.arrays[name]) for name, b in self.buffers.items())


def skip_if_host_memory_is_read():
    """Skips a test of host memory that the CUDA backend must refuse, where it can read that."""
    if EMULATED:
        pytest.skip("the kernels compiled for the CPU take host memory")
    memory = memory_of("cuda")
    if memory.call("cudaDeviceGetAttribute", memory.runtime.cudaDeviceAttr.cudaDevAttrPageableMemoryAccess, 0):
        pytest.skip("this device reads all of the host's memory")


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
