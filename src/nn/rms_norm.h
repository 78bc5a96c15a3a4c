// Root-mean-square normalisation (Zhang and Sennrich, 2019).
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameters.h"

namespace amoeba::nn {

// x [..., D], weight [D] fp32 -> x / sqrt(mean(x^2) + eps) * weight in the dtype of x. The mean and
// both gradients are fp32; the weight's is summed in a fixed order and added to weight.grad.
at::Tensor rms_norm(const at::Tensor& x, const Parameter& weight, double eps);

// The same for x [T, D] that is also used beside its norm, as by a residual sum: use `x` of the
// result there, and both gradients of x are added in one pass.
struct NormedResidual {
  at::Tensor x, normed;
};
NormedResidual rms_norm_residual(const at::Tensor& x, const Parameter& weight, double eps);

// Rows of D fp32 values for other loops of the CPU, and how many rows share one partial sum of a
// weight's gradient: fixed, whatever the number of threads.
inline constexpr int64_t kNormRowsPerBlock = 64;
float inverse_rms(const float* x, int64_t size, double eps);
void norm_row(const float* x, const float* weight, float rstd, float* y, int64_t size);
// dx = passed (may be nullptr) + the gradient of x; adds to dweight. dx may be dy.
void norm_row_backward(const float* x, const float* weight, const float* dy, const float* passed,
                       float rstd, float* dx, float* dweight, int64_t size);

}  // namespace amoeba::nn
