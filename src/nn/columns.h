// Parts of one product's columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace amoeba::nn {

// x [T, sum of widths] -> one contiguous [T, width] each, in order. Autograd's own slices would
// build a zero tensor of the full width for each part.
std::vector<at::Tensor> split_columns(const at::Tensor& x, const std::vector<int64_t>& widths);

}  // namespace amoeba::nn
