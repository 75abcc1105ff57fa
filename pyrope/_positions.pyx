# cython: language_level=3, freethreading_compatible=True
"""Where a call's tokens stand in their sequences."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t

from pyrope._arguments cimport (
    Call, as_count, as_integer, index_dtype, read_array, read_index, refuse, refuse_dtype, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._view cimport KIND_FLOAT, KIND_INT, View, is_array, read_pointer


cdef struct Places:
    int64_t length, stride, sequence_stride  # as rope_apply_desc has them


cdef bint fold(View* v, int first, Call* c, Places* p) noexcept:
    """The dimensions from `first` on as tokens of sequences; one of two, of size 1, is repeated for the tensors."""
    cdef int64_t[2] count = [1, 1], stride = [1, 0]  # of tokens, of sequences
    cdef int64_t size
    cdef int i, level = 0
    if v.ndim - first == 2 and c.inner_tokens:
        for i in range(2):
            size = c.inner_tokens if i else c.num_tokens // c.inner_tokens
            if v.shape[first + i] == 1 and size != 1:
                v.shape[first + i], v.strides[first + i] = size, 0
            if v.shape[first + i] != size:
                return False
    for i in range(v.ndim - 1, first - 1, -1):
        size = v.shape[i]
        if size == 1:
            continue
        if count[level] > 1 and v.strides[i] != stride[level] * count[level]:
            level += 1
            if level == 2:
                return False
        if count[level] == 1:
            stride[level] = v.strides[i]
        count[level] *= size
        if v.strides[i] < 0:
            return False
    p.length = count[0] if level else 0
    p.stride = 0 if stride[0] == 1 else stride[0] if stride[0] else ROPE_BROADCAST
    p.sequence_stride = 0 if not level else stride[1] if stride[1] else ROPE_BROADCAST
    return count[0] * count[1] == c.num_tokens


cdef void* read_array_of_positions(str name, object x, rope_apply_desc* d, Call* c, int32_t* dtype, Places* p,
                                   int64_t* stream_stride) except? NULL:
    """[num_tokens], or with sections [streams, num_tokens]; the tokens may have dimensions that fold into two."""
    cdef View v
    cdef int streams = d.sections.num_streams, first = streams > 0
    read_array(name, x, c, &v)
    if v.kind == KIND_FLOAT and v.itemsize == 4 and d.angle != ROPE_ANGLE_COS_SIN:
        dtype[0] = ROPE_INDEX_FLOAT32
    elif v.kind == KIND_INT and v.itemsize in (4, 8):
        dtype[0] = index_dtype(name, x, &v)
    else:
        refuse_dtype(name, x, "int32 or int64, of rows" if d.angle == ROPE_ANGLE_COS_SIN else "int32, int64 or float32")
    shape = shape_of(&v)
    if v.ndim == 1 and not streams and not c.inner_tokens and v.shape[0] != c.num_tokens:
        raise ValueError(f"{name}: {c.num_tokens} are needed, one a token; got {v.shape[0]}")
    if v.ndim <= first or (streams and v.shape[0] != streams) or not fold(&v, first, c, p):
        rows = f"[{streams}, " if streams else "["
        batch = f" or {rows}{c.num_tokens // c.inner_tokens} or 1, {c.inner_tokens} or 1]" if c.inner_tokens else ""
        raise ValueError(f"{name}: shape {shape}, must be {rows}{c.num_tokens}]{batch}, with strides of 0 or more that "
                         "fold into two")
    if streams:
        if v.strides[0] == 0 and c.num_tokens:
            raise ValueError(f"{name}: a broadcast array (stride 0) is not supported for sections")
        stream_stride[0] = v.strides[0]
    return v.data


cdef int set_positions(positions, rope_apply_desc* d, Call* c) except -1:
    cdef Places p
    if not is_array(positions):
        d.positions = <void*>read_pointer(positions, "positions", c.num_tokens == 0)
        return 0
    d.positions = read_array_of_positions("positions", positions, d, c, &d.position_dtype, &p,
                                          &d.sections.stream_stride)
    if c.num_tokens == 0:
        return 0
    d.position_stride, d.position_sequence_stride = p.stride, p.sequence_stride
    if p.length:
        if c.sequence_length not in (0, p.length):
            raise ValueError(f"positions: of sequences of {p.length} tokens, must be of {c.sequence_length} as "
                             "sequence_length or the other arguments")
        d.sequence_length = c.sequence_length = p.length
    return 0


cdef int read_positions(positions, offset, indptr, offsets, num_requests, rope_apply_desc* d, Call* c) except -1:
    if positions is not None:
        set_positions(positions, d, c)
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
    if not d.sections.num_streams:
        return refuse("positions_stride", positions_stride, "only allowed with sections")
    refuse("indptr", indptr, "not allowed with sections")
    if d.offset:
        raise ValueError(f"offset: {offset}, not allowed with sections")
    require("positions", positions, "with sections, [number of sections, num_tokens]")
    set_positions(positions, d, c)
    if positions_stride is not None:
        if is_array(positions):
            raise ValueError("positions_stride: only allowed with pointers, an array has its own")
        d.sections.stream_stride = as_integer("positions_stride", positions_stride)
        if d.sections.stream_stride == 0:
            raise ValueError("positions_stride: 0, a stride must not be 0")
    return 0


cdef int read_positions_from(positions_from, positions, rope_apply_desc* d, Call* c) except -1:
    cdef int32_t dtype = d.position_dtype
    cdef Places p
    if positions_from is None:
        return 0
    if d.sections.num_streams:
        raise ValueError("positions_from: not allowed with sections")
    require("positions", positions, "with positions_from")
    if not is_array(positions_from):
        d.positions_from = <void*>read_pointer(positions_from, "positions_from", c.num_tokens == 0)
        return 0
    d.positions_from = read_array_of_positions("positions_from", positions_from, d, c, &dtype, &p, NULL)
    if dtype != d.position_dtype:
        raise TypeError("positions_from: must have the dtype of positions")
    if c.num_tokens and (p.length != d.sequence_length or p.stride != d.position_stride
                         or p.sequence_stride != d.position_sequence_stride):
        raise ValueError("positions_from: must have the strides of positions")
    return 0


cdef int read_all_positions(positions, offset, indptr, offsets, num_requests, positions_stride, positions_from,
                            rope_apply_desc* d, Call* c) except -1:
    """A FusedRope's, whose tokens may have several."""
    read_positions(None if d.sections.num_streams else positions, offset, indptr, offsets, num_requests, d, c)
    read_streams(positions, positions_stride, indptr, offset, d, c)
    return read_positions_from(positions_from, positions, d, c)
