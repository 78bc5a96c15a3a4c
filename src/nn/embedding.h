// Token embedding whose gradient goes straight into the flat buffer.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameters.h"

namespace amoeba::nn {

// tokens [T] int64 in [0, V), weight [V, D] -> [T, D] in the compute dtype.
at::Tensor embedding(const at::Tensor& tokens, const Parameter& weight);

}  // namespace amoeba::nn
