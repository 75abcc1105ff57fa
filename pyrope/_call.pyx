# cython: language_level=3, freethreading_compatible=True
"""What every call of rope_apply ends in: q and k read into its descriptor, and the call."""

from pyrope._arguments cimport Call, read_pair
from pyrope._capi cimport *
from pyrope._library cimport check


cdef int read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, rope_apply_desc* d,
                      Call* c) except -1:
    """q and k, which bring num_tokens. What d already has says what the outputs hold and whether k goes to a cache."""
    if q is None and k is None:
        raise TypeError("q and k: both None, at least one must be given")
    read_pair("q", "q_out", q, q_strides, q_out, q_out_strides, d.num_q_heads, d.head_dim, d.dtype,
              d.q_quantize.out_dtype, True, c, &d.q, &d.q_out)
    read_pair("k", "k_out", k, k_strides, k_out, k_out_strides, d.num_k_heads, d.head_dim, d.dtype,
              d.k_quantize.out_dtype, d.cache.kind == ROPE_CACHE_NONE, c, &d.k, &d.k_out)
    if c.num_tokens < 0:
        raise TypeError("num_tokens: required with pointers")
    d.num_tokens = c.num_tokens
    return 0


cdef int rotate(rope_apply_desc* d) except -1:
    cdef rope_status status
    with nogil:
        status = rope_apply(d)
    return check(status)
