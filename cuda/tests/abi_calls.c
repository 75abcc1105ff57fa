/* What a C program may rely on when it calls the library, on the CPU backend. */
#include <roperope/roperope.h>
#include <stdio.h>
#include <string.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "c_check.h"

/* A call that must fail with `status`, name `text`, and leave q and k as they are. */
#define CHECK_REFUSED(call, status, text)             \
  do {                                                \
    CHECK((call) == (status));                        \
    CHECK(strstr(rope_last_error(), (text)) != NULL); \
    CHECK(memcmp(q, original, sizeof(q)) == 0);       \
    CHECK(memcmp(k, original, sizeof(k)) == 0);       \
  } while (0)

enum { TOKENS = 2, HEAD_DIM = 4 };

static const float original[TOKENS][HEAD_DIM] = {{1, 2, 3, 4}, {1, 2, 3, 4}};
static float q[TOKENS][HEAD_DIM], k[TOKENS][HEAD_DIM];
static uint64_t words[HEAD_DIM / 2];

/* Descriptor of a rotation of q, in place. */
static rope_apply_desc plain(void) {
  rope_apply_desc d;
  memcpy(q, original, sizeof(q));
  memcpy(k, original, sizeof(k));
  rope_apply_desc_init(&d);
  d.backend = ROPE_BACKEND_CPU;
  d.head_dim = HEAD_DIM;
  d.num_q_heads = d.num_k_heads = 1;
  d.num_tokens = TOKENS;
  d.q.data = q;
  d.frequencies = words;
  return d;
}

static int is_near(const float x[HEAD_DIM], float a, float b, float c, float d) {
  const float expected[HEAD_DIM] = {a, b, c, d};
  for (int i = 0; i < HEAD_DIM; ++i)
    if (!(x[i] - expected[i] < 1e-6f && expected[i] - x[i] < 1e-6f)) return 0;
  return 1;
}

/* (1, 2, 3, 4) with the pairs turned by 1 and 0.01 radians. */
static int is_rotated(const float x[HEAD_DIM], rope_layout layout) {
  return layout == ROPE_LAYOUT_NEOX ? is_near(x, -1.98411064f, 1.95990067f, 2.46237790f, 4.01979967f)
                                    : is_near(x, -1.14263966f, 1.92207560f, 2.95985067f, 4.02979950f);
}

static void test_frequencies(void) {
  rope_frequencies_desc d;
  const double factors[HEAD_DIM / 2] = {2, 4};
  double inv_freq[HEAD_DIM / 2] = {-1, -1}, magnitude = -1;
  memset(&d, 0xff, sizeof(d));
  rope_frequencies_desc_init(&d);
  CHECK(d.struct_size == sizeof(d) && d.scaling == 0 && d.theta == 0 && d.inv_freq == NULL);

  d.rotary_dim = HEAD_DIM + 1;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), "rotary_dim") != NULL);
  CHECK(words[0] == 0 && inv_freq[0] == -1 && magnitude == -1);
  CHECK(rope_frequencies(NULL, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  CHECK(rope_frequencies(&d, NULL, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);

  d.rotary_dim = HEAD_DIM;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_OK);
  CHECK(inv_freq[0] == 1.0 && inv_freq[1] == 0.01 && magnitude == 1.0);
  CHECK(rope_frequencies(&d, words, NULL, NULL) == ROPE_OK);

  /* A scaling's list is required with it, and refused with every other. */
  d.scaling = ROPE_SCALING_PAIR_FACTORS;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), "pair_factors: NULL, required with ROPE_SCALING_PAIR_FACTORS") != NULL);
  d.pair_factors = factors;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_OK);
  CHECK(inv_freq[0] == 0.5 && inv_freq[1] == 0.0025 && magnitude == 1.0);
  d.scaling = ROPE_SCALING_NONE;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), "pair_factors: only allowed with ROPE_SCALING_PAIR_FACTORS") != NULL);

  /* A program of the first release has no pair_factors. */
  d.struct_size = offsetof(rope_frequencies_desc, beta_fast);
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_OK);
  CHECK(inv_freq[0] == 1.0 && inv_freq[1] == 0.01);

  d.struct_size = sizeof(d);
  d.pair_factors = NULL;
  d.scaling = ROPE_SCALING_PROPORTIONAL + 1;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  d.scaling = ROPE_SCALING_YARN;
  d.factor = 4.0;
  d.original_max_position = 4096;
  d.no_truncate = 2;
  CHECK(rope_frequencies(&d, words, inv_freq, &magnitude) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), "no_truncate: 2") != NULL);
}

