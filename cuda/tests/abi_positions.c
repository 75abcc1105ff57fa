/* Positions that are no integers or lie in other ways, their streams, blocks of the rotated part, and tables of angles,
 * on the CPU. */
#include <math.h>
#include <roperope/roperope.h>
#include <string.h>

#include "c_check.h"

/* A call that must fail with `status`, name `text`, and leave q as it is. */
#define CHECK_REFUSED(call, status, text)             \
  do {                                                \
    CHECK((call) == (status));                        \
    CHECK(strstr(rope_last_error(), (text)) != NULL); \
    CHECK(memcmp(q, original, sizeof(q)) == 0);       \
  } while (0)

enum { TOKENS = 2, HEAD_DIM = 4 };

static const float original[TOKENS][HEAD_DIM] = {{1, 2, 3, 4}, {1, 2, 3, 4}};
static float q[TOKENS][HEAD_DIM];
static uint64_t words[2][HEAD_DIM / 2]; /* of 1 and 0.01 radians per position, for floats too */

/* Descriptor of a rotation of q, in place. */
static rope_apply_desc plain(void) {
  rope_apply_desc d;
  memcpy(q, original, sizeof(q));
  rope_apply_desc_init(&d);
  d.backend = ROPE_BACKEND_CPU;
  d.head_dim = HEAD_DIM;
  d.num_q_heads = 1;
  d.num_tokens = TOKENS;
  d.q.data = q;
  d.frequencies = words[0];
  return d;
}

/* (1, 2, 3, 4) with elements 0 and `apart` turned by one angle, the two others by the other. */
static int is_turned(const float x[HEAD_DIM], int apart, double angle, double other) {
  int near = 1;
  for (int pair = 0; pair < 2; ++pair) {
    const int first = pair == 0 ? 0 : apart == 2 ? 1 : 2;
    const double c = cos(pair == 0 ? angle : other), s = sin(pair == 0 ? angle : other);
    const double a = original[0][first], b = original[0][first + apart];
    near = near && fabs(x[first] - (a * c - b * s)) < 1e-6 && fabs(x[first + apart] - (b * c + a * s)) < 1e-6;
  }
  return near;
}

static void test_float_positions(void) {
  const float half[TOKENS] = {0.5f, -1.0f};
  rope_frequencies_desc f;
  uint64_t integers[HEAD_DIM / 2];
  rope_apply_desc d = plain();
  rope_frequencies_desc_init(&f);
  f.rotary_dim = HEAD_DIM;
  CHECK(rope_frequencies(&f, integers, NULL, NULL) == ROPE_OK);
  f.position_dtype = ROPE_INDEX_FLOAT32;
  CHECK(rope_frequencies(&f, words[0], NULL, NULL) == ROPE_OK && memcmp(integers, words, sizeof(integers)) == 0);
  d.position_dtype = ROPE_INDEX_FLOAT32;
  d.positions = half;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 0.5, 0.005) && is_turned(q[1], 2, -1, -0.01));

  d = plain();
  d.position_dtype = ROPE_INDEX_FLOAT32 + 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "position_dtype: 3, must be one of");
  d.position_dtype = ROPE_INDEX_FLOAT32;
  d.indptr = half;
  d.num_requests = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG,
                "position_dtype: ROPE_INDEX_FLOAT32 (2), not allowed with indptr");
  d = plain();
  d.head_dim = 2 * ROPE_MAX_FLOAT32_ROTARY_DIM;
  d.position_dtype = ROPE_INDEX_FLOAT32;
  d.positions = half;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_UNSUPPORTED, "rotary_dim: 2048, must be at most 1024");
}

static void test_sequences(void) {
  const int64_t positions[] = {7, 0, 7, 1};
  rope_apply_desc d = plain();
  d.sequence_length = 1; /* every token is the first of its own */
  d.offset = 1;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 1, 0.01) && is_turned(q[1], 2, 1, 0.01));

  d = plain();
  d.positions = positions + 1;
  d.position_stride = 2;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 0, 0) && is_turned(q[1], 2, 1, 0.01));

  d = plain();
  d.positions = positions + 3;
  d.position_stride = ROPE_BROADCAST;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 1, 0.01) && is_turned(q[1], 2, 1, 0.01));

  d = plain();
  d.sequence_length = 3;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "sequence_length: 3, must be 0 or divide num_tokens, 2");
  d.sequence_length = -1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "sequence_length: -1");
  d = plain();
  d.position_stride = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "position_stride: only allowed with positions");
  d.positions = positions;
  d.position_stride = -1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "position_stride: -1, must be 0 to");
  d.position_stride = 0;
  d.position_sequence_stride = 4;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "position_sequence_stride: only allowed with sequence_length");
}

