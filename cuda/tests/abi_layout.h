/* Checks of the binary interface by the compiler. */
#include <stddef.h>
#include <stdint.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define CHECK(condition) typedef char JOIN(check_on_line_, __LINE__)[(condition) ? 1 : -1]
#define SIZE_OF_FIELD(type, field) sizeof(((type*)0)->field)
#define FIELD(type, field, offset, size) \
  CHECK(offsetof(type, field) == (offset) && SIZE_OF_FIELD(type, field) == (size))
