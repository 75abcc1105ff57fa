// Without CUDA, and for kernels that run on the CPU (one "device" there).
#include <cstring>

#include "device.h"

namespace rope::cuda {

#ifdef ROPEROPE_CUDA_EMULATED
int32_t device_count() { return 1; }
int32_t current_device() { return 0; }
const char* toolkit_info() { return "CUDA kernels compiled for the CPU"; }
bool has_dependent_launch() { return true; }
#else
int32_t device_count() { return 0; }
int32_t current_device() { return -1; }
const char* toolkit_info() { return "no CUDA"; }
bool has_dependent_launch() { return false; }
#endif

int copy_to_host(void* host, const void* device, size_t bytes, void*) {
  std::memcpy(host, device, bytes);
  return 0;
}

const char* error_name(int) { return "cudaErrorUnknown"; }
bool is_no_device(int) { return false; }
bool is_host_only(const void*) { return false; }

}  // namespace rope::cuda