static void test_streams_and_blocks(void) {
  const int32_t positions[2][TOKENS] = {{3, 0}, {7, 2}};
  const uint8_t swapped[] = {1, 0}, outside[] = {0, 2};
  rope_apply_desc d = plain();
  d.positions = positions;
  d.position_dtype = ROPE_INDEX_INT32;
  d.sections.num_streams = 2;
  d.pair_streams = swapped;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 7, 0.03) && is_turned(q[1], 2, 2, 0));
  memcpy(q, original, sizeof(q));
  d.num_blocks = 2;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 1, 7, 0.03) && is_turned(q[1], 1, 2, 0));
  memcpy(q, original, sizeof(q));
  d.layout = ROPE_LAYOUT_GPTJ; /* whose pairs are the same in any block */
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 1, 7, 0.03) && is_turned(q[1], 1, 2, 0));

  memcpy(q, original, sizeof(q));
  d.pair_streams = outside;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "pair_streams[1]: 2, must be below sections.num_streams, 2");
  d.sections.num_streams = ROPE_MAX_PAIR_STREAMS + 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "sections.num_streams: 9, must be 2 to 8");
  d.sections.num_streams = 2;
  d.pair_streams = swapped;
  d.sections.sizes[0] = d.sections.sizes[1] = 1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "sections.sizes: not allowed with pair_streams");
  d = plain();
  d.sections.num_streams = 2;
  d.pair_streams = swapped;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "positions: NULL, required with sections");
  d = plain();
  d.num_blocks = 3;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "num_blocks: 3, must be 1 or more and divide rotary_dim / 2 = 2");
  d.num_blocks = -1;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "num_blocks: -1");
}

static void test_tables(void) {
  const float angles[TOKENS][HEAD_DIM] = {{0.5f, 0.25f, 0.5f, 0.25f}, {3, 2, 3, 2}}, ones[HEAD_DIM] = {1, 1, 1, 1};
  rope_apply_desc d = plain();
  d.frequencies = NULL;
  d.angle = ROPE_ANGLE_COS_SIN;
  d.table_flags = ROPE_TABLE_RADIANS | ROPE_TABLE_ELEMENTS;
  d.cos_sin.cos = angles;
  d.cos_sin.num_rows = TOKENS;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 0.5, 0.25) && is_turned(q[1], 2, 3, 2));
  memcpy(q, original, sizeof(q));
  d.table_flags = ROPE_TABLE_RADIANS;
  d.cos_sin.row_stride = HEAD_DIM;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(is_turned(q[0], 2, 0.5, 0.25) && is_turned(q[1], 2, 3, 2));

  memcpy(q, original, sizeof(q));
  d.cos_sin.sin = ones;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "cos_sin.sin: must be NULL with ROPE_TABLE_RADIANS");
  d.cos_sin.sin = NULL;
  d.cos_sin.dtype = ROPE_DTYPE_F16;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "cos_sin.dtype: 1, must be 0 to 0");
  d.cos_sin.dtype = ROPE_DTYPE_F32;
  d.table_flags = 4;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "table_flags: 0x4 has bits other than");
  d.table_flags = 0;
  d.k_cos_sin = d.cos_sin;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "k_cos_sin: given without k");
  d = plain();
  d.table_flags = ROPE_TABLE_RADIANS;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "table_flags: only allowed with ROPE_ANGLE_COS_SIN");
  d.table_flags = 0;
  d.k_cos_sin.cos = ones;
  CHECK_REFUSED(rope_apply(&d), ROPE_ERR_INVALID_ARG, "k_cos_sin: only allowed with ROPE_ANGLE_COS_SIN");
}

int main(void) {
  test_float_positions();
  test_sequences();
  test_streams_and_blocks();
  test_tables();
  printf("%d failures\n", failures);
  return failures != 0;
}
