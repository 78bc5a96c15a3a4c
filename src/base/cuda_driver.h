// Facts about a CUDA device from the driver library, opened at run time: nothing of CUDA is needed
// to build or to run without a GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace amoeba {

struct CudaDeviceInfo {
  std::string name;
  int compute_capability = 0;  // 10 * major + minor
  int64_t memory_bytes = 0;
};

// nullopt without a driver or without that device.
std::optional<CudaDeviceInfo> query_cuda_device(int index);

}  // namespace amoeba
