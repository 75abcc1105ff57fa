/* Rotates two tokens on the CPU and prints what became of a pair.
 *
 *   export PKG_CONFIG_PATH=/opt/roperope/lib/pkgconfig
 *   cc rotate.c $(pkg-config --cflags --libs roperope) -o rotate && ./rotate
 */
#include <roperope/roperope.h>
#include <stdio.h>

int main(void) {
  static float q[2 * 4 * 64]; /* 2 tokens, 4 heads of 64 */
  uint64_t words[32];
  rope_frequencies_desc frequencies;
  rope_apply_desc apply;
  int i;

  for (i = 0; i < 2 * 4 * 64; ++i) q[i] = 1;
  rope_frequencies_desc_init(&frequencies);
  frequencies.rotary_dim = 64;
  if (rope_frequencies(&frequencies, words, NULL, NULL)) return puts(rope_last_error()), 1;

  rope_apply_desc_init(&apply);
  apply.backend = ROPE_BACKEND_CPU; /* with ROPE_BACKEND_CUDA, q is device memory and apply.stream a cudaStream_t */
  apply.dtype = ROPE_DTYPE_F32;
  apply.head_dim = 64;
  apply.num_q_heads = 4;
  apply.num_tokens = 2;
  apply.q.data = q;
  apply.frequencies = words;
  apply.offset = 1000; /* position of the first token */
  if (rope_apply(&apply)) return puts(rope_last_error()), 1;
  printf("(1, 1) at position 1000 is (%.6f, %.6f), at 1001 (%.6f, %.6f)\n", q[0], q[32], q[256], q[288]);
  return 0;
}
