/* The binary interface, pinned: where every published field lies, what every enumerator is worth, and what every
 * function takes. A program that was compiled against an older header relies on all of it, so a line here is never
 * changed; a field appended to a descriptor adds one. The checks are made by the compiler. (Attention:
 * abi_layout_attention.c.) */
#include "abi_layout.h"

#include <roperope/roperope.h>

CHECK(sizeof(rope_frequencies_desc) == 152);
FIELD(rope_frequencies_desc, struct_size, 0, 4);
FIELD(rope_frequencies_desc, scaling, 4, 4);
FIELD(rope_frequencies_desc, angle, 8, 4);
FIELD(rope_frequencies_desc, rotary_dim, 12, 4);
FIELD(rope_frequencies_desc, theta, 16, 8);
FIELD(rope_frequencies_desc, factor, 24, 8);
FIELD(rope_frequencies_desc, low_freq_factor, 32, 8);
FIELD(rope_frequencies_desc, high_freq_factor, 40, 8);
FIELD(rope_frequencies_desc, original_max_position, 48, 8);
FIELD(rope_frequencies_desc, inv_freq, 56, 8);
FIELD(rope_frequencies_desc, beta_fast, 64, 8);
FIELD(rope_frequencies_desc, beta_slow, 72, 8);
FIELD(rope_frequencies_desc, mscale, 80, 8);
FIELD(rope_frequencies_desc, mscale_all_dim, 88, 8);
FIELD(rope_frequencies_desc, proportion, 96, 8);
FIELD(rope_frequencies_desc, pair_factors, 104, 8);
FIELD(rope_frequencies_desc, short_factors, 112, 8);
FIELD(rope_frequencies_desc, long_factors, 120, 8);
FIELD(rope_frequencies_desc, seq_len, 128, 8);
FIELD(rope_frequencies_desc, no_truncate, 136, 8);
FIELD(rope_frequencies_desc, position_dtype, 144, 4);
FIELD(rope_frequencies_desc, reserved, 148, 4);

CHECK(sizeof(rope_tensor) == 24);
FIELD(rope_tensor, data, 0, 8);
FIELD(rope_tensor, token_stride, 8, 8);
FIELD(rope_tensor, head_stride, 16, 8);

CHECK(sizeof(rope_steps) == 16);
FIELD(rope_steps, sequence, 0, 8);
FIELD(rope_steps, element, 8, 8);

CHECK(sizeof(rope_quantize) == 24);
FIELD(rope_quantize, out_dtype, 0, 4);
FIELD(rope_quantize, scale_kind, 4, 4);
FIELD(rope_quantize, scale, 8, 4);
FIELD(rope_quantize, reserved, 12, 4);
FIELD(rope_quantize, scales, 16, 8);

CHECK(sizeof(rope_groups) == 56);
FIELD(rope_groups, size, 0, 4);
FIELD(rope_groups, scale_dtype, 4, 4);
FIELD(rope_groups, scales, 8, 8);
FIELD(rope_groups, page_stride, 16, 8);
FIELD(rope_groups, row_stride, 24, 8);
FIELD(rope_groups, head_stride, 32, 8);
FIELD(rope_groups, tensor_scales, 40, 8);
FIELD(rope_groups, tensor_scale, 48, 4);
FIELD(rope_groups, reserved, 52, 4);

CHECK(sizeof(rope_norm) == 40);
FIELD(rope_norm, q_weight, 0, 8);
FIELD(rope_norm, k_weight, 8, 8);
FIELD(rope_norm, weight_is_f32, 16, 4);
FIELD(rope_norm, after, 20, 4);
FIELD(rope_norm, eps, 24, 4);
FIELD(rope_norm, weight_bias, 28, 4);
FIELD(rope_norm, across_heads, 32, 4);
FIELD(rope_norm, reserved, 36, 4);

CHECK(sizeof(rope_norm_sums) == 24);
FIELD(rope_norm_sums, q, 0, 8);
FIELD(rope_norm_sums, k, 8, 8);
FIELD(rope_norm_sums, ranks, 16, 4);
FIELD(rope_norm_sums, write, 20, 4);

