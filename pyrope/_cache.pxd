# Ships in the wheel, for cimport.
from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc

cdef bint set_cache(cache, int num_v_heads, int v_head_dim, rope_apply_desc* d) except -1
cdef int read_num_tokens(slots, cache_positions, Call* c) except -1
cdef int read_cache(k, v, k_cache, v_cache, slots, page_table, page_indptr, page_table_stride, request_ids,
                    cache_positions, cache_skipped, cache, bint heads_first, rope_apply_desc* d, Call* c) except -1
cdef int read_check(object check, rope_apply_desc* d) except -1
