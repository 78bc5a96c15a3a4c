// Output projection and cross entropy in chunks: logits of a whole batch never exist.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/parameters.h"

namespace amoeba::nn {

inline constexpr int64_t kIgnoreIndex = -100;

struct LossOptions {
  double scale = 1.0;  // of the gradients, e.g. 1 / valid tokens of the step
  int64_t max_chunk_bytes = int64_t{64} << 20;  // bound on the fp32 logits that exist at once
};

struct LossOutput {
  at::Tensor loss_sum;  // fp64 scalar, sum over valid targets of -log softmax(logits)[target]
  at::Tensor dhidden;   // [T, D], gradient of scale * loss_sum; undefined without gradients
};

// hidden [T, D], lm_head [V, D], targets [T] int64 with kIgnoreIndex for none. With gradients
// wanted (grad mode on and training state allocated) this is forward and backward in one pass: the
// weight's gradient is added to lm_head.grad in fp32 and dhidden is handed back to seed autograd
// with.
LossOutput lm_head_cross_entropy(const at::Tensor& hidden, const Parameter& lm_head,
                                 const at::Tensor& targets, const LossOptions& options);

}  // namespace amoeba::nn