CHECK(sizeof(rope_cache_tensor) == 32);
FIELD(rope_cache_tensor, data, 0, 8);
FIELD(rope_cache_tensor, page_stride, 8, 8);
FIELD(rope_cache_tensor, entry_stride, 16, 8);
FIELD(rope_cache_tensor, head_stride, 24, 8);

CHECK(sizeof(rope_cache) == 144);
FIELD(rope_cache, kind, 0, 4);
FIELD(rope_cache, index_dtype, 4, 4);
FIELD(rope_cache, num_pages, 8, 8);
FIELD(rope_cache, page_size, 16, 4);
FIELD(rope_cache, skips_tokens, 20, 4);
FIELD(rope_cache, k, 24, 32);
FIELD(rope_cache, v, 56, 32);
FIELD(rope_cache, slots, 88, 8);
FIELD(rope_cache, page_table, 96, 8);
FIELD(rope_cache, page_indptr, 104, 8);
FIELD(rope_cache, page_table_stride, 112, 8);
FIELD(rope_cache, request_ids, 120, 8);
FIELD(rope_cache, cache_positions, 128, 8);
FIELD(rope_cache, num_skipped, 136, 8);

CHECK(sizeof(rope_sections) == 32);
FIELD(rope_sections, num_streams, 0, 4);
FIELD(rope_sections, interleaved, 4, 4);
FIELD(rope_sections, sizes, 8, 16);
FIELD(rope_sections, stream_stride, 24, 8);

CHECK(sizeof(rope_cos_sin) == 48);
FIELD(rope_cos_sin, cos, 0, 8);
FIELD(rope_cos_sin, sin, 8, 8);
FIELD(rope_cos_sin, dtype, 16, 4);
FIELD(rope_cos_sin, reserved, 20, 4);
FIELD(rope_cos_sin, num_rows, 24, 8);
FIELD(rope_cos_sin, row_stride, 32, 8);
FIELD(rope_cos_sin, num_skipped, 40, 8);

CHECK(sizeof(rope_frequency_sets) == 40);
FIELD(rope_frequency_sets, words, 0, 8);
FIELD(rope_frequency_sets, factors, 8, 8);
FIELD(rope_frequency_sets, ids, 16, 8);
FIELD(rope_frequency_sets, ids_from, 24, 8);
FIELD(rope_frequency_sets, num_sets, 32, 4);
FIELD(rope_frequency_sets, reserved, 36, 4);

CHECK(sizeof(rope_xpos) == 24);
FIELD(rope_xpos, scale_base, 0, 8);
FIELD(rope_xpos, gamma, 8, 8);
FIELD(rope_xpos, center, 16, 8);

