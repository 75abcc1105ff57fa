/* Decoding as a C program calls it, on the CPU backend: a request of two tokens in a page each, one head of two
 * elements, whose only pair turns by one radian a position. */
#include <math.h>
#include <roperope/decode.h>
#include <string.h>

#include "c_check.h"

#define CHECK_REFUSED(call, status, text)             \
  do {                                                \
    CHECK((call) == (status));                        \
    CHECK(strstr(rope_last_error(), (text)) != NULL); \
    CHECK(o[0] == 7 && o[1] == 7);                    \
  } while (0)

enum { PAGES = 3, HEAD_DIM = 2 };

static float q[HEAD_DIM] = {2, 1}, o[HEAD_DIM], lse;
static float k[PAGES][HEAD_DIM] = {{1, 1}, {9, 9}, {0, 1}}, v[PAGES][HEAD_DIM] = {{3, -1}, {9, 9}, {1, 2}};
static int32_t page_table[2] = {2, 0}, lengths[1];
static uint64_t words[HEAD_DIM / 2];
static rope_apply_desc rotation;

static rope_decode_desc call(void) {
  rope_decode_desc d;
  o[0] = o[1] = 7;
  lengths[0] = 2;
  rope_apply_desc_init(&rotation);
  rotation.frequencies = words;
  rope_decode_desc_init(&d);
  d.backend = ROPE_BACKEND_CPU;
  d.head_dim = HEAD_DIM;
  d.num_q_heads = d.num_k_heads = d.num_requests = d.num_q_tokens = 1;
  d.q.data = q;
  d.o.data = o;
  d.cache.kind = ROPE_CACHE_PAGES;
  d.cache.num_pages = PAGES;
  d.cache.page_size = 1;
  d.cache.k.data = k;
  d.cache.v.data = v;
  d.cache.k.page_stride = d.cache.k.entry_stride = d.cache.k.head_stride = HEAD_DIM;
  d.cache.v.page_stride = d.cache.v.entry_stride = d.cache.v.head_stride = HEAD_DIM;
  d.cache.page_table = page_table;
  d.cache.page_table_stride = 2;
  d.lengths = lengths;
  d.max_length = 2;
  d.rotation = &rotation;
  d.lse = &lse;
  return d;
}

static int is_near(double x, double y) { return fabs(x - y) < 1e-6; }

static void test_result(void) {
  rope_decode_desc d = call();
  int64_t bytes = -1;
  CHECK(rope_decode_workspace(&d, &bytes) == ROPE_OK && bytes == 0);
  CHECK(rope_decode(&d) == ROPE_OK);
  /* The query is at position 1; keys are as they are in the cache. */
  const double x = 2 * cos(1) - sin(1), y = cos(1) + 2 * sin(1);
  const double far = y / sqrt(2), near = (x + y) / sqrt(2), sum = exp(far) + exp(near), share = exp(far) / sum;
  CHECK(is_near(o[0], share * 1 + (1 - share) * 3) && is_near(o[1], share * 2 - (1 - share)));
  CHECK(is_near(lse, log(sum)));
  d.flags = ROPE_ATTENTION_WINDOW; /* window_left 0: its own key alone */
  CHECK(rope_decode(&d) == ROPE_OK);
  CHECK(o[0] == 3 && o[1] == -1 && is_near(lse, near));
}

/* What is behind the first fields may be missing. */
static void test_short(void) {
  rope_decode_desc d = call();
  d.struct_size = offsetof(rope_decode_desc, lse) - 1;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "rope_decode_desc.struct_size: 311, must be at least 312");
  d.struct_size += 1;
  lse = 7;
  CHECK(rope_decode(&d) == ROPE_OK);
  CHECK(o[0] != 7 && lse == 7);
}

static void test_refusals(void) {
  rope_decode_desc d = call();
  CHECK_REFUSED(rope_decode(NULL), ROPE_ERR_INVALID_ARG, "rope_decode_desc: NULL");
  CHECK_REFUSED(rope_decode_workspace(&d, NULL), ROPE_ERR_INVALID_ARG, "bytes: NULL");
  d.flags = ROPE_ATTENTION_CAUSAL;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "flags: 0x1 has bits other than ROPE_ATTENTION_WINDOW");
  d = call();
  d.window_left = 3;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "window_left: 3, must be 0 without ROPE_ATTENTION_WINDOW");
  d = call();
  d.cache.kind = ROPE_CACHE_SLOTS;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "cache.kind: 1, must be 2 to 2");
  d = call();
  d.cache.page_size = 0;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "cache.page_size: 0");
  d = call();
  d.cache.k.entry_stride = 1;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "cache.k: strides 2, 1, 2, each must be at least a row");
  d = call();
  d.max_length = 3;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "max_length: 3, must be at most page_table_stride * page_size");
  d = call();
  lengths[0] = 3;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "lengths[0]: 3, must be 0 to max_length (2)");
  d = call();
  d.v_quantize.scale = 2;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "v_quantize: a scale is not allowed with ROPE_OUT_SAME");
  d = call();
  d.k_quantize.out_dtype = d.v_quantize.out_dtype = ROPE_OUT_INT8;
  d.k_quantize.scale_kind = ROPE_SCALE_HEAD;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_UNSUPPORTED, "k_quantize.scale_kind: 2, must be ROPE_SCALE_HOST (0) or");
  d = call();
  d.reserved = 1;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "reserved: 1, must be 0 to 0");
  d = call();
  rotation.q.data = q;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_UNSUPPORTED, "rotation.q: not in a rotation of rope_decode");
  d = call();
  rotation.frequencies = NULL;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "frequencies: NULL");
  d = call();
  d.o.data = v;
  CHECK_REFUSED(rope_decode(&d), ROPE_ERR_INVALID_ARG, "o: overlaps cache.v in memory");
}

int main(void) {
  rope_frequencies_desc f;
  rope_frequencies_desc_init(&f);
  f.rotary_dim = HEAD_DIM;
  CHECK(rope_frequencies(&f, words, NULL, NULL) == ROPE_OK);
  test_result();
  test_short();
  test_refusals();
  printf("%d failures\n", failures);
  return failures != 0;
}
