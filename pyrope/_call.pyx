# cython: language_level=3, freethreading_compatible=True
"""What every call of rope_apply ends in."""

from pyrope._capi cimport *
from pyrope._library cimport check


cdef int rotate(rope_apply_desc* d) except -1:
    cdef rope_status status
    with nogil:
        status = rope_apply(d)
    return check(status)
