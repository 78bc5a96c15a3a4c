// Multi-head latent attention (DeepSeek-V2, section 2.1): causal self-attention whose keys and
// values are made from one latent vector a token, with a rotated part of the key that all heads
// share.
//
// Legend: T tokens, D model width, qk = nope + rope width of a query or key head, v of a value
// head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/attention_config.h"
#include "nn/parameters.h"
#include "nn/rope.h"
#include "nn/sdpa.h"

namespace amoeba::nn {

class LatentAttention {
 public:
  // Declares `<prefix>.wq.weight` [heads*qk, D] or, with a low-rank query, `.wq_a` [q_lora, D],
  // `.q_norm` [q_lora], `.wq_b` [heads*qk, q_lora]; then `.wkv_a` [kv_lora + rope, D], `.kv_norm`
  // [kv_lora], `.wkv_b` [heads*(nope + v), kv_lora], `.wo` [D, heads*v].
  LatentAttention(const AttentionConfig& config, const std::string& prefix, const LayerInit& init,
                  ParameterStore& store);

  at::Tensor forward(const at::Tensor& hidden, const SequenceLayout& layout, const RopeTable& table,
                     KvCache* cache) const;
  KvCache make_cache(int64_t num_rows, int64_t max_positions, at::TensorOptions options) const;

 private:
  at::Tensor queries(const at::Tensor& hidden) const;  // [T, heads*qk], not rotated

  AttentionConfig config_;
  double scale_;
  const Parameter* wq_ = nullptr;  // either this or the next three
  const Parameter* wq_a_ = nullptr;
  const Parameter* q_norm_ = nullptr;
  const Parameter* wq_b_ = nullptr;
  const Parameter* wkv_a_;
  const Parameter* kv_norm_;
  const Parameter* wkv_b_;
  const Parameter* wo_;
};

}  // namespace amoeba::nn
