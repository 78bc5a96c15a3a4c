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

}  // namespace amoeba::nn