static void test_rotation(void) {
  rope_apply_desc d = plain();
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(q[0], original[0], sizeof(q[0])) == 0);
  CHECK(is_rotated(q[1], ROPE_LAYOUT_NEOX));

  d = plain();
  d.layout = ROPE_LAYOUT_GPTJ;
  d.q_out.data = k;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(q, original, sizeof(q)) == 0);
  CHECK(is_rotated(k[1], ROPE_LAYOUT_GPTJ));
}

/* (1, 2, 3, 4) with the pairs turned by 1 and 0.01 radians, times zeta = 2/7 and 9/14. */
static void test_xpos(void) {
  rope_apply_desc d = plain();
  d.xpos.scale_base = 1;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(q[0], original[0], sizeof(q[0])) == 0);
  CHECK(is_near(q[1], -0.56688875f, 1.25993615f, 0.70353654f, 2.58415693f));

  d.xpos.gamma = 0.4;
  d.xpos.center = 1;
  memcpy(q, original, sizeof(q));
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_near(q[0], 3.5f, 3.11111111f, 10.5f, 6.22222222f) && is_rotated(q[1], ROPE_LAYOUT_NEOX));
}

static void test_struct_sizes(void) {
  struct {
    rope_apply_desc d;
    unsigned char tail[64];
  } newer;
  rope_apply_desc d = plain();
  const size_t oldest = offsetof(rope_apply_desc, attention_factor);

  /* An older program knows nothing of what lies behind its descriptor. */
  memset((char*)&d + oldest, 0xa5, sizeof(d) - oldest);
  d.struct_size = (uint32_t)oldest;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(q[0], original[0], sizeof(q[0])) == 0);
  CHECK(is_rotated(q[1], ROPE_LAYOUT_NEOX));

  memset(&newer, 0, sizeof(newer));
  newer.d = plain();
  newer.d.struct_size = (uint32_t)sizeof(newer);
  CHECK(rope_apply(&newer.d) == ROPE_OK);
  CHECK(is_rotated(q[1], ROPE_LAYOUT_NEOX));

  newer.d = plain();
  newer.d.struct_size = (uint32_t)sizeof(newer);
  newer.tail[sizeof(newer.tail) - 1] = 1;
  CHECK_REFUSED(rope_apply(&newer.d), ROPE_ERR_VERSION, "rope_apply_desc");
  newer.d.struct_size = (uint32_t)sizeof(newer) - 1;
  CHECK(rope_apply(&newer.d) == ROPE_OK);

  d = plain();
  d.struct_size = 0;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "struct_size");
  d.struct_size = (uint32_t)oldest - 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "struct_size");
  d.struct_size = 0xcccccccc;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "struct_size");
  CHECK_REFUSED(rope_apply(NULL), ROPE_ERR_INVALID_ARG, "NULL");
}

