# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_attention_desc, rope_attention_tensor

cdef struct Tokens:
    int64_t sequences, tokens  # -1: an array is to bring it
    bint ragged

cdef int64_t read_count(str name, object value, int64_t usual) except -2
cdef int read_tokens(q, k, num_q_tokens, num_k_tokens, num_sequences, q_indptr, k_indptr, max_q_tokens, max_k_tokens,
                     Tokens* of_q, Tokens* of_k, rope_attention_desc* d, Call* c) except -1
cdef int read_inputs(q, q_strides, k, k_strides, v, v_strides, Tokens* of_q, Tokens* of_k, rope_attention_desc* d,
                     Call* c) except -1
cdef int read_tensor(str name, object x, object strides, int32_t heads, int32_t dim, int32_t dtype, bint written,
                     Tokens* t, Call* c, rope_attention_tensor* tensor) except -1
cdef int read_sums(lse, bint written, sinks, Tokens* of_q, rope_attention_desc* d, Call* c) except -1
cdef int read_turn(positions, offset, positions_stride, cos, sin, angles, cos_sin_rows, Tokens* of_q,
                   rope_apply_desc* turn, rope_attention_desc* d, Call* c) except -1
cdef int read_workspace(workspace, workspace_size, void** data, int64_t* bytes, Call* c) except -1
