# What FusedRope needs of Rope. Ships in the wheel, for cimport. "type:" is what Python users see, for the stub.
from libc.stdint cimport int32_t, uint64_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_build_cos_sin_desc

cdef class Rope:
    cdef rope_apply_desc base  # what all calls have
    cdef uint64_t* words  # [2, rotary_dim / 2], base's frequencies, of float32 positions too
    cdef tuple inv_freqs
    cdef int blocks  # of the rotated part; 0: one
    cdef bint ready  # the constructor accepted its arguments
    cdef int32_t device_number  # of "cuda:0"; -1: whichever is current
    cdef Py_hash_t hashed  # 0: not yet
    cdef readonly object theta  # type: float | None
    cdef readonly object scaling  # type: Scaling | None
    cdef readonly double attention_factor
    cdef readonly str layout  # type: Layout
    cdef readonly str dtype  # type: DType
    cdef readonly str angle  # type: Angle
    cdef readonly str device  # type: Device
    cdef readonly str position_dtype  # type: PositionDType
    cdef readonly object skip  # type: int | None

    cdef int _set_frequencies(self, theta, scaling, inv_freq) except -1
    cdef int _check_ready(self) except -1
    cdef int _begin(self, num_tokens, inverse, stream, rope_apply_desc* d, Call* c) except -1
    cdef int _begin_cos_sin(self, str method, rope_build_cos_sin_desc* d) except -1
