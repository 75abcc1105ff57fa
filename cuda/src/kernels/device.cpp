#include "device.h"

#include <cuda_runtime_api.h>

namespace rope::cuda {

int32_t device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

bool is_no_device(int error) {
  return error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary;
}

bool is_host_only(const void* pointer) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;  // cannot be told
  }
  if (attributes.type != cudaMemoryTypeUnregistered) return false;
  int device = 0, pageable = 0;  // a device may be able to read all of the host's memory
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&pageable, cudaDevAttrPageableMemoryAccess, device) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  return !pageable;
}

const char* toolkit_info() { return ROPEROPE_CUDA_INFO; }

}  // namespace rope::cuda
