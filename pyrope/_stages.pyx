# cython: language_level=3, freethreading_compatible=True
"""What a call of pyrope.FusedRope gives its stages: weights, scales, caches, rows of cos and sin, sets of frequencies, read and checked."""

from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t

from pyrope._capi cimport *
from pyrope._core cimport ONE_BYTE, as_count, as_integer, as_real, check_device, element_name, holds, shape_of
from pyrope._cos_sin cimport check_rows
from pyrope._view cimport KIND_FLOAT, KIND_INT, KIND_UINT, ElementKind, View, is_array, read_pointer, read_view


cdef int refuse(str name, object value, str reason) except -1:
    if value is not None:
        raise ValueError(f"{name}: {reason}")
    return 0


cdef int require(str name, object value, str reason) except -1:
    if value is None:
        raise TypeError(f"{name}: required {reason}")
    return 0


cdef bint is_scale(object x):
    """Whether x is a number rather than memory: a float in whatever form. An integer is an address."""
    if type(x) is float:
        return True
    if type(x) is int or not hasattr(x, "__float__") or is_array(x):
        return False
    return not hasattr(x, "__index__") or getattr(getattr(x, "dtype", None), "kind", None) == "f"


cdef int read_elements(str name, object x, int32_t element, rope_apply_desc* d, View* v) except -1:
    """An array of that dtype."""
    read_view(x, name, <uintptr_t>d.stream, v)
    check_device(name, v, d)
    if not holds(v, element):
        raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be {element_name(element)}")
    return 0


cdef bint is_contiguous(View* v) noexcept:
    """Whether elements follow each other; true of an array without any."""
    cdef int64_t total = 1
    cdef bint contiguous = True
    cdef int i
    for i in range(v.ndim - 1, -1, -1):
        contiguous = contiguous and (v.shape[i] == 1 or v.strides[i] == total)
        total *= v.shape[i]
    return contiguous or total == 0


cdef void* read_memory(str name, object x, ElementKind kind, int itemsize, int64_t* count, str shape, bint written,
                       rope_apply_desc* d) except? NULL:
    """A pointer to `count` elements; -1 becomes what an array has."""
    if not is_array(x):
        return <void*>read_pointer(x, name, d.num_tokens == 0)
    cdef View v
    cdef int64_t total = 1
    cdef int i
    read_view(x, name, <uintptr_t>d.stream, &v)
    check_device(name, &v, d)
    if v.itemsize != itemsize or v.kind != kind:
        raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be "
                        f"{ {KIND_INT: 'int', KIND_UINT: 'uint', KIND_FLOAT: 'float'}[kind]}{8 * itemsize}")
    for i in range(v.ndim):
        total *= v.shape[i]
    if (count[0] >= 0 and total != count[0]) or not is_contiguous(&v):
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous {shape}"
                         + (f", {count[0]} elements" if count[0] >= 0 else ""))
    if written and v.read_only:
        raise ValueError(f"{name}: the array is read-only")
    count[0] = total
    return v.data


cdef void* read_weight(str name, object x, int64_t heads, rope_apply_desc* d) except? NULL:
    if not is_array(x):
        return <void*>read_pointer(x, name, d.num_tokens == 0)
    cdef View v
    read_elements(name, x, ROPE_DTYPE_F32 if d.norm.weight_is_f32 else d.dtype, d, &v)
    shape = [d.head_dim]
    if d.norm.across_heads:
        shape = [heads * d.head_dim] if v.ndim == 1 else [heads, d.head_dim]
    if list(shape_of(&v)) != shape or not is_contiguous(&v):
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous {shape}")
    return v.data


cdef int read_scale(str name, object x, rope_quantize* z, str kind, int64_t heads, bint in_cache,
                    rope_apply_desc* d) except -1:
    cdef int64_t count = 1
    cdef str shape = "[1]"
    if not z.out_dtype:
        return refuse(name, x, f"only allowed with {name[0]} and {name[0]}_out_dtype")
    if x is None:
        if kind is not None:
            raise TypeError(f"{name}: required with {name}_kind={kind!r}")
        z.scale_kind = ROPE_SCALE_HOST
        return 0
    if is_scale(x):
        if z.scale_kind == ROPE_SCALE_DYNAMIC:
            raise TypeError(f"{name}: {x!r}, must be memory that the scales are written to ({name}_kind='dynamic')")
        z.scale_kind = ROPE_SCALE_HOST
        z.scale = <float>as_real(name, x)
        if not 0 < z.scale < 3.4028236e38 or 1.0 / z.scale > 3.4028236e38:
            raise ValueError(f"{name}: {x!r}, must be above 0 and finite as a float32, as must its reciprocal")
        return 0
    if z.scale_kind == ROPE_SCALE_HEAD:
        count, shape = heads, "[heads]"
    elif z.scale_kind == ROPE_SCALE_TOKEN:
        count, shape = d.num_tokens, "[num_tokens]"
    elif z.scale_kind == ROPE_SCALE_DYNAMIC:
        count = heads * (d.cache.num_pages * d.cache.page_size if in_cache else d.num_tokens)
        shape = "[num_pages * page_size, heads]" if in_cache else "[num_tokens, heads]"
    if isinstance(x, int) and 0 < x < 4096:
        raise TypeError(f"{name}: {x!r} is an integer, which would be an address; pass {float(x)!r}")
    z.scales = <float*>read_memory(name, x, KIND_FLOAT, 4, &count, shape, z.scale_kind == ROPE_SCALE_DYNAMIC, d)
    return 0


