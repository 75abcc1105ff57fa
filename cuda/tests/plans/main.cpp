#include "check.h"

int main() {
  using namespace rope::cuda::test;
  test_rotate();
  test_pipeline();
  test_rotate_cache();
  test_cos_sin();
  std::printf("%d shapes\n", shape);
}
