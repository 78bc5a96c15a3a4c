// Causal self-attention with rotary embedding, grouped-query or multi-head latent, behind one
// class.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <variant>

#include "nn/attention_config.h"
#include "nn/gqa.h"
#include "nn/mla.h"
#include "nn/parameters.h"
#include "nn/rope.h"
#include "nn/sdpa.h"

namespace amoeba::nn {

class Attention {
 public:
  // Declares the parameters of GroupedQueryAttention or, with config.mla, of LatentAttention.
  // Error(kUsage) for a config that does not fit together.
  Attention(const AttentionConfig& config, const std::string& prefix, const LayerInit& init,
            ParameterStore& store);

  // hidden [T, D] -> [T, D]. With a cache: appends this call's T tokens and attends to all before.
  at::Tensor forward(const at::Tensor& hidden, const SequenceLayout& layout, const RopeTable& table,
                     KvCache* cache) const;

  KvCache make_cache(int64_t num_rows, int64_t max_positions, at::TensorOptions options) const;

 private:
  using Kind = std::variant<GroupedQueryAttention, LatentAttention>;
  static Kind make_kind(const AttentionConfig& config, const std::string& prefix,
                        const LayerInit& init, ParameterStore& store);
  Kind kind_;
};

}  // namespace amoeba::nn
