// From the code that a plan chose to the kernel compiled for it.
#pragma once

#include <iterator>
#include <utility>

namespace rope::cuda {

inline constexpr int kNotCompiled = 98;  // cudaErrorInvalidDeviceFunction: a fault of the library

namespace detail {

template <const auto& kCodes, class Code, class F, size_t... kIndex>
int for_compiled(const Code& code, F f, std::index_sequence<kIndex...>) {
  int error = kNotCompiled;
  ((code == kCodes[kIndex] && (error = f(std::integral_constant<size_t, kIndex>()), true)) || ...);
  return error;
}

}  // namespace detail

// f(constant) for the index of `code` in the list of all that are compiled.
template <const auto& kCodes, class Code, class F>
int for_compiled(const Code& code, F f) {
  return detail::for_compiled<kCodes>(code, f, std::make_index_sequence<std::size(kCodes)>());
}

template <class Code, size_t kCount>
constexpr bool is_compiled(const Code (&codes)[kCount], const Code& code) {
  for (const Code& x : codes)
    if (x == code) return true;
  return false;
}

}  // namespace rope::cuda
