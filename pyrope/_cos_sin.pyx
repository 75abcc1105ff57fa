# cython: language_level=3, freethreading_compatible=True
"""Rope.build_cos_sin: where the caller wants rows of cosines and sines, read and checked."""

from libc.stdint cimport int32_t, int64_t, uintptr_t

from pyrope._capi cimport *
from pyrope._core cimport (
    Rope, as_count, as_integer, check, check_device, choose, element_name, holds, read_call_stream, shape_of,
)
from pyrope._view cimport KIND_OPAQUE, View, is_array, is_immutable, read_pointer, read_view

from pyrope._core import _DTYPES
from pyrope.errors import RopeError


cdef int check_rows(str name, View* v, int64_t width, int64_t least, int64_t* rows, int64_t* stride) except -1:
    """[rows, width], at least so many; the first array sets their number (where -1) and stride (where 0)."""
    cdef int64_t step
    if (v.ndim != 2 or v.shape[0] < least or v.shape[1] != width or (rows[0] >= 0 and v.shape[0] != rows[0])
            or (v.shape[0] and width > 1 and v.strides[1] != 1)):
        raise ValueError(f"{name}: shape {shape_of(v)}, must be [{rows[0] if rows[0] >= 0 else 'rows'}, {width}] with "
                         "contiguous rows")
    step = v.strides[0] if v.shape[0] > 1 else width
    if step < width:
        raise ValueError(f"{name}: a row stride of {step}, must be at least {width}")
    if stride[0] and stride[0] != step:
        raise ValueError(f"{name}: a row stride of {step}, must be that of cos, {stride[0]}")
    rows[0], stride[0] = v.shape[0], step
    return 0


cdef void* read_place(str name, object x, int64_t width, rope_build_cos_sin_desc* t, rope_apply_desc* d) except? NULL:
    """Where rows go; the first array sets their dtype (where -1), number and stride."""
    if not is_array(x):
        return <void*>read_pointer(x, name, t.num_rows == 0)
    cdef View v
    cdef int32_t element
    read_view(x, name, <uintptr_t>d.stream, &v)
    check_device(name, &v, d)
    if t.dtype < 0 and v.kind == KIND_OPAQUE:
        raise TypeError(f"dtype: required, {name} has a type of two bytes that it does not name")
    for element in range(len(_DTYPES)):
        if t.dtype < 0 and holds(&v, element):
            t.dtype = element
    if t.dtype < 0 or not holds(&v, t.dtype):
        allowed = ", ".join(_DTYPES) if t.dtype < 0 else element_name(t.dtype)
        raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be {allowed}")
    if v.read_only:
        raise ValueError(f"{name}: the array is read-only")
    if is_immutable(x):
        raise TypeError(f"{name}: a jax.Array is immutable and cannot be written")
    check_rows(name, &v, width, 0, &t.num_rows, &t.row_stride)
    return v.data


def build_cos_sin(Rope rope, cos, sin, num_rows, offset, positions, dtype, row_stride, stream):
    if not rope.ready:
        raise RopeError("this Rope was never initialised, or its constructor refused the arguments")
    if not rope.inv_freqs:
        raise ValueError(f"build_cos_sin: not with angle={rope.angle!r}, which has no frequencies")
    cdef rope_apply_desc d = rope.base  # what readers of arguments know the device and the stream by
    cdef rope_build_cos_sin_desc t
    cdef int64_t length
    read_call_stream(stream, &d)
    rope_build_cos_sin_desc_init(&t)
    t.flags, t.backend, t.num_threads, t.stream = d.flags & ROPE_FLAG_PDL, d.backend, d.num_threads, d.stream
    t.angle, t.rotary_dim, t.frequencies, t.attention_factor = d.angle, d.rotary_dim, rope.words, d.attention_factor
    t.dtype = -1 if dtype is None else choose("dtype", dtype, _DTYPES)
    t.num_rows = -1 if num_rows is None else as_count("num_rows", num_rows, 0, (1 << 31) - 1)
    if row_stride is not None:
        if is_array(cos) or is_array(sin):
            raise ValueError("row_stride: only allowed with pointers, an array has its own")
        t.row_stride = as_integer("row_stride", row_stride)
        if t.row_stride < 1:
            raise ValueError(f"row_stride: {row_stride}, must be at least 1")
    t.cos = read_place("cos", cos, t.rotary_dim if sin is None else t.rotary_dim // 2, &t, &d)
    if sin is not None:
        t.sin = read_place("sin", sin, t.rotary_dim // 2, &t, &d)
    if t.num_rows < 0:
        raise TypeError("num_rows: required with pointers")
    if t.dtype < 0:
        t.dtype = ROPE_DTYPE_F32
    t.position_dtype = d.position_dtype
    if positions is not None:
        length = t.num_rows
        t.positions = rope._read_index("positions", positions, &length, &t.position_dtype, &d)
    t.offset = as_integer("offset", offset)
    cdef rope_status status
    with nogil:
        status = rope_build_cos_sin(&t)
    check(status)
