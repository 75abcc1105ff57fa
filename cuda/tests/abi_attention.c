/* Attention as a C program calls it, on the CPU backend: one head of two elements, whose only pair turns by one radian
 * a position, and a sequence of two tokens. */
#include <math.h>
#include <roperope/attention.h>
#include <string.h>

#include "c_check.h"

#define CHECK_REFUSED(call, status, text)             \
  do {                                                \
    CHECK((call) == (status));                        \
    CHECK(strstr(rope_last_error(), (text)) != NULL); \
    CHECK(o[0][0] == 7 && o[1][1] == 7);              \
  } while (0)

enum { TOKENS = 2, HEAD_DIM = 2 };

static float q[TOKENS][HEAD_DIM] = {{1, 0}, {2, 1}}, k[TOKENS][HEAD_DIM] = {{0, 1}, {1, 1}};
static float v[TOKENS][HEAD_DIM] = {{1, 2}, {3, -1}}, o[TOKENS][HEAD_DIM], q_out[TOKENS][HEAD_DIM], lse[TOKENS];
static uint64_t words[HEAD_DIM / 2];
static char memory[4096];
static rope_apply_desc rotation;

static rope_attention_desc causal(void) {
  rope_attention_desc d;
  for (int i = 0; i < TOKENS * HEAD_DIM; ++i) o[i / HEAD_DIM][i % HEAD_DIM] = 7;
  rope_apply_desc_init(&rotation);
  rotation.frequencies = words;
  rope_attention_desc_init(&d);
  d.flags = ROPE_ATTENTION_CAUSAL;
  d.backend = ROPE_BACKEND_CPU;
  d.head_dim = HEAD_DIM;
  d.num_q_heads = d.num_k_heads = d.num_sequences = 1;
  d.num_q_tokens = d.num_k_tokens = TOKENS;
  d.q.data = q;
  d.k.data = k;
  d.v.data = v;
  d.o.data = o;
  d.rotation = &rotation;
  d.lse = lse;
  d.workspace = (void*)(((uintptr_t)memory + 255) / 256 * 256);
  d.workspace_bytes = 1024;
  return d;
}

static int is_near(double x, double y) { return fabs(x - y) < 1e-6; }

static void test_result(void) {
  rope_attention_desc d = causal();
  int64_t bytes = -1;
  CHECK(rope_attention_workspace(&d, &bytes) == ROPE_OK && bytes == 2 * 256);
  CHECK(rope_attention(&d) == ROPE_OK);
  /* Query 1 at position 1 and key 0: they are a radian apart. Key 1 is at its place. */
  const double far = ((2 * cos(1) - sin(1)) * 0 + (1 * cos(1) + 2 * sin(1)) * 1) / sqrt(2), near = (2 + 1) / sqrt(2);
  const double sum = exp(far) + exp(near), share = exp(far) / sum;
  CHECK(o[0][0] == 1 && o[0][1] == 2 && lse[0] == 0);
  CHECK(is_near(o[1][0], share * 1 + (1 - share) * 3) && is_near(o[1][1], share * 2 - (1 - share)));
  CHECK(is_near(lse[1], log(sum)));
}

static void test_kept(void) {
  rope_attention_desc d = causal();
  int64_t bytes = -1;
  d.q_out.data = q_out;
  CHECK(rope_attention_workspace(&d, &bytes) == ROPE_OK && bytes == 256);
  CHECK(rope_attention(&d) == ROPE_OK);
  CHECK(q_out[0][0] == 1 && q_out[0][1] == 0);
  CHECK(is_near(q_out[1][0], 2 * cos(1) - sin(1)) && is_near(q_out[1][1], cos(1) + 2 * sin(1)));
  CHECK(q[1][0] == 2 && q[1][1] == 1);
}

static void test_rotated_already(void) {
  rope_attention_desc d = causal();
  d.rotation = NULL;
  d.workspace = NULL;
  d.workspace_bytes = 0;
  CHECK(rope_attention(&d) == ROPE_OK);
  CHECK(is_near(lse[1], log(exp(1 / sqrt(2)) + exp(3 / sqrt(2)))));
}

/* What is behind the first fields may be missing. */
static void test_short(void) {
  rope_attention_desc d = causal();
  d.rotation = NULL;
  d.struct_size = offsetof(rope_attention_desc, q_out) - 1;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "rope_attention_desc.struct_size: 191, must be at least 192");
  d.struct_size += 1;
  lse[0] = 7;
  CHECK(rope_attention(&d) == ROPE_OK);
  CHECK(o[0][0] == 1 && o[0][1] == 2 && lse[0] == 7);
}

static void test_refusals(void) {
  rope_attention_desc d = causal();
  CHECK_REFUSED(rope_attention(NULL), ROPE_ERR_INVALID_ARG, "rope_attention_desc: NULL");
  CHECK_REFUSED(rope_attention_workspace(&d, NULL), ROPE_ERR_INVALID_ARG, "bytes: NULL");
  d.workspace_bytes = 511;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "workspace_bytes: 511, must be at least 512");
  d = causal();
  d.workspace = memory + 1;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "workspace: pointer");
  d = causal();
  d.o.data = v;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "o: overlaps v in memory");
  d = causal();
  d.flags |= 64;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "flags: 0x41");
  d = causal();
  d.window_left = 3;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "window_left: 3, must be 0 without ROPE_ATTENTION_WINDOW");
  d = causal();
  rotation.q.data = q;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "rotation.q: not allowed");
  d = causal();
  rotation.k_dtype = ROPE_OUT_F16;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "rotation.k_dtype: not allowed");
  d = causal();
  rotation.frequencies = NULL;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "frequencies: NULL");
  d = causal();
  d.num_q_heads = 0;
  CHECK_REFUSED(rope_attention(&d), ROPE_ERR_INVALID_ARG, "num_q_heads: 0, must be 1 to");
}

