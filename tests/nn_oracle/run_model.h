// One forward and backward of a model, for comparison with another implementation.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <torch/csrc/autograd/autograd.h>

#include "amoeba/model.h"
#include "nn/loss.h"

namespace amoeba::test {

struct OracleRun {
  at::Tensor logits;  // [T, V]
  at::Tensor loss;    // the mean over valid targets
};

// tokens, targets [B, S] int64. The gradients are the model's.
inline OracleRun run_model(nn::Model& model, const at::Tensor& tokens, const at::Tensor& targets) {
  model.store().allocate_training_state();
  const int64_t batch_size = tokens.size(0), seq_len = tokens.size(1);
  const nn::ModelOutput out =
      model.forward({tokens.reshape(-1),
                     {batch_size, seq_len, at::arange(seq_len, at::kLong).repeat({batch_size}), {}},
                     {}});
  const int64_t valid = targets.ne(nn::kIgnoreIndex).sum().item<int64_t>();
  const nn::LossOutput loss =
      nn::lm_head_cross_entropy(out.hidden, model.lm_head(), targets.reshape(-1),
                                {.scale = 1.0 / static_cast<double>(valid)});
  torch::autograd::backward({out.hidden}, {loss.dhidden});
  return {model.logits(out.hidden.detach()), (loss.loss_sum / valid).to(at::kFloat)};
}

}  // namespace amoeba::test
