/* Rotates two tokens of one query head on the CPU and checks the numbers. */
#include <roperope/roperope.h>
#include <stdio.h>

int main(void) {
  /* Positions 1 and 2 of (1, 1, 0, 0): the pairs (0, 2) and (1, 3) turn by 1 and 0.01 radians per position. */
  float q[2][4] = {{1, 1, 0, 0}, {1, 1, 0, 0}};
  const float expected[2][4] = {{0.54030231f, 0.99995000f, 0.84147098f, 0.00999983f},
                                {-0.41614684f, 0.99980001f, 0.90929743f, 0.01999867f}};
  uint64_t words[2];
  rope_frequencies_desc frequencies;
  rope_apply_desc apply;

  rope_frequencies_desc_init(&frequencies);
  frequencies.rotary_dim = 4;
  if (rope_frequencies(&frequencies, words, NULL, NULL) != ROPE_OK) {
    fprintf(stderr, "rope_frequencies: %s\n", rope_last_error());
    return 1;
  }

  rope_apply_desc_init(&apply);
  apply.backend = ROPE_BACKEND_CPU;
  apply.head_dim = 4;
  apply.num_q_heads = 1;
  apply.num_tokens = 2;
  apply.offset = 1;
  apply.q.data = q;
  apply.frequencies = words;
  if (rope_apply(&apply) != ROPE_OK) {
    fprintf(stderr, "rope_apply: %s\n", rope_last_error());
    return 1;
  }

  for (int t = 0; t < 2; ++t)
    for (int i = 0; i < 4; ++i) {
      const float error = q[t][i] - expected[t][i];
      if (!(error < 2e-7f && error > -2e-7f)) {
        fprintf(stderr, "token %d, element %d: %.9g, expected %.9g\n", t, i, q[t][i], expected[t][i]);
        return 1;
      }
    }
  printf("%s\n", rope_build_info());
  return 0;
}
