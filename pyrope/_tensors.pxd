# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_steps, rope_tensor

cdef int read_tensor(str name, object x, object strides, int64_t heads, int64_t dim, int32_t element, bint written,
                     Call* c, rope_tensor* tensor, rope_steps* steps) except -1
cdef str set_k_dtype(k_dtype, rope_apply_desc* d)
cdef int32_t k_element(rope_apply_desc* d) noexcept
cdef int32_t stored_element(int32_t out_dtype, int32_t dtype) noexcept
cdef int begin_stages(q, k, v, q_out, k_out, slots, bint cache, rope_apply_desc* d) except -1
cdef int read_sequences(sequence_length, positions, indptr, skipped, rope_apply_desc* d, Call* c) except -1
cdef int read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, rope_apply_desc* d,
                      Call* c) except -1
cdef int read_v(v, v_out, v_strides, v_out_strides, int32_t num_v_heads, int32_t v_head_dim, rope_apply_desc* d,
                Call* c) except -1
cdef int read_q_nope(q, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, int32_t dim, rope_apply_desc* d,
                     Call* c) except -1
cdef int read_k_nope(k, k_nope, k_nope_out, k_nope_strides, k_nope_out_strides, int32_t dim, rope_apply_desc* d,
                     Call* c) except -1
