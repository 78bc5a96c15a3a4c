// Causal self-attention with grouped key-value heads and rotary embedding.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/attention_config.h"
#include "nn/parameters.h"
#include "nn/rope.h"
#include "nn/sdpa.h"

namespace amoeba::nn {

class GroupedQueryAttention {
 public:
  // Declares `<prefix>.wq.weight` [heads*hd, D], `.wk`, `.wv` [kv heads*hd, D], `.wo` [D,
  // heads*hd].
  GroupedQueryAttention(const AttentionConfig& config, const std::string& prefix,
                        const LayerInit& init, ParameterStore& store);

  at::Tensor forward(const at::Tensor& hidden, const SequenceLayout& layout, const RopeTable& table,
                     KvCache* cache) const;
  KvCache make_cache(int64_t num_rows, int64_t max_positions, at::TensorOptions options) const;

 private:
  AttentionConfig config_;
  const Parameter* wqkv_;  // the three input projections as one
  const Parameter* wo_;
  const Parameter* q_norm_ = nullptr;
  const Parameter* k_norm_ = nullptr;
};

}  // namespace amoeba::nn
