// Log-probabilities of a model by reading everything at once in fp64: what faster ways are compared
// with.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "amoeba/model.h"
#include "train/model_config.h"
#include "train/plain/run_config.h"

namespace amoeba::test {

// A model far from its small initial values, so that its likelihoods differ.
inline train::RunConfig scored_config(bool mla) {
  train::RunConfig config;
  config.model.dim = 32;
  config.model.num_layers = 2;
  config.model.num_heads = 4;
  config.model.num_kv_heads = 2;
  config.model.init_std = 0.3;
  config.model.embedding_init_std = 0.5;
  config.moe.num_experts = 5;
  config.moe.hidden_dim = 24;
  config.moe.compute_backend = "for_loop";
  config.training.seq_len = 24;
  if (mla) {
    config.model.attention = "mla";
    config.model.kv_lora_rank = 9;
    config.model.qk_nope_head_dim = 6;
    config.model.qk_rope_head_dim = 4;
    config.model.v_head_dim = 5;
  }
  return config;
}

inline nn::Model scored_model(const train::RunConfig& config, int64_t vocab_size,
                              at::ScalarType dtype) {
  return nn::Model(train::make_model_config(config, vocab_size), at::kCPU, dtype, 3);
}

// tokens -> log-probabilities [T, V] of what comes behind each, in the model's dtype.
inline at::Tensor log_probabilities(nn::Model& model, const std::vector<int32_t>& tokens) {
  const at::NoGradGuard no_grad;
  const auto length = static_cast<int64_t>(tokens.size());
  nn::ModelInput input;
  input.tokens = at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong);
  input.layout = {1, length, at::arange(length, at::kLong), {}};
  const at::Tensor logits = at::mm(model.forward(input).hidden, model.lm_head().compute.t());
  return at::log_softmax(logits.to(at::kDouble), 1);
}

}  // namespace amoeba::test