CHECK(sizeof(rope_apply_desc) == 1304);
FIELD(rope_apply_desc, struct_size, 0, 4);
FIELD(rope_apply_desc, flags, 4, 4);
FIELD(rope_apply_desc, backend, 8, 4);
FIELD(rope_apply_desc, dtype, 12, 4);
FIELD(rope_apply_desc, layout, 16, 4);
FIELD(rope_apply_desc, angle, 20, 4);
FIELD(rope_apply_desc, head_dim, 24, 4);
FIELD(rope_apply_desc, rotary_dim, 28, 4);
FIELD(rope_apply_desc, rotary_offset, 32, 4);
FIELD(rope_apply_desc, num_q_heads, 36, 4);
FIELD(rope_apply_desc, num_k_heads, 40, 4);
FIELD(rope_apply_desc, num_threads, 44, 4);
FIELD(rope_apply_desc, num_tokens, 48, 8);
FIELD(rope_apply_desc, q, 56, 24);
FIELD(rope_apply_desc, k, 80, 24);
FIELD(rope_apply_desc, q_out, 104, 24);
FIELD(rope_apply_desc, k_out, 128, 24);
FIELD(rope_apply_desc, frequencies, 152, 8);
FIELD(rope_apply_desc, attention_factor, 160, 4);
FIELD(rope_apply_desc, position_dtype, 164, 4);
FIELD(rope_apply_desc, positions, 168, 8);
FIELD(rope_apply_desc, indptr, 176, 8);
FIELD(rope_apply_desc, offsets, 184, 8);
FIELD(rope_apply_desc, num_requests, 192, 8);
FIELD(rope_apply_desc, offset, 200, 8);
FIELD(rope_apply_desc, stream, 208, 8);
FIELD(rope_apply_desc, v, 216, 24);
FIELD(rope_apply_desc, v_out, 240, 24);
FIELD(rope_apply_desc, q_nope, 264, 24);
FIELD(rope_apply_desc, q_nope_out, 288, 24);
FIELD(rope_apply_desc, num_v_heads, 312, 4);
FIELD(rope_apply_desc, v_head_dim, 316, 4);
FIELD(rope_apply_desc, q_nope_dim, 320, 4);
FIELD(rope_apply_desc, reserved, 324, 4);
FIELD(rope_apply_desc, q_quantize, 328, 24);
FIELD(rope_apply_desc, k_quantize, 352, 24);
FIELD(rope_apply_desc, v_quantize, 376, 24);
FIELD(rope_apply_desc, norm, 400, 40);
FIELD(rope_apply_desc, cache, 440, 144);
FIELD(rope_apply_desc, sections, 584, 32);
FIELD(rope_apply_desc, cos_sin, 616, 48);
FIELD(rope_apply_desc, frequency_sets, 664, 40);
FIELD(rope_apply_desc, positions_from, 704, 8);
FIELD(rope_apply_desc, xpos, 712, 24);
FIELD(rope_apply_desc, parallel_for, 736, 8);
FIELD(rope_apply_desc, parallel_context, 744, 8);
FIELD(rope_apply_desc, sequence_length, 752, 8);
FIELD(rope_apply_desc, position_stride, 760, 8);
FIELD(rope_apply_desc, position_sequence_stride, 768, 8);
FIELD(rope_apply_desc, pair_streams, 776, 8);
FIELD(rope_apply_desc, num_blocks, 784, 4);
FIELD(rope_apply_desc, table_flags, 788, 4);
FIELD(rope_apply_desc, q_groups, 792, 56);
FIELD(rope_apply_desc, k_groups, 848, 56);
FIELD(rope_apply_desc, v_groups, 904, 56);
FIELD(rope_apply_desc, k_cos_sin, 960, 48);
FIELD(rope_apply_desc, skip_kind, 1008, 4);
FIELD(rope_apply_desc, copy_skipped, 1012, 4);
FIELD(rope_apply_desc, skip_position, 1016, 8);
FIELD(rope_apply_desc, q_steps, 1024, 16);
FIELD(rope_apply_desc, k_steps, 1040, 16);
FIELD(rope_apply_desc, q_out_steps, 1056, 16);
FIELD(rope_apply_desc, k_out_steps, 1072, 16);
FIELD(rope_apply_desc, v_steps, 1088, 16);
FIELD(rope_apply_desc, v_out_steps, 1104, 16);
FIELD(rope_apply_desc, q_nope_steps, 1120, 16);
FIELD(rope_apply_desc, q_nope_out_steps, 1136, 16);
FIELD(rope_apply_desc, out_layout, 1152, 4);
FIELD(rope_apply_desc, k_nope_dim, 1156, 4);
FIELD(rope_apply_desc, k_nope, 1160, 24);
FIELD(rope_apply_desc, k_nope_out, 1184, 24);
FIELD(rope_apply_desc, cache_k_nope, 1208, 32);
FIELD(rope_apply_desc, k_nope_steps, 1240, 16);
FIELD(rope_apply_desc, k_nope_out_steps, 1256, 16);
FIELD(rope_apply_desc, norm_sums, 1272, 24);
FIELD(rope_apply_desc, k_dtype, 1296, 4);
FIELD(rope_apply_desc, reserved_2, 1300, 4);

