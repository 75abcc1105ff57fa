"""Memory for tests: strided tensors inside canaries, moved to the backend under test and back.

A pyrope built with the kernels compiled for the CPU takes host memory for device memory.
"""

import functools
import os

import numpy as np
from reference import DTYPES

import pyrope

CANARY = 0xA5
EMULATED = "compiled for the CPU" in pyrope.build_info()
REQUIRE_GPU = os.environ.get("PYROPE_REQUIRE_GPU") == "1"


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


class Tensor:
    """[tokens, heads, head_dim] somewhere in a buffer of canaries. Strides and offset in elements."""

    def __init__(self, dtype, shape, *, token_stride=None, head_stride=None, offset=0, flat=None, rng=None):
        tokens, heads, head_dim = shape
        self.shape, self.dtype = shape, np.dtype(DTYPES[dtype])
        self.head_stride = head_stride or head_dim
        self.token_stride = token_stride or heads * self.head_stride
        self.offset = offset
        size = offset + (tokens - 1) * self.token_stride + (heads - 1) * self.head_stride + head_dim + 64
        self.flat = np.full(max(size, 64) * self.dtype.itemsize, CANARY, np.uint8) if flat is None else flat
        if rng is not None and tokens:
            self.view()[...] = rng.standard_normal(shape).astype(self.dtype)

    def view(self, flat=None):
        flat = self.flat if flat is None else flat
        strides = np.array([self.token_stride, self.head_stride, 1]) * self.dtype.itemsize
        return np.lib.stride_tricks.as_strided(flat.view(self.dtype)[self.offset :], self.shape, strides)

    @property
    def strides(self):
        return self.token_stride, self.head_stride


def run(rope, operands, method="apply", **arguments):
    """Call a method of rope with Tensors and index arrays moved to its device.

    operands: q, k, q_out, k_out by name, None for an absent one; those that share a `flat` share memory on the device.
    Returns the contents of every flat buffer after the call, by operand name.
    """
    memory = memory_of(rope.device)
    buffers, call, keep = {}, {}, []
    for name, tensor in operands.items():
        if tensor is None:
            call[name] = None
            continue
        buffer = buffers.setdefault(id(tensor.flat), memory.put(tensor.flat))
        call[name] = memory.pointer(buffer) + tensor.offset * tensor.dtype.itemsize
        call[f"{name}_strides"] = tensor.strides
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            keep.append(memory.put(value))
            arguments[name] = memory.pointer(keep[-1])
    tokens = next(t.shape[0] for t in operands.values() if t is not None)
    getattr(rope, method)(call.pop("q"), call.pop("k", None), tokens, **call, **arguments)
    return {name: memory.get(buffers[id(t.flat)]) for name, t in operands.items() if t is not None}
