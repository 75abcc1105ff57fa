# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""The library itself: what it is, what it can do, and its errors as exceptions."""

from libc.stdint cimport int32_t

from pyrope._arguments cimport ANGLES, DEVICES, DTYPES, LAYOUTS
from pyrope._capi cimport *

from pyrope.errors import CudaError, RopeError, UnsupportedError


cdef int check(rope_status status) except -1:
    if status == ROPE_OK:
        return 0
    text = rope_last_error().decode()
    if status == ROPE_ERR_INVALID_ARG:
        raise ValueError(text)
    if status == ROPE_ERR_UNSUPPORTED or status == ROPE_ERR_VERSION:
        raise UnsupportedError(text)
    if status == ROPE_ERR_NO_DEVICE:
        raise CudaError(f"no CUDA device: {text}; for the CPU pass device='cpu'")
    raise (CudaError if status == ROPE_ERR_CUDA else RopeError)(text)


cdef int check_device(int32_t number) except -1:
    """That the device of this number is current; -1: any may be."""
    cdef int32_t current
    if number >= 0:
        current = rope_current_device()
        if current != number:
            raise ValueError(f"device: cuda:{number}, but the current CUDA device is "
                             f"{current if current >= 0 else 'none'}")
    return 0


cdef bint is_compiled(int32_t backend, int32_t dtype, int32_t layout, int32_t angle) except -1:
    cdef rope_support_query query
    cdef int32_t yes
    query.struct_size = sizeof(query)
    query.backend, query.dtype, query.layout, query.angle = backend, dtype, layout, angle
    check(rope_query_support(&query, &yes))
    return yes


def device_count() -> int:
    """Number of CUDA devices that this library can use; 0 without a driver, or if built without CUDA."""
    return rope_device_count()


def build_info() -> str:
    """One line: what the library was built with, and the instruction set its CPU backend runs."""
    return rope_build_info().decode()


def version() -> str:
    """Version of the library, "major.minor.patch"."""
    cdef int v = rope_version()
    return f"{v >> 16}.{v >> 8 & 255}.{v & 255}"


def supported() -> list[tuple[Device, DType, Layout, Angle]]:
    """Every compiled combination, as (device, dtype, layout, angle)."""
    return [
        (device, dtype, layout, angle)
        for device, backend in DEVICES.items() for dtype, element in DTYPES.items()
        for layout, pairing in LAYOUTS.items() for angle, mode in ANGLES.items()
        if is_compiled(backend, element, pairing, mode)
    ]
