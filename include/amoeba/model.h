// The decoder: token embedding, blocks of attention and Mixture-of-Experts, final norm.
//
// Legend: B sequences, S tokens each, T = B*S, D model width, L layers, M of them
// Mixture-of-Experts (the others, first, are dense), E experts, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "amoeba/experts.h"
#include "nn/attention.h"
#include "nn/block.h"
#include "nn/moe.h"
#include "nn/parameters.h"
#include "nn/recompute.h"

namespace amoeba::nn {

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t num_layers = 0;
  int64_t num_dense_layers = 0;  // the first ones, with a dense feed-forward network
  int64_t dense_hidden_dim = 0;  // of that network
  int64_t max_seq_len = 0;       // positions of the rotary table
  bool tie_embeddings = false;
  double embedding_std = 1.0;
  double init_std = 0.02;  // of the linear maps; see LayerInit
  AttentionConfig attention;
  MoeConfig moe;
  std::string compute_backend = "auto";
  ActivationCheckpoint activation_checkpoint = ActivationCheckpoint::kNone;
};

struct ModelInput {
  at::Tensor tokens;  // [T] int64
  SequenceLayout layout;
  at::Tensor token_mask;  // [T] bool, false: padding, never routed; undefined: none
};

struct ModelOutput {
  at::Tensor hidden;    // [T, D] after the final norm
  at::Tensor counts;    // [M, E] int64, tokens each expert got
  at::Tensor aux_loss;  // fp32 scalar, mean over the MoE layers; 0 without any or in inference mode
  at::Tensor z_loss;    // likewise
};

// Exact sizes and work of a configuration.
struct ModelSize {
  int64_t total = 0;           // trained parameters; the balance bias is a buffer
  int64_t active = 0;          // the routed experts counted K of E
  int64_t sparse = 0;          // of total: routers, routed and shared experts
  double flops_per_token = 0;  // forward and backward, 6 (active - input embedding) + attention
};

class Model {
 public:
  // Allocates parameters on `device` (meta: shapes only) and initialises them from `seed`. A model
  // is never left uninitialised. Error(kUsage) for sizes that do not fit together and when the
  // backend cannot run the experts. The model must outlive the backward of what it computed.
  Model(const ModelConfig& config, at::Device device, at::ScalarType dtype, uint64_t seed);

  // Error(kUsage) for tensors that do not fit the layout and, on the CPU, for positions beyond
  // max_seq_len.
  ModelOutput forward(const ModelInput& input, std::vector<KvCache>* caches = nullptr);

  // A pure function of (hidden, routing ids): undefined ids are routed, given ids are taken.
  // `layer` counts all blocks, dense ones first.
  BlockOutput block(int64_t layer, const at::Tensor& hidden, const ModelInput& input,
                    const at::Tensor& expert_ids, KvCache* cache);

  // hidden [T, D] -> logits [T, V] fp32, for generation.
  at::Tensor logits(const at::Tensor& hidden) const;
  const Parameter& lm_head() const { return *lm_head_; }

  // One a block, of `num_rows` sequences of up to `max_positions` tokens.
  std::vector<KvCache> make_caches(int64_t num_rows, int64_t max_positions) const;
  ModelSize size(int64_t seq_len) const;

  const ModelConfig& config() const { return config_; }
  int64_t num_moe_layers() const { return config_.num_layers - config_.num_dense_layers; }
  at::Device device() const { return expert_bias_.device(); }
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  at::Tensor& expert_bias() { return expert_bias_; }                    // [M, E] fp32 buffer
  at::Tensor& error_word() { return error_word_; }                      // [1] int32
  const ExpertChoice& expert_choice() const { return expert_choice_; }  // none in a dense model
  // Forward passes only: what activation checkpointing computes again is not counted again.
  ExpertStats& expert_stats() { return expert_stats_; }

 private:
  ModelConfig config_;
  ParameterStore store_;
  const Parameter* embedding_;
  std::vector<Block> blocks_;
  const Parameter* norm_;
  const Parameter* lm_head_;
  at::ScalarType dtype_;
  RopeTable rope_;
  at::Tensor expert_bias_;
  at::Tensor error_word_;
  ExpertChoice expert_choice_;
  ExpertStats expert_stats_;
};

}  // namespace amoeba::nn
