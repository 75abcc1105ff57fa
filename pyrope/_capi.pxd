# The public headers, made by tools/capi.py. Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "roperope/roperope.h" nogil:
    enum:
        ROPE_VERSION_MAJOR
        ROPE_VERSION_MINOR
        ROPE_VERSION_PATCH
    ctypedef int32_t rope_status
    enum:
        ROPE_OK
        ROPE_ERR_INVALID_ARG
        ROPE_ERR_UNSUPPORTED
        ROPE_ERR_CUDA
        ROPE_ERR_NO_DEVICE
        ROPE_ERR_VERSION
        ROPE_ERR_INTERNAL
    ctypedef int32_t rope_backend
    enum:
        ROPE_BACKEND_CUDA
        ROPE_BACKEND_CPU
    ctypedef int32_t rope_dtype
    enum:
        ROPE_DTYPE_F32
        ROPE_DTYPE_F16
        ROPE_DTYPE_BF16
    ctypedef int32_t rope_layout
    enum:
        ROPE_LAYOUT_NEOX
        ROPE_LAYOUT_GPTJ
    ctypedef int32_t rope_angle
    enum:
        ROPE_ANGLE_EXACT
        ROPE_ANGLE_FP32
        ROPE_ANGLE_COS_SIN
    ctypedef int32_t rope_index_dtype
    enum:
        ROPE_INDEX_INT64
        ROPE_INDEX_INT32
        ROPE_INDEX_FLOAT32
    ctypedef int32_t rope_skip
    enum:
        ROPE_SKIP_DEFAULT
        ROPE_SKIP_NONE
        ROPE_SKIP_VALUE
    ctypedef int32_t rope_out_layout
    enum:
        ROPE_OUT_LAYOUT_SAME
        ROPE_OUT_LAYOUT_NEOX
        ROPE_OUT_LAYOUT_GPTJ
    ctypedef void (*rope_piece)(void* data, int64_t index)
    ctypedef void (*rope_parallel_for)(void* context, int64_t num_pieces, rope_piece piece, void* data)
    enum:
        ROPE_MAX_HEADS
        ROPE_MAX_HEAD_DIM
        ROPE_MAX_FUSED_HEAD_DIM
        ROPE_MAX_ROTARY_DIM
        ROPE_MAX_NORM_HEADS
        ROPE_MAX_NORM_RANKS
        ROPE_MAX_PAGE_SIZE
        ROPE_MAX_ROW_STRIDE
        ROPE_MAX_XPOS_DIM
        ROPE_MAX_STREAMS
        ROPE_MAX_PAIR_STREAMS
        ROPE_MAX_FLOAT32_ROTARY_DIM
        ROPE_BROADCAST
    double ROPE_XPOS_SCALE_BASE_MIN
    double ROPE_XPOS_SCALE_BASE_MAX
    double ROPE_XPOS_GAMMA_MIN
    double ROPE_XPOS_GAMMA_MAX
    enum:
        ROPE_FLAG_INVERSE
        ROPE_FLAG_PDL
        ROPE_FLAG_POSITIONS_READY
        ROPE_FLAG_IN_CACHE
        ROPE_FLAG_NO_ROTATION
        ROPE_FLAG_CHECK_PLACES
    ctypedef int32_t rope_scaling
    enum:
        ROPE_SCALING_NONE
        ROPE_SCALING_LINEAR
        ROPE_SCALING_LLAMA3
        ROPE_SCALING_CUSTOM
        ROPE_SCALING_NTK
        ROPE_SCALING_DYNAMIC_NTK
        ROPE_SCALING_YARN
        ROPE_SCALING_LONGROPE
        ROPE_SCALING_PAIR_FACTORS
        ROPE_SCALING_PROPORTIONAL

    ctypedef struct rope_frequencies_desc:
        uint32_t struct_size
        int32_t scaling
        int32_t angle
        int32_t rotary_dim
        double theta
        double factor
        double low_freq_factor
        double high_freq_factor
        int64_t original_max_position
        const double* inv_freq
        double beta_fast
        double beta_slow
        double mscale
        double mscale_all_dim
        double proportion
        const double* pair_factors
        const double* short_factors
        const double* long_factors
        int64_t seq_len
        int64_t no_truncate
        int32_t position_dtype
        int32_t reserved

    rope_status rope_frequencies(const rope_frequencies_desc* desc, uint64_t* frequencies, double* inv_freq,
                                 double* attention_factor)

    ctypedef struct rope_tensor:
        void* data
        int64_t token_stride
        int64_t head_stride

    ctypedef struct rope_steps:
        int64_t sequence
        int64_t element

    ctypedef int32_t rope_out_dtype
    enum:
        ROPE_OUT_SAME
        ROPE_OUT_E4M3
        ROPE_OUT_E5M2
        ROPE_OUT_INT8
        ROPE_OUT_F32
        ROPE_OUT_F16
        ROPE_OUT_BF16
        ROPE_OUT_E2M1
        ROPE_OUT_Q8_0
        ROPE_OUT_Q4_0
    ctypedef int32_t rope_scale_kind
    enum:
        ROPE_SCALE_HOST
        ROPE_SCALE_TENSOR
        ROPE_SCALE_HEAD
        ROPE_SCALE_TOKEN
        ROPE_SCALE_DYNAMIC
        ROPE_SCALE_GROUP

    ctypedef struct rope_quantize:
        int32_t out_dtype
        int32_t scale_kind
        float scale
        int32_t reserved
        float* scales

    ctypedef int32_t rope_group_scale
    enum:
        ROPE_GROUP_SCALE_F32
        ROPE_GROUP_SCALE_E8M0
        ROPE_GROUP_SCALE_E4M3

    ctypedef struct rope_groups:
        int32_t size
        int32_t scale_dtype
        void* scales
        int64_t page_stride
        int64_t row_stride
        int64_t head_stride
        const float* tensor_scales
        float tensor_scale
        int32_t reserved

    ctypedef struct rope_norm:
        const void* q_weight
        const void* k_weight
        int32_t weight_is_f32
        int32_t after
        float eps
        float weight_bias
        int32_t across_heads
        int32_t reserved

    ctypedef struct rope_norm_sums:
        float* q
        float* k
        int32_t ranks
        int32_t write

    ctypedef int32_t rope_cache_kind
    enum:
        ROPE_CACHE_NONE
        ROPE_CACHE_SLOTS
        ROPE_CACHE_PAGES

    ctypedef struct rope_cache_tensor:
        void* data
        int64_t page_stride, entry_stride, head_stride

    ctypedef struct rope_cache:
        int32_t kind
        int32_t index_dtype
        int64_t num_pages
        int32_t page_size
        int32_t skips_tokens
        rope_cache_tensor k, v
        const void* slots
        const int32_t* page_table
        const int32_t* page_indptr
        int64_t page_table_stride
        const int32_t* request_ids
        const void* cache_positions
        int64_t* num_skipped

    ctypedef struct rope_sections:
        int32_t num_streams
        int32_t interleaved
        int32_t sizes[ROPE_MAX_STREAMS]
        int64_t stream_stride

    ctypedef struct rope_cos_sin:
        const void* cos
        const void* sin
        int32_t dtype
        int32_t reserved
        int64_t num_rows
        int64_t row_stride
        int64_t* num_skipped

    enum:
        ROPE_TABLE_RADIANS
        ROPE_TABLE_ELEMENTS

    ctypedef struct rope_frequency_sets:
        const uint64_t* words
        const float* factors
        const int32_t* ids
        const int32_t* ids_from
        int32_t num_sets
        int32_t reserved

    ctypedef struct rope_xpos:
        double scale_base
        double gamma
        int64_t center

    ctypedef struct rope_apply_desc:
        uint32_t struct_size
        uint32_t flags
        int32_t backend
        int32_t dtype
        int32_t layout
        int32_t angle
        int32_t head_dim
        int32_t rotary_dim
        int32_t rotary_offset
        int32_t num_q_heads
        int32_t num_k_heads
        int32_t num_threads
        int64_t num_tokens
        rope_tensor q
        rope_tensor k
        rope_tensor q_out
        rope_tensor k_out
        const uint64_t* frequencies
        float attention_factor
        int32_t position_dtype
        const void* positions
        const void* indptr
        const void* offsets
        int64_t num_requests
        int64_t offset
        void* stream
        rope_tensor v
        rope_tensor v_out
        rope_tensor q_nope
        rope_tensor q_nope_out
        int32_t num_v_heads
        int32_t v_head_dim
        int32_t q_nope_dim
        int32_t reserved
        rope_quantize q_quantize
        rope_quantize k_quantize
        rope_quantize v_quantize
        rope_norm norm
        rope_cache cache
        rope_sections sections
        rope_cos_sin cos_sin
        rope_frequency_sets frequency_sets
        const void* positions_from
        rope_xpos xpos
        rope_parallel_for parallel_for
        void* parallel_context
        int64_t sequence_length
        int64_t position_stride
        int64_t position_sequence_stride
        const uint8_t* pair_streams
        int32_t num_blocks
        uint32_t table_flags
        rope_groups q_groups
        rope_groups k_groups
        rope_groups v_groups
        rope_cos_sin k_cos_sin
        int32_t skip_kind
        int32_t copy_skipped
        int64_t skip_position
        rope_steps q_steps, k_steps, q_out_steps, k_out_steps, v_steps, v_out_steps, q_nope_steps, q_nope_out_steps
        int32_t out_layout
        int32_t k_nope_dim
        rope_tensor k_nope
        rope_tensor k_nope_out
        rope_cache_tensor cache_k_nope
        rope_steps k_nope_steps, k_nope_out_steps
        rope_norm_sums norm_sums
        int32_t k_dtype
        int32_t reserved_2

    void rope_frequencies_desc_init(rope_frequencies_desc* desc)
    void rope_apply_desc_init(rope_apply_desc* desc)
    rope_status rope_apply(const rope_apply_desc* desc)

    ctypedef struct rope_build_cos_sin_desc:
        uint32_t struct_size
        uint32_t flags
        int32_t backend
        int32_t dtype
        int32_t angle
        int32_t rotary_dim
        int32_t num_threads
        int32_t position_dtype
        const uint64_t* frequencies
        float attention_factor
        int32_t reserved
        int64_t num_rows
        void* cos
        void* sin
        int64_t row_stride
        const void* positions
        int64_t offset
        void* stream
        rope_parallel_for parallel_for
        void* parallel_context

    void rope_build_cos_sin_desc_init(rope_build_cos_sin_desc* desc)
    rope_status rope_build_cos_sin(const rope_build_cos_sin_desc* desc)

    ctypedef struct rope_support_query:
        uint32_t struct_size
        int32_t backend, dtype, layout, angle

    rope_status rope_query_support(const rope_support_query* query, int32_t* supported)
    int32_t rope_device_count()
    int32_t rope_current_device()
    uint32_t rope_version()
    const char* rope_build_info()
    const char* rope_status_string(rope_status)
    const char* rope_last_error()

