/* An engine's own threads in the place of the library's: the fields parallel_for and parallel_context. */
#include <pthread.h>
#include <roperope/roperope.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_check.h"

enum { HEADS = 8, HEAD_DIM = 128, TOKENS = 600, ELEMENTS = TOKENS * HEADS * HEAD_DIM, THREADS = 4, ROWS = 4000 };

static uint64_t words[HEAD_DIM / 2];
static float original[ELEMENTS], expected[ELEMENTS], got[ELEMENTS];

/* What an engine's function was called with. */
typedef struct {
  int calls;
  int64_t num_pieces;
} Seen;

static void serial(void* context, int64_t num_pieces, rope_piece piece, void* data) {
  Seen* const seen = context;
  ++seen->calls;
  seen->num_pieces = num_pieces;
  for (int64_t i = 0; i < num_pieces; ++i) piece(data, num_pieces - 1 - i);
}

/* Every THREADS-th piece from a first one. */
typedef struct {
  int64_t first, num_pieces;
  rope_piece piece;
  void* data;
} Share;

static void* run_share(void* argument) {
  const Share* const share = argument;
  for (int64_t i = share->first; i < share->num_pieces; i += THREADS) share->piece(share->data, i);
  return NULL;
}

static void threaded(void* context, int64_t num_pieces, rope_piece piece, void* data) {
  Seen* const seen = context;
  pthread_t threads[THREADS];
  Share shares[THREADS];
  ++seen->calls;
  seen->num_pieces = num_pieces;
  for (int i = 0; i < THREADS; ++i) {
    const Share share = {i, num_pieces, piece, data};
    shares[i] = share;
    if (pthread_create(&threads[i], NULL, run_share, &shares[i])) abort();
  }
  for (int i = 0; i < THREADS; ++i) pthread_join(threads[i], NULL);
}

/* Descriptor of a rotation of `got`, in place. */
static rope_apply_desc rotation(int64_t num_tokens) {
  rope_apply_desc d;
  memcpy(got, original, sizeof(got));
  rope_apply_desc_init(&d);
  d.backend = ROPE_BACKEND_CPU;
  d.head_dim = HEAD_DIM;
  d.num_q_heads = HEADS;
  d.num_tokens = num_tokens;
  d.q.data = got;
  d.frequencies = words;
  d.offset = 7;
  return d;
}

static void test_bits(void) {
  const rope_parallel_for functions[] = {serial, threaded};
  rope_apply_desc d = rotation(TOKENS);
  d.num_threads = 1;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(got, original, sizeof(got)) != 0);
  memcpy(expected, got, sizeof(got));
  for (int i = 0; i < 2; ++i) {
    Seen seen = {0, 0};
    d = rotation(TOKENS);
    d.parallel_for = functions[i];
    d.parallel_context = &seen;
    CHECK(rope_apply(&d) == ROPE_OK);
    CHECK(memcmp(got, expected, sizeof(got)) == 0);
    CHECK(seen.calls == 1 && seen.num_pieces > 1 && seen.num_pieces <= TOKENS);
  }
}

/* Where there is nothing to share, the engine is not asked. */
static void test_little_work(void) {
  Seen seen = {0, 0};
  rope_apply_desc d = rotation(0);
  d.parallel_for = serial;
  d.parallel_context = &seen;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(got, original, sizeof(got)) == 0);
  d.num_tokens = 2;
  CHECK(rope_apply(&d) == ROPE_OK);
  CHECK(memcmp(got, original, sizeof(got)) != 0);
  CHECK(seen.calls == 0);
}

static void test_build_cos_sin(void) {
  Seen seen = {0, 0};
  rope_build_cos_sin_desc d;
  rope_build_cos_sin_desc_init(&d);
  d.backend = ROPE_BACKEND_CPU;
  d.rotary_dim = HEAD_DIM;
  d.frequencies = words;
  d.num_rows = ROWS;
  d.num_threads = 1;
  d.cos = expected;
  CHECK(rope_build_cos_sin(&d) == ROPE_OK);
  d.cos = got;
  d.parallel_for = threaded;
  d.parallel_context = &seen;
  CHECK(rope_build_cos_sin(&d) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), "num_threads: 1, must be 0 with parallel_for") != NULL);
  d.num_threads = 0;
  CHECK(rope_build_cos_sin(&d) == ROPE_OK);
  CHECK(seen.calls == 1 && seen.num_pieces > 1);
  CHECK(memcmp(got, expected, sizeof(float) * HEAD_DIM * ROWS) == 0);

  /* A program of the version before has no such fields. */
  d.struct_size = offsetof(rope_build_cos_sin_desc, parallel_for);
  CHECK(rope_build_cos_sin(&d) == ROPE_OK);
  CHECK(seen.calls == 1);
}

static void check_refused(const rope_apply_desc* d, const char* text) {
  CHECK(rope_apply(d) == ROPE_ERR_INVALID_ARG);
  CHECK(strstr(rope_last_error(), text) != NULL);
  CHECK(memcmp(got, original, sizeof(got)) == 0);
}

static void test_refusals(void) {
  Seen seen = {0, 0};
  rope_apply_desc d = rotation(TOKENS);
  d.parallel_context = &seen;
  check_refused(&d, "parallel_context: 0x");
  d.parallel_for = serial;
  d.num_threads = 2;
  check_refused(&d, "num_threads: 2, must be 0 with parallel_for");
  CHECK(seen.calls == 0);

  rope_support_query query = {sizeof(query), ROPE_BACKEND_CUDA, ROPE_DTYPE_F32, ROPE_LAYOUT_NEOX, ROPE_ANGLE_EXACT};
  int32_t compiled = 0;
  CHECK(rope_query_support(&query, &compiled) == ROPE_OK);
  if (!compiled) return;
  d.num_threads = 0;
  d.backend = ROPE_BACKEND_CUDA;
  check_refused(&d, "parallel_for: must be NULL on the CUDA backend");
}

int main(void) {
  rope_frequencies_desc f;
  rope_frequencies_desc_init(&f);
  f.rotary_dim = HEAD_DIM;
  CHECK(rope_frequencies(&f, words, NULL, NULL) == ROPE_OK);
  for (int i = 0; i < ELEMENTS; ++i) original[i] = (float)(i % 1000) - 499.5f;
  test_bits();
  test_little_work();
  test_build_cos_sin();
  test_refusals();
  if (failures) fprintf(stderr, "%d checks failed\n", failures);
  return failures != 0;
}