CHECK(sizeof(rope_build_cos_sin_desc) == 120);
FIELD(rope_build_cos_sin_desc, struct_size, 0, 4);
FIELD(rope_build_cos_sin_desc, flags, 4, 4);
FIELD(rope_build_cos_sin_desc, backend, 8, 4);
FIELD(rope_build_cos_sin_desc, dtype, 12, 4);
FIELD(rope_build_cos_sin_desc, angle, 16, 4);
FIELD(rope_build_cos_sin_desc, rotary_dim, 20, 4);
FIELD(rope_build_cos_sin_desc, num_threads, 24, 4);
FIELD(rope_build_cos_sin_desc, position_dtype, 28, 4);
FIELD(rope_build_cos_sin_desc, frequencies, 32, 8);
FIELD(rope_build_cos_sin_desc, attention_factor, 40, 4);
FIELD(rope_build_cos_sin_desc, reserved, 44, 4);
FIELD(rope_build_cos_sin_desc, num_rows, 48, 8);
FIELD(rope_build_cos_sin_desc, cos, 56, 8);
FIELD(rope_build_cos_sin_desc, sin, 64, 8);
FIELD(rope_build_cos_sin_desc, row_stride, 72, 8);
FIELD(rope_build_cos_sin_desc, positions, 80, 8);
FIELD(rope_build_cos_sin_desc, offset, 88, 8);
FIELD(rope_build_cos_sin_desc, stream, 96, 8);
FIELD(rope_build_cos_sin_desc, parallel_for, 104, 8);
FIELD(rope_build_cos_sin_desc, parallel_context, 112, 8);

CHECK(sizeof(rope_support_query) == 20);
FIELD(rope_support_query, struct_size, 0, 4);
FIELD(rope_support_query, backend, 4, 4);
FIELD(rope_support_query, dtype, 8, 4);
FIELD(rope_support_query, layout, 12, 4);
FIELD(rope_support_query, angle, 16, 4);

