// What a Hopper kernel needs of the host. In tests: hopper_on_cpu.h.
#pragma once

#include "boxes.h"
#include "hopper.cuh"

#ifdef __CUDACC__

#include <cudaTypedefs.h>

#include <atomic>

namespace rope::cuda {

namespace detail {

inline constexpr int kKnownDevices = 64;

// Of the driver, asked for through the runtime, so that nothing is linked with libcuda.
inline cudaError_t find_encode(PFN_cuTensorMapEncodeTiled_v12000* encode) {
  static std::atomic<void*> known;
  void* function = known;
  if (!function) {
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) return error;
    if (found != cudaDriverEntryPointSuccess) return cudaErrorCallRequiresNewerDriver;
    known = function;
  }
  *encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return cudaSuccess;
}

inline int forgotten(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported to the caller: do not leave it for the next one
  return error;
}

}  // namespace detail

// Returns a cudaError_t.
inline int make_tensor_map(const BoxedTensor& t, TensorMap* map) {
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  if (const cudaError_t error = detail::find_encode(&encode)) return detail::forgotten(error);
  const cuuint32_t box[4] = {64, cuuint32_t(t.rows), 1, 1}, step[4] = {1, 1, 1, 1};
  cuuint64_t extent[4], stride[3];
  for (int i = 0; i < 4; ++i) extent[i] = cuuint64_t(t.extent[i]);
  for (int i = 0; i < 3; ++i) stride[i] = cuuint64_t(t.stride[i]);
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, t.data, extent, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Of the current device; 0: it does not run code for sm_90a.
inline int hopper_multiprocessors() {
  static std::atomic<int> known[detail::kKnownDevices];  // one more than the number; 0: not asked yet
  int device = 0, major = 0, minor = 0, count = 0;
  if (detail::forgotten(cudaGetDevice(&device))) return 0;
  if (device < detail::kKnownDevices && known[device]) return known[device] - 1;
  if (detail::forgotten(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) ||
      detail::forgotten(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) ||
      detail::forgotten(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device)))
    return 0;
  if (major != 9 || minor != 0) count = 0;
  if (device < detail::kKnownDevices) known[device] = count + 1;
  return count;
}

// A kernel with shared memory beyond what every kernel may have. Returns a cudaError_t.
template <auto kKernel, class Args>
int launch_resident(unsigned blocks, unsigned threads, int shared_bytes, const Args& args, void* stream,
                    bool dependent) {
  static std::atomic<bool> allowed[detail::kKnownDevices];
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return detail::forgotten(error);
  if (device >= detail::kKnownDevices || !allowed[device]) {
    const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return detail::forgotten(error);
    if (device < detail::kKnownDevices) allowed[device] = true;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return detail::forgotten(cudaLaunchKernelEx(&config, kKernel, args));
}

}  // namespace rope::cuda

#endif
