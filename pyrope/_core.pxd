# What pyrope's other modules need of Rope. Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t, uint64_t

from pyrope._capi cimport rope_apply_desc, rope_frequencies_desc, rope_status, rope_tensor
from pyrope._view cimport View

cdef enum:
    ONE_BYTE = -1  # beside rope_dtype: an element of which only the size is known

cdef int check(rope_status status) except -1
cdef int32_t choose(str name, object value, dict allowed) except -1
cdef int64_t as_integer(str name, object value) except? -1
cdef double as_real(str name, object value) except? -1
cdef int32_t as_count(str name, object value, int64_t low, int64_t high) except? -1
cdef bint holds(View* v, int32_t element) noexcept
cdef str element_name(int32_t element)
cdef tuple shape_of(View* v)
cdef int check_device(str name, View* v, rope_apply_desc* d) except -1
cdef int read_call_stream(object stream, rope_apply_desc* d) except -1

cdef class Rope:
    cdef rope_apply_desc base
    cdef uint64_t* words  # [rotary_dim / 2], from rope_frequencies
    cdef readonly str layout, dtype, angle, device, position_dtype
    cdef readonly double attention_factor
    cdef readonly object theta, scaling
    cdef tuple inv_freqs
    cdef bint ready  # the constructor accepted its arguments

    cdef void _clear(self) noexcept
    cdef int _make_frequencies(self, theta, scaling, inv_freq) except -1
    cdef int _read_scaling(self, scaling, double* lists, rope_frequencies_desc* f) except -1
    cdef int _check_compiled(self) except -1
    cdef int _run(self, int flags, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                  q_strides, k_strides, q_out_strides, k_out_strides, stream) except -1
    cdef int _read_call(self, rope_apply_desc* d, int flags, q, k, num_tokens, positions, offset, indptr, offsets,
                        num_requests, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides,
                        stream) except -1
    cdef int _read_launch(self, int flags, num_tokens, stream, rope_apply_desc* d) except -1
    cdef int _read_positions(self, positions, offset, indptr, offsets, num_requests, rope_apply_desc* d) except -1
    cdef int _read_heads(self, str name, object x, object strides, int64_t heads, int64_t head_dim, int32_t element,
                         bint written, rope_apply_desc* d, rope_tensor* tensor) except -1
    cdef void* _read_index(self, str name, object x, int64_t* length, int32_t* dtype,
                           rope_apply_desc* d) except? NULL
    cdef int _read_ragged(self, indptr, offsets, num_requests, rope_apply_desc* d) except -1
