/* What a C program may ask the library about itself. */
#include <roperope/roperope.h>
#include <string.h>

#include "c_check.h"

static void test_version(void) {
  CHECK(rope_version() == (ROPE_VERSION_MAJOR << 16 | ROPE_VERSION_MINOR << 8 | ROPE_VERSION_PATCH));
  CHECK(rope_build_info()[0] != '\0');
  CHECK(rope_device_count() >= 0);
  for (rope_status s = ROPE_OK; s <= ROPE_ERR_INTERNAL; ++s)
    CHECK(strcmp(rope_status_string(s), rope_status_string(-1)) != 0);
}

static void test_support(void) {
  rope_support_query query = {sizeof(query), ROPE_BACKEND_CPU, ROPE_DTYPE_BF16, ROPE_LAYOUT_GPTJ, ROPE_ANGLE_FP32};
  int32_t supported = -1;
  CHECK(rope_query_support(&query, &supported) == ROPE_OK && supported == 1);
  supported = -1;
  query.dtype = 99;
  CHECK(rope_query_support(&query, &supported) == ROPE_ERR_INVALID_ARG && supported == -1);
  CHECK(strstr(rope_last_error(), "dtype") != NULL);
  query.struct_size = 0;
  CHECK(rope_query_support(&query, &supported) == ROPE_ERR_INVALID_ARG && supported == -1);
  CHECK(rope_query_support(NULL, &supported) == ROPE_ERR_INVALID_ARG && supported == -1);
}

int main(void) {
  test_version();
  test_support();
  printf("%d failures\n", failures);
  return failures != 0;
}
