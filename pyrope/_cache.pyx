# cython: language_level=3, freethreading_compatible=True
"""The KV cache of a pyrope.FusedRope: its shape, which the constructor is given, and where it is, given by a call."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from pyrope._arguments cimport (
    INDEX_DTYPES, Call, as_count, as_flag, as_integer, as_positive, choose, read_array, read_elements,
    read_index, read_memory, refuse, refuse_dtype, refuse_read_only, require, shape_of, stored_units,
)
from pyrope._capi cimport *
from pyrope._tensors cimport k_element, stored_element
from pyrope._view cimport KIND_INT, View, is_array, read_pointer

from pyrope.stages import PagedCache

_LAYOUTS = {"NHD": False, "HND": True}


cdef bint set_cache(cache, int num_v_heads, int v_head_dim, int k_nope_dim, rope_apply_desc* d) except -1:
    """Whether heads come before the entries of a page."""
    if not isinstance(cache, PagedCache):
        raise TypeError(f"cache: {cache!r} is not a pyrope.PagedCache")
    d.cache.page_size = as_count("page_size", cache.page_size, 1, ROPE_MAX_PAGE_SIZE)
    d.cache.num_pages = as_positive("num_pages", cache.num_pages)
    d.cache.index_dtype = choose("index_dtype", cache.index_dtype, INDEX_DTYPES)
    cdef bint heads_first = choose("layout", cache.layout, _LAYOUTS)
    cdef int64_t k_row = stored_units(d.k_quantize.out_dtype, d.head_dim)
    cdef int64_t v_row = stored_units(d.v_quantize.out_dtype, v_head_dim)
    cdef int64_t k_nope_row = stored_units(d.k_quantize.out_dtype, k_nope_dim)
    set_strides("k_strides", cache.k_strides, d.num_k_heads, k_row, heads_first, d.cache.page_size, &d.cache.k)
    set_strides("v_strides", cache.v_strides, num_v_heads, v_row, heads_first, d.cache.page_size, &d.cache.v)
    set_strides("k_nope_strides", cache.k_nope_strides, d.num_k_heads, k_nope_row, heads_first, d.cache.page_size,
                &d.cache_k_nope)
    d.cache.skips_tokens = as_flag("skip_q", cache.skip_q)
    return heads_first


cdef int set_strides(str name, strides, int64_t heads, int64_t dim, bint heads_first, int64_t page_size,
                     rope_cache_tensor* pages) except -1:
    if strides is None:
        pages.page_stride = page_size * heads * dim
        pages.entry_stride = dim if heads_first else heads * dim
        pages.head_stride = page_size * dim if heads_first else dim
        return 0
    if not isinstance(strides, (tuple, list)) or len(strides) != 3:
        raise TypeError(f"{name}: {strides!r}, must be (page stride, entry stride, head stride) in elements")
    pages.page_stride = as_integer(name, strides[0])
    pages.entry_stride = as_integer(name, strides[1])
    pages.head_stride = as_integer(name, strides[2])
    for stride in strides:
        if stride < dim:
            raise ValueError(f"{name}: {tuple(strides)!r}, each must be at least a row of a head, {dim}")
    return 0


cdef int begin_rotate_cache(k_cache, slots, bint cache, rope_apply_desc* d) except -1:
    """What a call on the keys in the cache leaves of a FusedRope's stages."""
    if not cache:
        raise ValueError("k_cache: only allowed with cache=pyrope.PagedCache(...)")
    if d.norm.after:
        raise ValueError("norm: after=True, not allowed with rotate_cache: behind a norm keys cannot be turned")
    if d.table_flags:
        raise ValueError("angle: rows of radians or of elements, not allowed with rotate_cache")
    require("k_cache", k_cache, "with rotate_cache")
    d.flags |= ROPE_FLAG_IN_CACHE
    d.dtype, d.k_dtype = k_element(d), ROPE_OUT_SAME
    d.cache.kind = ROPE_CACHE_PAGES if slots is None else ROPE_CACHE_SLOTS
    memset(&d.norm, 0, sizeof(d.norm))
    memset(&d.norm_sums, 0, sizeof(d.norm_sums))
    memset(&d.q_quantize, 0, sizeof(d.q_quantize))
    memset(&d.v_quantize, 0, sizeof(d.v_quantize))
    return 0


