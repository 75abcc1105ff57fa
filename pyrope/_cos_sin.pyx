# cython: language_level=3, freethreading_compatible=True
"""Rows of cosines and sines in the caller's memory: built by a Rope, and read by a FusedRope of angle="cos_sin"."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t

from pyrope._arguments cimport (
    ANGLES, DTYPES, Call, as_count, as_integer, as_positive, begin_call, choose, element_name, holds, name_of,
    read_array, read_elements, read_index, read_memory, refuse, refuse_dtype, refuse_read_only, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._library cimport check
from pyrope._view cimport KIND_INT, KIND_OPAQUE, View, is_array, is_immutable, read_pointer


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


cdef int64_t read_row_stride(str name, object stride, object cos, object sin) except -1:
    if is_array(cos) or is_array(sin):
        raise ValueError(f"{name}: only allowed with pointers, an array has its own")
    return as_positive(name, stride)


cdef void* read_target(str name, object x, int64_t width, rope_build_cos_sin_desc* d, Call* c) except? NULL:
    """Where rows go; the first array sets their dtype (where -1), number and stride."""
    if not is_array(x):
        return <void*>read_pointer(x, name, d.num_rows == 0)
    cdef View v
    cdef int32_t element
    read_array(name, x, c, &v)
    if d.dtype < 0 and v.kind == KIND_OPAQUE:
        raise TypeError(f"dtype: required, {name} has a type of two bytes that it does not name")
    for element in DTYPES.values():
        if d.dtype < 0 and holds(&v, element):
            d.dtype = element
    if d.dtype < 0 or not holds(&v, d.dtype):
        refuse_dtype(name, x, ", ".join(DTYPES) if d.dtype < 0 else element_name(d.dtype))
    refuse_read_only(name, &v)
    if is_immutable(x):
        raise TypeError(f"{name}: a jax.Array is immutable and cannot be written")
    check_rows(name, &v, width, 0, &d.num_rows, &d.row_stride)
    return v.data


cdef int build_rows(cos, sin, num_rows, offset, positions, dtype, row_stride, stream,
                    rope_build_cos_sin_desc* d) except -1:
    """d: what the Rope says."""
    cdef Call c
    cdef int64_t length
    cdef rope_status status
    begin_call(d.backend, stream, None, &c)
    d.stream = c.stream
    d.dtype = -1 if dtype is None else choose("dtype", dtype, DTYPES)
    d.num_rows = -1 if num_rows is None else as_count("num_rows", num_rows, 0, INT32_MAX)
    if row_stride is not None:
        d.row_stride = read_row_stride("row_stride", row_stride, cos, sin)
    d.cos = read_target("cos", cos, d.rotary_dim if sin is None else d.rotary_dim // 2, d, &c)
    if sin is not None:
        d.sin = read_target("sin", sin, d.rotary_dim // 2, d, &c)
    if d.num_rows < 0:
        raise TypeError("num_rows: required with pointers")
    if d.dtype < 0:
        d.dtype = ROPE_DTYPE_F32
    if positions is not None:
        length = d.num_rows
        d.positions = read_index("positions", positions, &length, &d.position_dtype, &c, True)
    d.offset = as_integer("offset", offset)
    with nogil:
        status = rope_build_cos_sin(d)
    return check(status)


_ANGLES = ANGLES | {"cos_sin": ROPE_ANGLE_COS_SIN, "radians": ROPE_ANGLE_COS_SIN + 1}
_COLUMNS = {"pairs": 0, "elements": ROPE_TABLE_ELEMENTS}


cdef str choose_angle(angle, theta, scaling, inv_freq):
    """The name of a FusedRope's angle, and that nothing says what rows do."""
    name = name_of(_ANGLES, choose("angle", angle, _ANGLES))
    if name not in ANGLES and (theta != 10000.0 or scaling is not None or inv_freq is not None):
        refused = "scaling" if scaling is not None else "theta" if inv_freq is None else "inv_freq"
        raise ValueError(f"{refused}: not allowed with angle={name!r}, whose rows come with the call")
    return name


cdef tuple set_table(dtype, columns, str angle, rope_apply_desc* d):
    """The names of a FusedRope's dtype and columns."""
    d.cos_sin.dtype = choose("cos_sin_dtype", dtype, DTYPES)
    d.table_flags = choose("cos_sin_columns", columns, _COLUMNS)
    names = name_of(DTYPES, d.cos_sin.dtype), name_of(_COLUMNS, d.table_flags)
    if angle == "radians":
        d.table_flags |= ROPE_TABLE_RADIANS
        if d.cos_sin.dtype != ROPE_DTYPE_F32:
            raise ValueError(f"cos_sin_dtype: {dtype!r}, must be 'float32' with angle='radians'")
    elif angle != "cos_sin" and d.table_flags:
        raise ValueError("cos_sin_columns: 'elements', only allowed with angle='cos_sin' or 'radians'")
    return names


cdef int64_t fold_rows(str name, View* v, int leading, int64_t* stride) except -1:
    """How many rows the leading dimensions are, and the one stride between them."""
    cdef int64_t rows = 1
    cdef int i
    stride[0] = 0
    for i in range(leading - 1, -1, -1):
        if v.shape[i] == 1:
            continue
        if rows == 1:
            stride[0] = v.strides[i]
        elif rows and v.strides[i] != stride[0] * rows:
            raise ValueError(f"{name}: the leading dimensions do not fold into one dimension of rows")
        rows *= v.shape[i]
    return rows


