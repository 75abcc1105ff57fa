// The floating-point environment that results are defined in.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace rope {

// Rounding to nearest and denormals kept, for the lifetime of the object, whatever the calling thread has set.
class DefaultFloatEnvironment {
 public:
#if defined(__SSE__)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }
#else
  DefaultFloatEnvironment() {}
#endif
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

#if defined(__SSE__)
 private:
  unsigned saved_;
#endif
};

}  // namespace rope