static float k_out[TOKENS][HEAD_DIM], d_o[TOKENS][HEAD_DIM] = {{1, 2}, {3, 4}};
static float dq[TOKENS][HEAD_DIM], dk[TOKENS][HEAD_DIM], dv[TOKENS][HEAD_DIM];

static rope_attention_backward_desc backward(rope_attention_desc* forward) {
  rope_attention_backward_desc b;
  for (int i = 0; i < TOKENS * HEAD_DIM; ++i) dq[i / HEAD_DIM][i % HEAD_DIM] = 7;
  forward->q_out.data = q_out;
  forward->k_out.data = k_out;
  CHECK(rope_attention(forward) == ROPE_OK);
  rope_attention_backward_desc_init(&b);
  b.forward = forward;
  b.d_o.data = d_o;
  b.dq.data = dq;
  b.dk.data = dk;
  b.dv.data = dv;
  return b;
}

static void test_backward(void) {
  rope_attention_desc d = causal();
  rope_attention_backward_desc b = backward(&d);
  int64_t bytes = -1;
  CHECK(rope_attention_backward_workspace(&b, &bytes) == ROPE_OK && bytes == 0);
  CHECK(rope_attention_backward(&b) == ROPE_OK);
  /* As test_result: the only gradient of a weight is that of query 1's share of key 0. */
  const double far = (cos(1) + 2 * sin(1)) / sqrt(2), near = 3 / sqrt(2), share = exp(far) / (exp(far) + exp(near));
  const double slope = share * (1 - share) * (3 * (1 - 3) + 4 * (2 + 1)) / sqrt(2);
  CHECK(dq[0][0] == 0 && dq[0][1] == 0);
  CHECK(is_near(dq[1][0], slope * (sin(1) - 1)) && is_near(dq[1][1], slope * (cos(1) - 1)));
  CHECK(is_near(dk[0][0], slope * (2 * cos(1) - sin(1))) && is_near(dk[0][1], slope * (cos(1) + 2 * sin(1))));
  CHECK(is_near(dk[1][0], -slope * 2) && is_near(dk[1][1], -slope * 1));
  CHECK(is_near(dv[0][0], 1 + share * 3) && is_near(dv[1][1], (1 - share) * 4));
  const float d_lse[TOKENS] = {0, 1};
  const double dk_1 = dk[1][0];
  b.d_lse = d_lse;
  CHECK(rope_attention_backward(&b) == ROPE_OK);
  CHECK(is_near(dk[1][0], dk_1 + (1 - share) * 2 / sqrt(2)));
}

#define CHECK_BACKWARD_REFUSED(text)                            \
  do {                                                          \
    CHECK(rope_attention_backward(&b) == ROPE_ERR_INVALID_ARG); \
    CHECK(strstr(rope_last_error(), (text)) != NULL);           \
    CHECK(dq[0][0] == 7 && dq[1][1] == 7);                      \
  } while (0)

static void test_backward_refusals(void) {
  rope_attention_desc d = causal();
  rope_attention_backward_desc b = backward(&d);
  CHECK(rope_attention_backward_workspace(&b, NULL) == ROPE_ERR_INVALID_ARG);
  CHECK(rope_attention_backward(NULL) == ROPE_ERR_INVALID_ARG);
  b.flags = 2;
  CHECK_BACKWARD_REFUSED("flags: 0x2 has bits other than ROPE_ATTENTION_BACKWARD_DETERMINISTIC (1)");
  b = backward(&d);
  b.struct_size = offsetof(rope_attention_backward_desc, d_sinks) - 1;
  CHECK_BACKWARD_REFUSED("rope_attention_backward_desc.struct_size: 151, must be at least 152");
  b = backward(&d);
  b.forward = NULL;
  CHECK_BACKWARD_REFUSED("rope_attention_desc: NULL");
  b = backward(&d);
  d.k_out.data = NULL;
  CHECK_BACKWARD_REFUSED("forward.k_out: NULL, required where it was rotated");
  b = backward(&d);
  d.lse = NULL;
  CHECK_BACKWARD_REFUSED("forward.lse: NULL, required");
  d.lse = lse;
  b.dv.data = v;
  CHECK_BACKWARD_REFUSED("dv: overlaps v in memory");
  b = backward(&d);
  b.d_sinks = lse;
  CHECK_BACKWARD_REFUSED("d_sinks: given, but forward.sinks is NULL");
  b = backward(&d);
  rotation.frequencies = NULL;
  CHECK_BACKWARD_REFUSED("frequencies: NULL");
}

int main(void) {
  rope_frequencies_desc f;
  rope_frequencies_desc_init(&f);
  f.rotary_dim = HEAD_DIM;
  CHECK(rope_frequencies(&f, words, NULL, NULL) == ROPE_OK);
  test_result();
  test_kept();
  test_rotated_already();
  test_short();
  test_refusals();
  test_backward();
  test_backward_refusals();
  printf("%d failures\n", failures);
  return failures != 0;
}