cdef int read_num_tokens(slots, cache_positions, Call* c) except -1:
    """num_tokens, where an array of one index a token brings it."""
    cdef View v
    cdef str name = "cache_positions" if slots is None else "slots"
    cdef object x = cache_positions if slots is None else slots
    if c.num_tokens < 0 and is_array(x):
        read_array(name, x, c, &v)
        if v.ndim != 1:
            raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous [num_tokens]")
        c.num_tokens = v.shape[0]
    if c.num_tokens < 0:
        raise TypeError("num_tokens: required with pointers")
    return 0


cdef int read_cache(k, v, k_nope, k_cache, v_cache, k_nope_cache, slots, page_table, page_indptr,
                    page_table_stride, request_ids, cache_positions, cache_skipped, cache, bint heads_first,
                    rope_apply_desc* d, Call* c) except -1:
    """The pages of each tensor that there is, and the place of every token in them."""
    cdef int64_t count = 1
    cdef str reason
    if not d.cache.kind:
        reason = "only allowed with cache=pyrope.PagedCache(...)" if cache is None else "given without k and v"
        refuse("k_cache", k_cache, reason)
        refuse("v_cache", v_cache, reason)
        refuse("k_nope_cache", k_nope_cache, reason)
        refuse("slots", slots, reason)
        refuse("page_table", page_table, reason)
        refuse("page_indptr", page_indptr, reason)
        refuse("page_table_stride", page_table_stride, reason)
        refuse("request_ids", request_ids, reason)
        refuse("cache_positions", cache_positions, reason)
        return refuse("cache_skipped", cache_skipped, reason)
    if k is not None:
        require("k_cache", k_cache, "with k and a cache")
        read_pages("k_cache", k_cache, d.num_k_heads, d.head_dim, d.k_quantize.out_dtype, heads_first, &d.cache.k, d, c)
    else:
        refuse("k_cache", k_cache, "given without k")
        memset(&d.cache.k, 0, sizeof(d.cache.k))
    if v is not None:
        require("v_cache", v_cache, "with v and a cache")
        read_pages("v_cache", v_cache, d.num_v_heads, d.v_head_dim, d.v_quantize.out_dtype, heads_first, &d.cache.v, d,
                   c)
    else:
        refuse("v_cache", v_cache, "given without v")
        memset(&d.cache.v, 0, sizeof(d.cache.v))
    if k_nope is not None:
        require("k_nope_cache", k_nope_cache, "with k_nope and a cache")
        read_pages("k_nope_cache", k_nope_cache, d.num_k_heads, d.k_nope_dim, d.k_quantize.out_dtype, heads_first,
                   &d.cache_k_nope, d, c)
    else:
        refuse("k_nope_cache", k_nope_cache, "given without k_nope")
        memset(&d.cache_k_nope, 0, sizeof(d.cache_k_nope))
    if d.cache.kind == ROPE_CACHE_SLOTS:
        refuse("page_table", page_table, "not allowed together with slots")
        refuse("page_indptr", page_indptr, "not allowed together with slots")
        refuse("page_table_stride", page_table_stride, "not allowed together with slots")
        refuse("request_ids", request_ids, "not allowed together with slots")
        refuse("cache_positions", cache_positions, "not allowed together with slots")
        count = c.num_tokens
        d.cache.slots = read_index("slots", slots, &count, &d.cache.index_dtype, c)
    else:
        read_entries(page_table, page_indptr, page_table_stride, request_ids, cache_positions, d, c)
    if cache_skipped is not None:
        count = 1
        d.cache.num_skipped = <int64_t*>read_memory("cache_skipped", cache_skipped, KIND_INT, 8, &count, "[1]", True, c)
    return 0


cdef int read_pages(str name, object x, int64_t heads, int64_t dim, int32_t out_dtype, bint heads_first,
                    rope_cache_tensor* pages, rope_apply_desc* d, Call* c) except -1:
    cdef View v
    dim = stored_units(out_dtype, dim)
    if heads == 0:
        raise ValueError(f"{name}: given, but the Rope has num_{name[0]}_heads=0")
    if not is_array(x):
        pages.data = <void*>read_pointer(x, name, c.num_tokens == 0)
        return 0
    read_elements(name, x, stored_element(out_dtype, k_element(d)), c, &v)
    refuse_read_only(name, &v)
    read_paged(name, &v, heads, dim, heads_first, pages, d)
    pages.data = v.data
    return 0


