# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, uint64_t

cdef tuple make_frequencies(object theta, object scaling, object inv_freq, int32_t angle, int32_t rotary_dim,
                            uint64_t* words, double* attention_factor)