static void test_refusals(void) {
  rope_apply_desc d = plain();
  d.backend = 7;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "backend");
  d = plain();
  d.flags = 1u << 31;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "flags");
  d = plain();
  d.rotary_dim = HEAD_DIM + 2;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "rotary_dim");
  d = plain();
  d.frequencies = NULL;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "frequencies");
  d = plain();
  d.norm.reserved = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "reserved");
  d = plain();
  d.cache.skips_tokens = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "cache.kind: ROPE_CACHE_NONE (0), but");
  d = plain();
  d.skip_position = 5;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "skip_position: 5, must be 0 without ROPE_SKIP_VALUE");
  d.skip_kind = 3;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "skip_kind: 3, must be 0 to 2");
  d = plain();
  d.copy_skipped = 2;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "copy_skipped: 2, must be 0 to 1");
  d = plain();
  d.sequence_length = d.num_tokens + 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "sequence_length");
  d = plain();
  d.q.head_stride = ROPE_BROADCAST;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "q: strides overlap");
  d = plain();
  d.out_layout = 3;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "out_layout: 3, must be 0 to 2");
  d.out_layout = ROPE_OUT_LAYOUT_GPTJ;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "q_out: NULL, required with another out_layout");
  d = plain();
  d.flags |= ROPE_FLAG_NO_ROTATION;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "q_out: NULL, required for a tensor that is neither");
  d = plain();
  d.xpos.center = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "xpos.scale_base: 0, but xpos has other fields set");
  d.xpos.scale_base = -512;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "xpos.scale_base: -512, must be 1e-06 to 1e+18");
  d.xpos.scale_base = 512;
  d.xpos.gamma = -0.5;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "xpos.gamma: -0.5, must be 1e-06 to 1e+06");
  d.xpos.gamma = 0;
  d.head_dim = ROPE_MAX_XPOS_DIM + 2;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_UNSUPPORTED, "rotary_dim: 514, must be at most 512 with xpos");
  d.head_dim = HEAD_DIM;
  d.angle = ROPE_ANGLE_COS_SIN;
  d.cos_sin.cos = k;
  d.cos_sin.num_rows = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_UNSUPPORTED, "xpos: not with ROPE_ANGLE_COS_SIN");
  d = plain();
  d.q.data = (char*)q + 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "q");
  d = plain();
  d.q.data = (void*)1024;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "q: 0x400");
  d = plain();
  d.positions = (const void*)1024;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "positions: 0x400");
  d = plain();
  d.positions = q;
  d.position_dtype = ROPE_INDEX_INT32;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "positions: overlaps q");
  d = plain();
  d.k.data = k;
  d.k_out.data = q;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "k_out");
}

/* (cos | sin) of a row with the pairs turned by `position` times 1 and 0.01 radians. */
static int is_table_row(const float x[HEAD_DIM], int position) {
  return position == 1 ? is_near(x, 0.54030231f, 0.99995000f, 0.84147098f, 0.00999983f)
                       : is_near(x, -0.41614684f, 0.99980001f, 0.90929743f, 0.01999867f);
}

static void test_refused_sums_and_dtypes(void) {
  rope_apply_desc d = plain();
  d.norm_sums.ranks = 2;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.ranks: 2, must be 0 without norm.across_heads");
  d.norm_sums.ranks = ROPE_MAX_NORM_RANKS + 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.ranks: 16385, must be 0 to 16384");
  d = plain();
  d.norm_sums.write = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.write: 1, must be 0 to 0");
  d = plain();
  d.norm_sums.q = k[0];
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.q: only allowed with ranks");
  d = plain();
  d.norm.q_weight = k;
  d.norm.across_heads = d.norm_sums.ranks = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.q: NULL");
  d.norm_sums.q = q[0];
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm_sums.q: overlaps q in memory");
  d = plain();
  d.k_dtype = ROPE_OUT_F16;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_UNSUPPORTED, "k_dtype: 5, must be 0 or ROPE_OUT_F32 (4), as dtype");
  d.dtype = ROPE_DTYPE_BF16;
  d.k_dtype = ROPE_OUT_F32;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_UNSUPPORTED, "k_dtype: 4, must be 0 or of two bytes as dtype");
  d.k_dtype = ROPE_OUT_F16;
  d.flags = ROPE_FLAG_IN_CACHE;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "k_dtype: 5, must be 0 with ROPE_FLAG_IN_CACHE");
}