CHECK(ROPE_OK == 0);
CHECK(ROPE_ERR_INVALID_ARG == 1);
CHECK(ROPE_ERR_UNSUPPORTED == 2);
CHECK(ROPE_ERR_CUDA == 3);
CHECK(ROPE_ERR_NO_DEVICE == 4);
CHECK(ROPE_ERR_VERSION == 5);
CHECK(ROPE_ERR_INTERNAL == 6);
CHECK(ROPE_BACKEND_CUDA == 0);
CHECK(ROPE_BACKEND_CPU == 1);
CHECK(ROPE_DTYPE_F32 == 0);
CHECK(ROPE_DTYPE_F16 == 1);
CHECK(ROPE_DTYPE_BF16 == 2);
CHECK(ROPE_LAYOUT_NEOX == 0);
CHECK(ROPE_LAYOUT_GPTJ == 1);
CHECK(ROPE_ANGLE_EXACT == 0);
CHECK(ROPE_ANGLE_FP32 == 1);
CHECK(ROPE_ANGLE_COS_SIN == 2);
CHECK(ROPE_OUT_SAME == 0);
CHECK(ROPE_OUT_E4M3 == 1);
CHECK(ROPE_OUT_E5M2 == 2);
CHECK(ROPE_OUT_INT8 == 3);
CHECK(ROPE_OUT_F32 == 4);
CHECK(ROPE_OUT_F16 == 5);
CHECK(ROPE_OUT_BF16 == 6);
CHECK(ROPE_OUT_LAYOUT_SAME == 0);
CHECK(ROPE_OUT_LAYOUT_NEOX == 1);
CHECK(ROPE_OUT_LAYOUT_GPTJ == 2);
CHECK(ROPE_SKIP_DEFAULT == 0);
CHECK(ROPE_SKIP_NONE == 1);
CHECK(ROPE_SKIP_VALUE == 2);
CHECK(ROPE_BROADCAST == INT64_MIN);
CHECK(ROPE_OUT_E2M1 == 7);
CHECK(ROPE_OUT_Q8_0 == 8);
CHECK(ROPE_OUT_Q4_0 == 9);
CHECK(ROPE_SCALE_HOST == 0);
CHECK(ROPE_SCALE_TENSOR == 1);
CHECK(ROPE_SCALE_HEAD == 2);
CHECK(ROPE_SCALE_TOKEN == 3);
CHECK(ROPE_SCALE_DYNAMIC == 4);
CHECK(ROPE_SCALE_GROUP == 5);
CHECK(ROPE_GROUP_SCALE_F32 == 0);
CHECK(ROPE_GROUP_SCALE_E8M0 == 1);
CHECK(ROPE_GROUP_SCALE_E4M3 == 2);
CHECK(ROPE_CACHE_NONE == 0);
CHECK(ROPE_CACHE_SLOTS == 1);
CHECK(ROPE_CACHE_PAGES == 2);
CHECK(ROPE_INDEX_INT64 == 0);
CHECK(ROPE_INDEX_INT32 == 1);
CHECK(ROPE_INDEX_FLOAT32 == 2);
CHECK(ROPE_FLAG_INVERSE == 1);
CHECK(ROPE_FLAG_PDL == 2);
CHECK(ROPE_FLAG_POSITIONS_READY == 4);
CHECK(ROPE_FLAG_IN_CACHE == 8);
CHECK(ROPE_FLAG_NO_ROTATION == 16);
CHECK(ROPE_SCALING_NONE == 0);
CHECK(ROPE_SCALING_LINEAR == 1);
CHECK(ROPE_SCALING_LLAMA3 == 2);
CHECK(ROPE_SCALING_CUSTOM == 3);
CHECK(ROPE_SCALING_NTK == 4);
CHECK(ROPE_SCALING_DYNAMIC_NTK == 5);
CHECK(ROPE_SCALING_YARN == 6);
CHECK(ROPE_SCALING_LONGROPE == 7);
CHECK(ROPE_SCALING_PAIR_FACTORS == 8);
CHECK(ROPE_SCALING_PROPORTIONAL == 9);
CHECK(ROPE_MAX_ROTARY_DIM == 2048);
CHECK(ROPE_MAX_XPOS_DIM == 512);
CHECK(ROPE_MAX_FLOAT32_ROTARY_DIM == 1024);
CHECK(ROPE_TABLE_RADIANS == 1);
CHECK(ROPE_TABLE_ELEMENTS == 2);
CHECK(ROPE_BROADCAST == INT64_MIN);
CHECK(ROPE_MAX_STREAMS == 4);
CHECK(ROPE_MAX_PAIR_STREAMS == 8);

CHECK(sizeof(rope_status) == 4);
CHECK(sizeof(rope_backend) == 4);
CHECK(sizeof(rope_dtype) == 4);
CHECK(sizeof(rope_layout) == 4);
CHECK(sizeof(rope_angle) == 4);
CHECK(sizeof(rope_index_dtype) == 4);
CHECK(sizeof(rope_scaling) == 4);

/* An incompatible pointer is a warning, and warnings are errors here. */
static const struct {
  void (*frequencies_desc_init)(rope_frequencies_desc*);
  void (*apply_desc_init)(rope_apply_desc*);
  int32_t (*frequencies)(const rope_frequencies_desc*, uint64_t*, double*, double*);
  int32_t (*apply)(const rope_apply_desc*);
  void (*build_cos_sin_desc_init)(rope_build_cos_sin_desc*);
  int32_t (*build_cos_sin)(const rope_build_cos_sin_desc*);
  int32_t (*query_support)(const rope_support_query*, int32_t*);
  int32_t (*device_count)(void);
  uint32_t (*version)(void);
  const char* (*build_info)(void);
  const char* (*status_string)(int32_t);
  const char* (*last_error)(void);
} functions =
    {rope_frequencies_desc_init, rope_apply_desc_init, rope_frequencies,  rope_apply,   rope_build_cos_sin_desc_init,
     rope_build_cos_sin,         rope_query_support,   rope_device_count, rope_version, rope_build_info,
     rope_status_string,         rope_last_error};

int main(void) { return functions.apply == 0; }
