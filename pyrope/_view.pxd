from libc.stdint cimport int64_t, uintptr_t

cdef enum:
    MAX_DIMS = 8

cdef enum ElementKind:
    KIND_OTHER
    KIND_INT
    KIND_UINT
    KIND_FLOAT
    KIND_BFLOAT
    KIND_OPAQUE  # of known size only: two-byte types that the producer has no name for

cdef struct View:
    void* data
    int ndim
    int64_t shape[MAX_DIMS]
    int64_t strides[MAX_DIMS]  # elements
    ElementKind kind
    int itemsize               # bytes
    bint on_cpu                # a CPU may read it
    bint on_cuda               # a CUDA device may read it
    bint read_only
    int device                 # the CUDA device's number; -1: on none, or not known

cdef class Rows:
    cdef View view
    cdef object base  # keeps the memory
    cdef readonly int64_t outer, inner  # type: int
    cdef readonly bint folded

    cdef int _fold(self) except -1

cdef bint is_array(object x)
cdef bint is_immutable(object x)
cdef uintptr_t read_pointer(object x, str name, bint may_be_null) except? 0
cdef uintptr_t read_stream(object x) except? 0
cdef int read_view(object x, str name, uintptr_t stream, View* view) except -1
