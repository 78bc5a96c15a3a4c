// Torch's current CUDA stream, through the stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "amoeba/kernels.h"

namespace amoeba::ops {

// Of the current device, which the operator has entered.
inline kernels::cuda::Stream current_stream() {
  void* stream = nullptr;
  const auto device = torch::stable::accelerator::getCurrentDeviceIndex();
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace amoeba::ops
