# cython: language_level=3, freethreading_compatible=True
"""Where a call's tokens stand in their sequences."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t

from pyrope._arguments cimport (
    Call, as_count, as_integer, index_dtype, read_array, read_index, refuse, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._view cimport View, is_array, read_pointer


cdef int read_positions(positions, offset, indptr, offsets, num_requests, rope_apply_desc* d, Call* c) except -1:
    cdef int64_t length = c.num_tokens
    if positions is not None:
        d.positions = read_index("positions", positions, &length, &d.position_dtype, c)
    elif indptr is not None:
        read_ragged(indptr, offsets, num_requests, d, c)
    if indptr is None and (offsets is not None or num_requests is not None):
        raise ValueError(f"{'num_requests' if offsets is None else 'offsets'}: only allowed with indptr")
    if positions is not None and indptr is not None:
        raise ValueError("indptr: not allowed together with positions")
    d.offset = as_integer("offset", offset)
    return 0


cdef int read_ragged(indptr, offsets, num_requests, rope_apply_desc* d, Call* c) except -1:
    cdef int32_t dtype
    cdef int64_t length = -1
    if num_requests is not None:
        length = as_count("num_requests", num_requests, 1, INT32_MAX)
        length += 1
    d.indptr = read_index("indptr", indptr, &length, &d.position_dtype, c)
    if length < 0:
        raise TypeError("num_requests: required with indptr as a pointer")
    if length < 2:
        raise ValueError(f"indptr: {length} values, must be num_requests + 1, at least 2")
    d.num_requests = length - 1
    if offsets is not None:
        dtype = d.position_dtype
        length = d.num_requests
        d.offsets = read_index("offsets", offsets, &length, &d.position_dtype, c)
        if dtype != d.position_dtype:
            raise TypeError("offsets: must have the dtype of indptr")
    return 0


cdef int read_streams(positions, positions_stride, indptr, offset, rope_apply_desc* d, Call* c) except -1:
    """[sections, num_tokens] positions."""
    cdef View v
    if not d.sections.num_streams:
        return refuse("positions_stride", positions_stride, "only allowed with sections")
    refuse("indptr", indptr, "not allowed with sections")
    if d.offset:
        raise ValueError(f"offset: {offset}, not allowed with sections")
    require("positions", positions, "with sections, [number of sections, num_tokens]")
    if not is_array(positions):
        d.positions = <void*>read_pointer(positions, "positions", c.num_tokens == 0)
        if positions_stride is not None:
            d.sections.stream_stride = as_integer("positions_stride", positions_stride)
            if d.sections.stream_stride == 0:
                raise ValueError("positions_stride: 0, a stride must not be 0")
        return 0
    refuse("positions_stride", positions_stride, "only allowed with pointers, an array has its own")
    read_array("positions", positions, c, &v)
    d.position_dtype = index_dtype("positions", positions, &v)
    if (v.ndim != 2 or v.shape[0] != d.sections.num_streams or v.shape[1] != c.num_tokens
            or (v.shape[1] > 1 and v.strides[1] != 1)):
        raise ValueError(f"positions: shape {shape_of(&v)}, must be [{d.sections.num_streams}, {c.num_tokens}] "
                         "with contiguous rows")
    if v.strides[0] == 0 and c.num_tokens:
        raise ValueError("positions: a broadcast array (stride 0) is not supported")
    d.sections.stream_stride = v.strides[0]
    d.positions = v.data
    return 0


cdef int read_positions_from(positions_from, positions, rope_apply_desc* d, Call* c) except -1:
    cdef int32_t dtype = d.position_dtype
    cdef int64_t length = c.num_tokens
    if positions_from is None:
        return 0
    if d.sections.num_streams:
        raise ValueError("positions_from: not allowed with sections")
    require("positions", positions, "with positions_from")
    d.positions_from = read_index("positions_from", positions_from, &length, &dtype, c)
    if dtype != d.position_dtype:
        raise TypeError("positions_from: must have the dtype of positions")
    return 0
