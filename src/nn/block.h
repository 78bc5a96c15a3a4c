// One decoder block: x += attention(norm(x)), then x += feed_forward(norm(x)), where the second is
// dense or Mixture-of-Experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <variant>

#include "amoeba/experts.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/moe.h"
#include "nn/parameters.h"
#include "nn/recompute.h"

namespace amoeba::nn {

// What a block reads besides its input, and where it counts; handles, cheap to copy.
struct BlockCall {
  SequenceLayout layout;
  RopeTable rope;
  at::Tensor token_mask;   // [T] bool, undefined: none
  at::Tensor expert_bias;  // [E]; undefined in a dense layer, as the rest is unused there
  at::Tensor error_word;   // undefined: not reported
  const ExpertBackend* backend = nullptr;
  ExpertStats* stats = nullptr;  // none: not counted

  BlockCall uncounted() const;
};

struct BlockConfig {
  AttentionConfig attention;
  int64_t dense_hidden_dim = 0;  // 0: a Mixture-of-Experts layer
  MoeConfig moe;
};

class Block {
 public:
  // Declares `<prefix>.attention_norm.weight`, `.attention.*`, `.ffn_norm.weight` and the network:
  // `.feed_forward.*` or `.moe.*`.
  Block(const BlockConfig& config, const std::string& prefix, const LayerInit& init,
        ParameterStore& store);

  // A pure function of hidden [T, D] and, where defined, the routing ids. With a cache, or when no
  // gradient is wanted, nothing is kept, whatever the mode.
  BlockOutput forward(const at::Tensor& hidden, const BlockCall& call, const at::Tensor& expert_ids,
                      KvCache* cache, ActivationCheckpoint mode) const;

  KvCache make_cache(int64_t num_rows, int64_t max_positions, at::TensorOptions options) const {
    return attention_.make_cache(num_rows, max_positions, options);
  }

 private:
  at::Tensor attend(const at::Tensor& hidden, const BlockCall& call, KvCache* cache) const;
  BlockOutput feed_forward(const at::Tensor& hidden, const BlockCall& call,
                           const at::Tensor& expert_ids) const;

  double norm_eps_;
  const Parameter* attention_norm_;
  Attention attention_;
  const Parameter* ffn_norm_;
  std::variant<FeedForward, Moe> network_;
};

}  // namespace amoeba::nn
