// The few questions that the library asks the CUDA runtime. Defined in device.cpp, or in device_none.cpp without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rope::cuda {

int32_t device_count();
int32_t current_device();  // -1: none

// A copy, made when the stream has done what is pending. 0, or a cudaError_t.
int copy_to_host(void* host, const void* device, size_t bytes, void* stream);

// Text for a cudaError_t that a launch returned; `no_device` says whether it means that there is no usable device.
const char* error_name(int error);
bool is_no_device(int error);

// Known to be host memory that the current device cannot read.
bool is_host_only(const void* pointer);

// The current device knows programmatic dependent launch (compute capability 9.0).
bool has_dependent_launch();

const char* toolkit_info();  // "CUDA 13.0, sm_80 sm_90 ...", or "no CUDA"

}  // namespace rope::cuda