cdef int read_pages(str name, object x, int64_t heads, int64_t dim, bint quantised, bint heads_first,
                    rope_apply_desc* d, rope_cache_tensor* pages) except -1:
    cdef View v
    if heads == 0:
        raise ValueError(f"{name}: given, but the Rope has num_{name[0]}_heads=0")
    if not is_array(x):
        pages.data = <void*>read_pointer(x, name, d.num_tokens == 0)
        return 0
    read_elements(name, x, ONE_BYTE if quantised else d.dtype, d, &v)
    if v.read_only:
        raise ValueError(f"{name}: the array is read-only")
    cdef int entry = 2 if heads_first and v.ndim == 4 else 1, head = 3 - entry
    cdef int last = v.ndim - 1
    cdef bint right = v.ndim == 4 and v.shape[head] == heads or v.ndim == 3 and heads == 1
    if not (right and v.shape[0] == d.cache.num_pages and v.shape[entry] == d.cache.page_size
            and v.shape[last] == dim):
        shape = [d.cache.num_pages, d.cache.page_size, heads, dim]
        if heads_first:
            shape[1:3] = heads, d.cache.page_size
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be {shape}")
    if v.strides[last] != 1 and dim > 1:
        raise ValueError(f"{name}: the last dimension has stride {v.strides[last]}, must be contiguous (1)")
    # A stride means nothing in a dimension of one.
    if v.shape[0] > 1:
        pages.page_stride = v.strides[0]
    if v.shape[entry] > 1:
        pages.entry_stride = v.strides[entry]
    if heads > 1:
        pages.head_stride = v.strides[head]
    pages.data = v.data
    return 0


cdef int read_page_table(page_table, page_indptr, page_table_stride, rope_apply_desc* d) except -1:
    cdef View v
    cdef int64_t count = -1
    if page_indptr is not None:
        refuse("page_table_stride", page_table_stride, "not allowed together with page_indptr")
        d.cache.page_indptr = <int32_t*>read_memory("page_indptr", page_indptr, KIND_INT, 4, &count,
                                                    "[num_requests + 1]", False, d)
        count = -1
        d.cache.page_table = <int32_t*>read_memory("page_table", page_table, KIND_INT, 4, &count, "[pages]", False,
                                                   d)
        return 0
    if not is_array(page_table):
        require("page_table_stride", page_table_stride, "with page_table as a pointer and without page_indptr")
        d.cache.page_table = <int32_t*>read_pointer(page_table, "page_table", d.num_tokens == 0)
        d.cache.page_table_stride = as_integer("page_table_stride", page_table_stride)
        if d.cache.page_table_stride < 1:
            raise ValueError(f"page_table_stride: {page_table_stride}, must be at least 1")
        return 0
    refuse("page_table_stride", page_table_stride, "only allowed with pointers, an array has its own")
    read_view(page_table, "page_table", <uintptr_t>d.stream, &v)
    check_device("page_table", &v, d)
    if v.kind != KIND_INT or v.itemsize != 4:
        raise TypeError(f"page_table: dtype {getattr(page_table, 'dtype', 'unknown')}, must be int32")
    if v.ndim != 2 or (v.shape[1] > 1 and v.strides[1] != 1) or (v.shape[0] > 1 and v.strides[0] < v.shape[1]):
        raise ValueError(f"page_table: shape {shape_of(&v)}, must be [num_requests, pages] with contiguous "
                         "rows, or [pages] with page_indptr")
    d.cache.page_table = <int32_t*>v.data
    d.cache.page_table_stride = v.strides[0] if v.shape[0] > 1 else max(v.shape[1], 1)
    return 0


