// Single values of a dtype known at run time.
#pragma once

#include "element.cuh"

namespace amoeba::kernels::cuda::device {

// The order of kernels::DType.
enum Scalar : int32_t { kScalarF64, kScalarF32, kScalarF16, kScalarBF16 };

__device__ inline float load_scalar(const void* from, int32_t dtype) {
  switch (dtype) {
    case kScalarF64:
      return static_cast<float>(*static_cast<const double*>(from));
    case kScalarF32:
      return *static_cast<const float*>(from);
    case kScalarF16:
      return __half2float(*static_cast<const fp16*>(from));
    default:
      return __bfloat162float(*static_cast<const bf16*>(from));
  }
}

__device__ inline void store_scalar(void* to, int32_t dtype, float value) {
  switch (dtype) {
    case kScalarF64:
      *static_cast<double*>(to) = value;
      break;
    case kScalarF32:
      *static_cast<float*>(to) = value;
      break;
    case kScalarF16:
      *static_cast<fp16*>(to) = __float2half_rn(value);
      break;
    default:
      *static_cast<bf16*>(to) = __float2bfloat16_rn(value);
  }
}

}  // namespace amoeba::kernels::cuda::device