cdef int read_paged(str name, View* v, int64_t heads, int64_t dim, bint heads_first, rope_cache_tensor* pages,
                    rope_apply_desc* d) except -1:
    """The strides of [num_pages, page_size, heads, dim], or with heads first; that of one head may be missing."""
    cdef int entry = 2 if heads_first and v.ndim == 4 else 1, head = 3 - entry
    cdef int last = v.ndim - 1
    cdef bint right = v.ndim == 4 and v.shape[head] == heads or v.ndim == 3 and heads == 1
    if not (right and v.shape[0] == d.cache.num_pages and v.shape[entry] == d.cache.page_size
            and v.shape[last] == dim):
        shape = [d.cache.num_pages, d.cache.page_size, heads, dim]
        if heads_first:
            shape[1:3] = heads, d.cache.page_size
        raise ValueError(f"{name}: shape {shape_of(v)}, must be {shape}")
    if v.strides[last] != 1 and dim > 1:
        raise ValueError(f"{name}: the last dimension has stride {v.strides[last]}, must be contiguous (1)")
    # A stride means nothing in a dimension of one.
    if v.shape[0] > 1:
        pages.page_stride = v.strides[0]
    if v.shape[entry] > 1:
        pages.entry_stride = v.strides[entry]
    if heads > 1:
        pages.head_stride = v.strides[head]
    return 0


cdef int read_entries(page_table, page_indptr, page_table_stride, request_ids, cache_positions, rope_apply_desc* d,
                      Call* c) except -1:
    """The place of every token by its request and its position there."""
    cdef int64_t count = c.num_tokens
    if page_table is None:
        raise TypeError("slots and page_table: both None, one of them is required with a cache")
    require("request_ids", request_ids, "with page_table")
    require("cache_positions", cache_positions, "with page_table")
    d.cache.cache_positions = read_index("cache_positions", cache_positions, &count, &d.cache.index_dtype, c)
    d.cache.request_ids = <int32_t*>read_memory("request_ids", request_ids, KIND_INT, 4, &count, "[num_tokens]", False,
                                                c)
    if page_indptr is not None:
        refuse("page_table_stride", page_table_stride, "not allowed together with page_indptr")
        count = -1
        d.cache.page_indptr = <int32_t*>read_memory("page_indptr", page_indptr, KIND_INT, 4, &count,
                                                    "[num_requests + 1]", False, c)
        count = -1
        d.cache.page_table = <int32_t*>read_memory("page_table", page_table, KIND_INT, 4, &count, "[pages]", False, c)
        return 0
    return read_page_table(page_table, page_table_stride, d, c)


cdef int read_page_table(page_table, page_table_stride, rope_apply_desc* d, Call* c) except -1:
    """[num_requests, pages]."""
    cdef View v
    if not is_array(page_table):
        require("page_table_stride", page_table_stride, "with page_table as a pointer and without page_indptr")
        d.cache.page_table = <int32_t*>read_pointer(page_table, "page_table", c.num_tokens == 0)
        d.cache.page_table_stride = as_positive("page_table_stride", page_table_stride)
        return 0
    refuse("page_table_stride", page_table_stride, "only allowed with pointers, an array has its own")
    read_array("page_table", page_table, c, &v)
    if v.kind != KIND_INT or v.itemsize != 4:
        refuse_dtype("page_table", page_table, "int32")
    if v.ndim != 2 or (v.shape[1] > 1 and v.strides[1] != 1) or (v.shape[0] > 1 and v.strides[0] < v.shape[1]):
        raise ValueError(f"page_table: shape {shape_of(&v)}, must be [num_requests, pages] with contiguous "
                         "rows, or [pages] with page_indptr")
    d.cache.page_table = <int32_t*>v.data
    d.cache.page_table_stride = v.strides[0] if v.shape[0] > 1 else max(v.shape[1], 1)
    return 0


cdef int read_check(object check, rope_apply_desc* d) except -1:
    """Whether a place outside is an error: where it is asked for, and on the CPU where nobody counts."""
    if check is None:
        check = bool(d.cache.kind and d.backend == ROPE_BACKEND_CPU and d.cache.num_skipped == NULL)
    elif not d.cache.kind:
        refuse("check", check, "only allowed with a cache, and k or v")
    if as_flag("check", check):
        d.flags |= ROPE_FLAG_CHECK_PLACES
    return 0
