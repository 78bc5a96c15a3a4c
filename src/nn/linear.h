// Dense product with a stored weight whose gradient goes straight into the flat buffer.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameters.h"

namespace amoeba::nn {

// x [T, I] in the weight's compute dtype, weight [O, I] -> [T, O]. Backward returns the gradient of
// x and adds dy^T x to weight.grad; the product is made in the compute dtype, the sum over calls in
// fp32.
at::Tensor linear(const at::Tensor& x, const Parameter& weight);

// grad [O, I] fp32 += scale dy^T x for dy [T, O] and x [T, I] of one dtype; the product is made in
// that dtype, on a card in fp32.
void add_weight_gradient(at::Tensor grad, const at::Tensor& dy, const at::Tensor& x,
                         double scale = 1.0);

}  // namespace amoeba::nn
