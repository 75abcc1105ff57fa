"""Objects that a caller may pass as a number, as memory or as a stream."""

import ctypes

import pytest

from kit.memory import memory_of


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


class Exchange(ctypes.Structure):
    """DLPack's C exchange table."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("borrow", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


def exchanging(major, stream):
    """A class of producers with an exchange table of a version, whose current stream is that; what they are asked."""
    asked = []

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
    def borrow(x, out):
        asked.append("borrow")
        ctypes.memmove(out, ctypes.addressof(x.tensor), DLTensor.context.offset)
        return 0

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
    def current_stream(device_type, device_id, out):
        asked.append((device_type, device_id))
        out[0] = stream
        return 0

    functions = [ctypes.cast(function, ctypes.c_void_p) for function in (borrow, current_stream)]
    table = Exchange(major, 3, None, None, None, None, *functions)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    name = b"dlpack_exchange_api"
    capsule, keep = new(ctypes.addressof(table), name, None), (borrow, current_stream, table, name)
    return type("Exchanging", (Producer,), {"__dlpack_c_exchange_api__": capsule, "keep": keep}), asked


def on(device, array, name):
    """The array as an object of the device, and the buffer that has its memory."""
    if device == "cpu":
        return array, array
    buffer = memory_of(device).put(array)
    strides = [s // array.itemsize for s in array.strides]
    return Producer(int(memory_of(device).pointer(buffer)), array.shape, name, 2, strides=strides), buffer


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


class Stream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, int(self.handle)
