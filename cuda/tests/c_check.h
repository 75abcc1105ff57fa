/* What the C tests share: a condition that does not hold is reported and counted, and the test goes on. */
#ifndef ROPEROPE_TESTS_C_CHECK_H
#define ROPEROPE_TESTS_C_CHECK_H

#include <roperope/roperope.h>
#include <stdio.h>

static int failures;

#define CHECK(condition)                                                                            \
  do {                                                                                              \
    if (!(condition)) {                                                                             \
      fprintf(stderr, "%s:%d: not true: %s (last error: \"%s\")\n", __FILE__, __LINE__, #condition, \
              rope_last_error());                                                                   \
      ++failures;                                                                                   \
    }                                                                                               \
  } while (0)

#endif
