// From a dtype known at run time to a type of device code.
#pragma once

#include "amoeba/error.h"
#include "amoeba/kernels.h"
#include "kernels/cuda/device/element.cuh"

namespace amoeba::kernels::cuda {

// run(T()) with the T of dtype.
template <typename Run>
void with_type(DType dtype, const char* operation, Run&& run) {
  switch (dtype) {
    case DType::kF32:
      return run(float());
    case DType::kF16:
      return run(device::fp16());
    case DType::kBF16:
      return run(device::bf16());
    default:
      fail(ErrorKind::kInternal, cat(operation, ": dtype is none of fp32, fp16, bf16"));
  }
}

}  // namespace amoeba::kernels::cuda
