# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_cache_tensor
from pyrope._view cimport View

cdef bint set_cache(cache, int num_v_heads, int v_head_dim, int k_nope_dim, rope_apply_desc* d) except -1
cdef int set_strides(str name, strides, int64_t heads, int64_t dim, bint heads_first, int64_t page_size,
                     rope_cache_tensor* pages) except -1
cdef int read_paged(str name, View* v, int64_t heads, int64_t dim, bint heads_first, rope_cache_tensor* pages,
                    rope_apply_desc* d) except -1
cdef int read_pages(str name, object x, int64_t heads, int64_t dim, int32_t out_dtype, bint heads_first,
                    rope_cache_tensor* pages, rope_apply_desc* d, Call* c) except -1
cdef int read_page_table(page_table, page_table_stride, rope_apply_desc* d, Call* c) except -1
cdef int begin_rotate_cache(k_cache, slots, bint cache, rope_apply_desc* d) except -1
cdef int read_num_tokens(slots, cache_positions, Call* c) except -1
cdef int read_cache(k, v, k_nope, k_cache, v_cache, k_nope_cache, slots, page_table, page_indptr,
                    page_table_stride, request_ids, cache_positions, cache_skipped, cache, bint heads_first,
                    rope_apply_desc* d, Call* c) except -1
cdef int read_check(object check, rope_apply_desc* d) except -1
