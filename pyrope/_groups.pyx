# cython: language_level=3, freethreading_compatible=True
"""Scales for groups of a row's elements: what pyrope.FusedRope's constructor (set_*) and calls (read_*) are given."""

from libc.stdint cimport int64_t
from libc.string cimport memset

from pyrope._arguments cimport (
    ONE_BYTE, Call, as_count, as_integer, as_scale, choose, is_scale, read_elements, read_memory, refuse,
    refuse_read_only, refuse_small, shape_of,
)
from pyrope._cache cimport read_paged, set_strides
from pyrope._capi cimport *
from pyrope._view cimport KIND_FLOAT, View, is_array, read_pointer

_SCALE_DTYPES = {
    "float32": ROPE_GROUP_SCALE_F32, "float8_e8m0fnu": ROPE_GROUP_SCALE_E8M0, "float8_e4m3fn": ROPE_GROUP_SCALE_E4M3,
}


cdef int set_groups(str x, scales, int64_t dim, rope_groups* g) except -1:
    g.size = as_count("size", scales.size, 1, ROPE_MAX_FUSED_HEAD_DIM)
    if g.size not in (16, 32, 64, 128) or dim % g.size:
        raise ValueError(f"size: {scales.size}, must be 16, 32, 64 or 128 and divide the {dim} elements of a head of "
                         f"{x}")
    g.scale_dtype = choose("dtype", scales.dtype, _SCALE_DTYPES)
    if scales.strides is not None and not isinstance(scales.strides, (tuple, list)):
        raise TypeError(f"strides: {scales.strides!r}, must be a tuple of integers")
    return 0


cdef int read_groups(str name, object x, str tensor_name, object tensor_scale, object strides, int64_t heads,
                     int64_t dim, bint in_cache, bint heads_first, rope_groups* g, rope_apply_desc* d,
                     Call* c) except -1:
    """The scales that are written, and NVFP4's of the tensor."""
    read_scales(name, x, strides, heads, dim // g.size, in_cache, heads_first, g, d, c)
    if g.scale_dtype != ROPE_GROUP_SCALE_E4M3:
        return refuse(tensor_name, tensor_scale, "only allowed with GroupScales of float8_e4m3fn")
    return read_tensor_scale(tensor_name, tensor_scale, g, c)


cdef int read_scales(str name, object x, strides, int64_t heads, int64_t row, bint in_cache, bint heads_first,
                     rope_groups* g, rope_apply_desc* d, Call* c) except -1:
    """[tokens, heads, row]; in a cache pages as those of the codes."""
    cdef View v
    cdef rope_cache_tensor pages
    memset(&pages, 0, sizeof(pages))
    if in_cache:
        set_strides("strides", strides, heads, row, heads_first, d.cache.page_size, &pages)
    elif strides is not None:
        if len(strides) != 2:
            raise ValueError(f"strides: {strides!r}, must be (token stride, head stride) in elements of the scales")
        pages.entry_stride, pages.head_stride = as_integer("strides", strides[0]), as_integer("strides", strides[1])
    if not is_array(x):
        g.scales = <void*>read_pointer(x, name, c.num_tokens == 0)
    else:
        read_elements(name, x, ROPE_DTYPE_F32 if g.scale_dtype == ROPE_GROUP_SCALE_F32 else ONE_BYTE, c, &v)
        refuse_read_only(name, &v)
        if in_cache:
            read_paged(name, &v, heads, row, heads_first, &pages, d)
        else:
            if v.ndim != 3 or shape_of(&v) != (c.num_tokens, heads, row) or (row > 1 and v.strides[2] != 1):
                raise ValueError(f"{name}: shape {shape_of(&v)}, must be {[c.num_tokens, heads, row]} with contiguous "
                                 "rows")
            if c.num_tokens > 1:
                pages.entry_stride = v.strides[0]
            if heads > 1:
                pages.head_stride = v.strides[1]
        g.scales = v.data
    g.page_stride, g.row_stride, g.head_stride = pages.page_stride, pages.entry_stride, pages.head_stride
    return 0


cdef int read_tensor_scale(str name, object x, rope_groups* g, Call* c) except -1:
    """A number, or memory of one float32."""
    cdef int64_t count = 1
    if x is None:
        return 0
    if not is_scale(x):
        refuse_small(name, x)
        g.tensor_scales = <float*>read_memory(name, x, KIND_FLOAT, 4, &count, "[1]", False, c)
        return 0
    g.tensor_scale = as_scale(name, x)
    return 0
