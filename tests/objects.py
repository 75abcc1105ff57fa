"""What the tests of what a caller may pass share."""

import ctypes

import numpy as np
import pytest
from memory import EMULATED

import pyrope

TOKENS, Q_HEADS, K_HEADS, DIM = 6, 4, 2, 64

real_device = pytest.mark.skipif(EMULATED, reason="there is no CUDA device: the kernels were compiled for the CPU")


def make(device="cpu", dtype="float32", **options):
    return pyrope.Rope(DIM, Q_HEADS, K_HEADS, dtype=dtype, device=device, **options)


def equal(got, want):
    return np.array_equal(np.ascontiguousarray(got).view(np.uint8), np.ascontiguousarray(want).view(np.uint8))


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def cuda_driver():
    return pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)


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