cdef extern from "roperope/attention.h" nogil:
    enum:
        ROPE_MAX_ATTENTION_HEAD_DIM
    enum:
        ROPE_ATTENTION_CAUSAL
        ROPE_ATTENTION_WINDOW
        ROPE_ATTENTION_Q_ROTATED
        ROPE_ATTENTION_K_ROTATED

    ctypedef struct rope_attention_tensor:
        void* data
        int64_t sequence_stride
        int64_t token_stride
        int64_t head_stride

    ctypedef struct rope_attention_desc:
        uint32_t struct_size
        uint32_t flags
        int32_t backend
        int32_t dtype
        int32_t head_dim
        int32_t v_head_dim
        int32_t num_q_heads
        int32_t num_k_heads
        int32_t num_sequences
        int32_t num_threads
        int64_t num_q_tokens
        int64_t num_k_tokens
        rope_attention_tensor q, k, v, o
        const rope_apply_desc* rotation
        rope_attention_tensor q_out
        rope_attention_tensor k_out
        float* lse
        const float* sinks
        const int32_t* q_indptr
        const int32_t* k_indptr
        int32_t max_q_tokens
        int32_t max_k_tokens
        float scale
        float softcap
        int32_t window_left
        int32_t window_right
        void* workspace
        int64_t workspace_bytes
        void* stream
        rope_parallel_for parallel_for
        void* parallel_context

    void rope_attention_desc_init(rope_attention_desc* desc)
    rope_status rope_attention_workspace(const rope_attention_desc* desc, int64_t* bytes)
    rope_status rope_attention(const rope_attention_desc* desc)
    enum:
        ROPE_ATTENTION_BACKWARD_DETERMINISTIC

    ctypedef struct rope_attention_backward_desc:
        uint32_t struct_size
        uint32_t flags
        const rope_attention_desc* forward
        rope_attention_tensor d_o
        const float* d_lse
        rope_attention_tensor dq, dk, dv
        float* d_sinks
        void* workspace
        int64_t workspace_bytes

    void rope_attention_backward_desc_init(rope_attention_backward_desc* desc)
    rope_status rope_attention_backward_workspace(const rope_attention_backward_desc* desc, int64_t* bytes)
    rope_status rope_attention_backward(const rope_attention_backward_desc* desc)

cdef extern from "roperope/decode.h" nogil:
    enum:
        ROPE_MAX_DECODE_TOKENS
        ROPE_MAX_DECODE_LENGTH

    ctypedef struct rope_decode_desc:
        uint32_t struct_size
        uint32_t flags
        int32_t backend
        int32_t dtype
        int32_t head_dim
        int32_t num_q_heads
        int32_t num_k_heads
        int32_t num_requests
        int32_t num_q_tokens
        int32_t num_threads
        rope_tensor q, o
        rope_cache cache
        rope_quantize k_quantize
        rope_quantize v_quantize
        const int32_t* lengths
        int32_t max_length
        int32_t window_left
        float scale
        float softcap
        const rope_apply_desc* rotation
        float* lse
        const float* sinks
        int32_t split
        int32_t reserved
        void* workspace
        int64_t workspace_bytes
        void* stream
        rope_parallel_for parallel_for
        void* parallel_context

    enum:
        ROPE_DECODE_SPLIT
    void rope_decode_desc_init(rope_decode_desc* desc)
    rope_status rope_decode_workspace(const rope_decode_desc* desc, int64_t* bytes)
    rope_status rope_decode(const rope_decode_desc* desc)
