# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t

from pyrope._capi cimport rope_apply_desc
from pyrope._view cimport ElementKind, View

cdef enum:
    ONE_BYTE = -1  # beside rope_dtype: an element of which only the size is known

cdef struct Call:
    int32_t backend
    void* stream
    int64_t num_tokens       # -1: arrays are to bring it
    int64_t inner_tokens     # the last of several dimensions of tokens, of the tensors; 0: there is one dimension
    int64_t sequence_length  # 0: neither the caller nor an array has one
    bint placed              # positions or indptr say where each token stands
    int device               # of the arrays, as a number of CUDA's; -1: no array has said yet

cdef dict DTYPES, LAYOUTS, ANGLES, DEVICES, INDEX_DTYPES, POSITION_DTYPES  # the names of the header's numbers

cdef int32_t choose(str name, object value, dict allowed) except -1
cdef int32_t choose_device(object device, int32_t* number) except -1
cdef int refuse_unknown(str cls, str signature, dict options) except -1
cdef str name_of(dict names, int32_t number)
cdef list unusual_of(object rope, dict options)
cdef int64_t as_integer(str name, object value) except? -1
cdef int64_t as_positive(str name, object value) except -1
cdef int32_t as_count(str name, object value, int64_t low, int64_t high) except? -1
cdef double as_real(str name, object value) except? -1
cdef bint is_scale(object x)
cdef float as_scale(str name, object x) except? -1
cdef int refuse_small(str name, object x) except -1
cdef bint as_flag(str name, object value) except -1
cdef int refuse(str name, object value, str reason) except -1
cdef int require(str name, object value, str reason) except -1

cdef int set_shape(head_dim, num_q_heads, num_k_heads, rotary_dim, rotary_offset, rope_apply_desc* d) except -1

cdef int begin_call(int32_t backend, object stream, object num_tokens, Call* c) except -1
cdef bint holds(View* v, int32_t element) noexcept
cdef str element_name(int32_t element)
cdef tuple shape_of(View* v)
cdef bint is_contiguous(View* v) noexcept
cdef int read_array(str name, object x, Call* c, View* v) except -1
cdef int read_elements(str name, object x, int32_t element, Call* c, View* v) except -1
cdef int32_t index_dtype(str name, object x, View* v, bint floats=*) except -1
cdef int refuse_dtype(str name, object x, str allowed) except -1
cdef int refuse_read_only(str name, View* v) except -1
cdef int64_t stored_units(int32_t out_dtype, int64_t dim) noexcept
cdef void* read_index(str name, object x, int64_t* length, int32_t* dtype, Call* c, bint floats=*) except? NULL
cdef void* read_memory(str name, object x, ElementKind kind, int itemsize, int64_t* count, str shape, bint written,
                       Call* c) except? NULL