cdef bint has_sequence_steps(rope_apply_desc* d) noexcept:
    """Whether a tensor has a stride between sequences that is not that of its tokens."""
    return (d.q_steps.sequence or d.k_steps.sequence or d.q_out_steps.sequence or d.k_out_steps.sequence
            or d.v_steps.sequence or d.v_out_steps.sequence or d.q_nope_steps.sequence or d.q_nope_out_steps.sequence
            or d.k_nope_steps.sequence or d.k_nope_out_steps.sequence)


cdef void* read_source(str name, object x, int64_t width, rope_apply_desc* d, rope_cos_sin* table,
                       Call* c) except? NULL:
    """[rows, width], or rows of several dimensions that fold; the first array sets their number and their stride."""
    cdef View v
    cdef int last
    cdef int64_t stride, rows
    if not is_array(x):
        return <void*>read_pointer(x, name, c.num_tokens == 0)
    read_elements(name, x, table.dtype, c, &v)
    if v.ndim > 2:
        last = v.ndim - 1
        rows = fold_rows(name, &v, last, &stride)
        if d.positions or d.indptr:
            pass
        elif v.ndim == 3 and v.shape[0] == 1 and v.shape[1] == c.inner_tokens:
            if not d.offset:
                d.sequence_length = c.inner_tokens  # rows of one sequence for all
        elif rows == c.num_tokens and (v.ndim > 3 or v.shape[0] == 1 or c.inner_tokens in (0, v.shape[1])):
            if d.offset and rows != v.shape[1]:
                raise ValueError(f"offset: {d.offset}, not allowed where {name} has a row for each token of a batch")
            if has_sequence_steps(d):
                raise ValueError(f"{name}: a row for each token of a batch, which must fold into one dimension of "
                                 "tokens; pass positions=numpy.arange(num_tokens) with rows of two dimensions")
            d.sequence_length = 0
        elif rows != v.shape[1]:
            raise ValueError(f"{name}: shape {shape_of(&v)}, must be [rows, columns], or have the leading dimensions "
                             f"of the {c.num_tokens} tokens")
        v.shape[0] = rows
        v.strides[0], v.shape[1], v.strides[1], v.ndim = stride, v.shape[last], v.strides[last], 2
    check_rows(name, &v, width, 1, &table.num_rows, &table.row_stride)
    return v.data


cdef int read_table(str prefix, cos, sin, angles, rope_apply_desc* d, rope_cos_sin* table, Call* c) except -1:
    """What an operand turns by: cosines and sines, or angles."""
    cdef int64_t width = d.rotary_dim if d.table_flags & ROPE_TABLE_ELEMENTS else d.rotary_dim // 2
    if d.table_flags & ROPE_TABLE_RADIANS:
        refuse(prefix + "cos", cos, "not allowed with angle='radians'")
        refuse(prefix + "sin", sin, "not allowed with angle='radians'")
        require(prefix + "angles", angles, "with angle='radians'")
        table.cos = read_source(prefix + "angles", angles, width, d, table, c)
        return 0
    refuse(prefix + "angles", angles, "only allowed with angle='radians'")
    require(prefix + "cos", cos, "with angle='cos_sin'")
    table.cos = read_source(prefix + "cos", cos, width if sin is not None else 2 * width, d, table, c)
    if sin is not None:
        table.sin = read_source(prefix + "sin", sin, width, d, table, c)
    return 0


cdef int read_cos_sin(cos, sin, angles, k_cos, k_sin, k_angles, cos_sin_rows, cos_sin_stride, cos_sin_skipped,
                      rope_apply_desc* d, Call* c) except -1:
    cdef int64_t count = 1
    if d.angle != ROPE_ANGLE_COS_SIN:
        d.cos_sin.dtype = 0
        refuse("cos", cos, "only allowed with angle='cos_sin'")
        refuse("sin", sin, "only allowed with angle='cos_sin'")
        refuse("k_cos", k_cos, "only allowed with angle='cos_sin'")
        refuse("k_sin", k_sin, "only allowed with angle='cos_sin'")
        refuse("cos_sin_rows", cos_sin_rows, "only allowed with angle='cos_sin'")
        refuse("cos_sin_stride", cos_sin_stride, "only allowed with angle='cos_sin'")
        refuse("cos_sin_skipped", cos_sin_skipped, "only allowed with angle='cos_sin'")
        refuse("angles", angles, "only allowed with angle='radians'")
        return refuse("k_angles", k_angles, "only allowed with angle='radians'")
    d.cos_sin.num_rows = -1 if cos_sin_rows is None else as_positive("cos_sin_rows", cos_sin_rows)
    if cos_sin_stride is not None:
        d.cos_sin.row_stride = read_row_stride("cos_sin_stride", cos_sin_stride, cos if angles is None else angles, sin)
    if k_cos is not None or k_sin is not None or k_angles is not None:
        d.k_cos_sin.dtype, d.k_cos_sin.num_rows, d.k_cos_sin.row_stride = (
            d.cos_sin.dtype, d.cos_sin.num_rows, d.cos_sin.row_stride)
    read_table("", cos, sin, angles, d, &d.cos_sin, c)
    if d.cos_sin.num_rows < 0:
        raise TypeError("cos_sin_rows: required with pointers")
    if k_cos is not None or k_sin is not None or k_angles is not None:
        d.k_cos_sin.num_rows = d.cos_sin.num_rows
        read_table("k_", k_cos, k_sin, k_angles, d, &d.k_cos_sin, c)
    if cos_sin_skipped is not None:
        d.cos_sin.num_skipped = <int64_t*>read_memory("cos_sin_skipped", cos_sin_skipped, KIND_INT, 8, &count, "[1]",
                                                      True, c)
    return 0