static void test_build_cos_sin(void) {
  const int32_t positions[TOKENS] = {2, 1};
  struct {
    rope_build_cos_sin_desc d;
    unsigned char tail[8];
  } newer;
  rope_build_cos_sin_desc d;
  memset(&d, 0xff, sizeof(d));
  rope_build_cos_sin_desc_init(&d);
  CHECK(d.struct_size == sizeof(d) && d.backend == ROPE_BACKEND_CUDA && d.attention_factor == 0 && d.stream == NULL);

  plain();
  d.backend = ROPE_BACKEND_CPU;
  d.rotary_dim = HEAD_DIM;
  d.num_rows = TOKENS;
  d.frequencies = words;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "cos: NULL");
  d.cos = q;
  d.angle = ROPE_ANGLE_COS_SIN;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "angle: 2, must be one of ROPE_ANGLE_EXACT (0)");
  d.angle = ROPE_ANGLE_EXACT;
  d.flags = ROPE_FLAG_INVERSE;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "flags: 0x1");
  d.flags = 0;
  d.reserved = 1;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "reserved");
  d.reserved = 0;
  d.frequencies = NULL;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "frequencies");
  d.frequencies = words;
  d.rotary_dim = ROPE_MAX_ROTARY_DIM + 2;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "rotary_dim: 2050, must be even and 2 to 2048");
  d.rotary_dim = HEAD_DIM;
  d.struct_size = offsetof(rope_build_cos_sin_desc, parallel_for) - 1;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "rope_build_cos_sin_desc.struct_size");
  CHECK_REFUSED(rope_build_cos_sin(NULL), ROPE_ERR_INVALID_ARG, "rope_build_cos_sin_desc: NULL");
  d.struct_size = sizeof(d);
  memset(&newer, 0, sizeof(newer));
  newer.d = d;
  newer.d.struct_size = sizeof(newer);
  newer.tail[0] = 1;
  CHECK_REFUSED(rope_build_cos_sin(&newer.d), ROPE_ERR_VERSION, "rope_build_cos_sin_desc");

  /* One row behind the other, [cos | sin]; then by positions, apart. */
  d.offset = 1;
  CHECK(rope_build_cos_sin(&d) == ROPE_OK);
  CHECK(is_table_row(q[0], 1) && is_table_row(q[1], 2));
  plain();
  d.positions = positions;
  d.position_dtype = ROPE_INDEX_INT32;
  CHECK_REFUSED(rope_build_cos_sin(&d), ROPE_ERR_INVALID_ARG, "offset: 1, must be 0 with positions");
  d.offset = 0;
  d.sin = &q[0][HEAD_DIM / 2];
  d.row_stride = HEAD_DIM;
  CHECK(rope_build_cos_sin(&d) == ROPE_OK);
  CHECK(is_table_row(q[0], 2) && is_table_row(q[1], 1));
}

/* Keys in a cache of one page, which is q. */
static rope_apply_desc in_cache(const int64_t* slots) {
  rope_apply_desc d = plain();
  d.flags = ROPE_FLAG_IN_CACHE;
  d.q.data = NULL;
  d.cache.kind = ROPE_CACHE_SLOTS;
  d.cache.num_pages = 1;
  d.cache.page_size = TOKENS;
  d.cache.k.data = q;
  d.cache.k.entry_stride = HEAD_DIM;
  d.cache.slots = slots;
  return d;
}

