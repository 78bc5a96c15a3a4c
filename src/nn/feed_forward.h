// Dense SwiGLU feed-forward network: shared experts and dense layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/parameters.h"

namespace amoeba::nn {

class FeedForward {
 public:
  // Declares `<prefix>.w1.weight` (gate) and `.w3.weight` (up) [H, D], `.w2.weight` (down) [D, H].
  FeedForward(int64_t dim, int64_t hidden_dim, const std::string& prefix, const LayerInit& init,
              ParameterStore& store);

  at::Tensor forward(const at::Tensor& x) const;  // [T, D] -> [T, D]

 private:
  const Parameter* w13_;
  const Parameter* w2_;
};

}  // namespace amoeba::nn
