#include "check.h"

int main() {
  using namespace rope::cuda::test;
  test_pipeline();
  test_general();
  test_rotate_cache();
  test_cos_sin();
  test_decode();
  std::printf("%d shapes\n", shape);
}