static void test_in_cache(void) {
  const int64_t slots[TOKENS] = {1, -1};
  rope_apply_desc d = in_cache(slots);
  d.offset = 1;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(q[0], original[0], sizeof(q[0])) == 0);
  CHECK(is_rotated(q[1], ROPE_LAYOUT_NEOX));

  static const struct {
    const char* text;
    size_t at;
  } refused[] = {{"q: not allowed", offsetof(rope_apply_desc, q)},
                 {"k: not allowed", offsetof(rope_apply_desc, k)},
                 {"v: not allowed", offsetof(rope_apply_desc, v)},
                 {"q_nope: not allowed", offsetof(rope_apply_desc, q_nope)},
                 {"q_out: not allowed", offsetof(rope_apply_desc, q_out)},
                 {"k_out: not allowed", offsetof(rope_apply_desc, k_out)},
                 {"v_out: not allowed", offsetof(rope_apply_desc, v_out)},
                 {"q_nope_out: not allowed", offsetof(rope_apply_desc, q_nope_out)},
                 {"cache.v: not allowed", offsetof(rope_apply_desc, cache.v)},
                 {"norm.q_weight: not allowed", offsetof(rope_apply_desc, norm.q_weight)},
                 {"norm.k_weight: not allowed", offsetof(rope_apply_desc, norm.k_weight)}};
  for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); ++i) {
    void* const data = k;
    d = in_cache(slots);
    memcpy((char*)&d + refused[i].at, &data, sizeof(data));
    CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, refused[i].text);
    CHECK(strncmp(rope_last_error(), refused[i].text, strlen(refused[i].text)) == 0);
  }
  d = in_cache(slots);
  d.cache.k.data = NULL;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "cache.k: NULL, required");
  d = in_cache(slots);
  d.num_k_heads = 0;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "num_k_heads: 0");
  d = in_cache(slots);
  d.k_quantize.out_dtype = 99;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "k_quantize: 99");
  d = in_cache(slots);
  d.norm.eps = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "norm: ");
  d = plain();
  d.flags = ROPE_FLAG_IN_CACHE;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "cache.kind: ROPE_CACHE_NONE (0), ROPE_FLAG_IN_CACHE requires");
  d = plain();
  d.flags = 1u << 30;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "flags: 0x40000000");
}

/* Neither the caller's flush-to-zero nor its rounding mode changes a result, and both are as they were afterwards. */
static void test_float_environment(void) {
#if defined(__SSE__)
  enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x0040, ROUND_UP = 0x4000 };
  const unsigned saved = _mm_getcsr(), unusual = saved | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO | ROUND_UP;
  const uint32_t denormal[HEAD_DIM] = {1, 2, 0x007fffff, 0x80000003};
  float expected[TOKENS][HEAD_DIM];
  rope_frequencies_desc frequencies;
  uint64_t here[HEAD_DIM / 2];
  rope_apply_desc d = plain();
  CHECK(rope_apply(&d) == ROPE_OK);
  memcpy(expected, q, sizeof(q));
  rope_frequencies_desc_init(&frequencies);
  frequencies.rotary_dim = HEAD_DIM;

  d = plain();
  memcpy(q[0], denormal, sizeof(denormal)); /* at position 0 */
  _mm_setcsr(unusual);
  const rope_status frequencies_status = rope_frequencies(&frequencies, here, NULL, NULL);
  const rope_status status = rope_apply(&d);
  const unsigned after = _mm_getcsr();
  _mm_setcsr(saved);
  CHECK(frequencies_status == ROPE_OK && memcmp(here, words, sizeof(words)) == 0);
  CHECK(status == ROPE_OK && (after & 0xffc0u) == (unusual & 0xffc0u));
  CHECK(memcmp(q[0], denormal, sizeof(denormal)) == 0);
  CHECK(memcmp(q[1], expected[1], sizeof(q[1])) == 0);
#endif
}

int main(void) {
  test_frequencies();
  test_rotation();
  test_xpos();
  test_struct_sizes();
  test_refusals();
  test_refused_sums_and_dtypes();
  test_build_cos_sin();
  test_in_cache();
  test_float_environment();
  printf("%d failures\n", failures);
  return failures != 0;
}