cdef int read_cos_sin(cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped, rope_apply_desc* d) except -1:
    cdef int64_t count = 1
    if d.angle != ROPE_ANGLE_COS_SIN:
        d.cos_sin.dtype = 0
        refuse("cos", cos, "only allowed with angle='cos_sin'")
        refuse("sin", sin, "only allowed with angle='cos_sin'")
        refuse("cos_sin_rows", cos_sin_rows, "only allowed with angle='cos_sin'")
        refuse("cos_sin_stride", cos_sin_stride, "only allowed with angle='cos_sin'")
        return refuse("cos_sin_skipped", cos_sin_skipped, "only allowed with angle='cos_sin'")
    require("cos", cos, "with angle='cos_sin'")
    d.cos_sin.num_rows = -1
    if cos_sin_rows is not None:
        d.cos_sin.num_rows = as_integer("cos_sin_rows", cos_sin_rows)
        if d.cos_sin.num_rows < 1:
            raise ValueError(f"cos_sin_rows: {cos_sin_rows}, must be at least 1")
    if cos_sin_stride is not None:
        if is_array(cos) or is_array(sin):
            raise ValueError("cos_sin_stride: only allowed with pointers, an array has its own")
        d.cos_sin.row_stride = as_integer("cos_sin_stride", cos_sin_stride)
        if d.cos_sin.row_stride < 1:
            raise ValueError(f"cos_sin_stride: {cos_sin_stride}, must be at least 1")
    d.cos_sin.cos = read_rows("cos", cos, d.rotary_dim if sin is None else d.rotary_dim // 2, d)
    if sin is not None:
        d.cos_sin.sin = read_rows("sin", sin, d.rotary_dim // 2, d)
    if d.cos_sin.num_rows < 0:
        raise TypeError("cos_sin_rows: required with pointers")
    if cos_sin_skipped is not None:
        d.cos_sin.num_skipped = <int64_t*>read_memory("cos_sin_skipped", cos_sin_skipped, KIND_INT, 8, &count, "[1]",
                                                      True, d)
    return 0


cdef void* read_rows(str name, object x, int64_t width, rope_apply_desc* d) except? NULL:
    """Rows of cosines or sines; the first array sets their number and stride."""
    if not is_array(x):
        return <void*>read_pointer(x, name, d.num_tokens == 0)
    cdef View v
    read_elements(name, x, d.cos_sin.dtype, d, &v)
    check_rows(name, &v, width, 1, &d.cos_sin.num_rows, &d.cos_sin.row_stride)
    return v.data


cdef int read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from,
                     rope_apply_desc* d) except -1:
    cdef int64_t count = -1
    cdef int pairs = d.rotary_dim // 2
    if frequency_sets is None:
        refuse("set_ids", set_ids, "only allowed with frequency_sets")
        refuse("set_ids_from", set_ids_from, "only allowed with frequency_sets")
        refuse("set_factors", set_factors, "only allowed with frequency_sets")
        return refuse("num_sets", num_sets, "only allowed with frequency_sets")
    if d.angle == ROPE_ANGLE_COS_SIN:
        raise ValueError("frequency_sets: not allowed with angle='cos_sin'")
    require("set_ids", set_ids, "with frequency_sets")
    if positions_from is None:
        refuse("set_ids_from", set_ids_from, "only allowed with positions_from")
    if num_sets is not None:
        d.frequency_sets.num_sets = as_count("num_sets", num_sets, 1, (1 << 31) - 1)
        count = <int64_t>d.frequency_sets.num_sets * pairs
    d.frequency_sets.words = <uint64_t*>read_memory("frequency_sets", frequency_sets, KIND_UINT, 8, &count,
                                           "[num_sets, rotary_dim / 2]", False, d)
    if count < 0:
        raise TypeError("num_sets: required with frequency_sets as a pointer")
    if count == 0 or count % pairs:
        raise ValueError(f"frequency_sets: {count} elements, must be [num_sets, rotary_dim / 2 = {pairs}]")
    d.frequency_sets.num_sets = <int32_t>(count // pairs)
    count = d.num_tokens
    d.frequency_sets.ids = <int32_t*>read_memory("set_ids", set_ids, KIND_INT, 4, &count, "[num_tokens]", False, d)
    if set_ids_from is not None:
        d.frequency_sets.ids_from = <int32_t*>read_memory("set_ids_from", set_ids_from, KIND_INT, 4, &count,
                                                "[num_tokens]", False, d)
    if set_factors is not None:
        count = d.frequency_sets.num_sets
        d.frequency_sets.factors = <float*>read_memory("set_factors", set_factors, KIND_FLOAT, 4, &count, "[num_sets]",
                                             False, d)
    return 0
