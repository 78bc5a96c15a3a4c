#include "nn/attention.h"

#include <ATen/record_function.h>

#include "amoeba/error.h"

namespace amoeba::nn {

void check_attention_config(const AttentionConfig& config) {
  AMOEBA_CHECK(config.dim > 0 && config.num_heads > 0, "attention: dim is ", config.dim,
               " and num_heads is ", config.num_heads, ", want both > 0");
  if (config.mla) {
    const MlaConfig& mla = *config.mla;
    AMOEBA_CHECK(mla.q_lora_rank >= 0, "attention: q_lora_rank is ", mla.q_lora_rank,
                 ", want > 0, or 0 for none");
    AMOEBA_CHECK(mla.kv_lora_rank > 0 && mla.v_head_dim > 0, "attention: kv_lora_rank is ",
                 mla.kv_lora_rank, " and v_head_dim is ", mla.v_head_dim, ", want both > 0");
    AMOEBA_CHECK(mla.qk_nope_head_dim >= 0, "attention: qk_nope_head_dim is ", mla.qk_nope_head_dim,
                 ", want >= 0");
    AMOEBA_CHECK(mla.v_head_dim <= config.key_dim(), "attention: v_head_dim is ", mla.v_head_dim,
                 ", want at most the ", config.key_dim(), " of a key");
    AMOEBA_CHECK(!config.qk_norm, "attention: qk_norm is set, want it off with mla");
    AMOEBA_CHECK(config.sliding_window == 0, "attention: sliding_window is ", config.sliding_window,
                 ", want 0 with mla");
  } else {
    AMOEBA_CHECK(config.num_kv_heads > 0 && config.num_heads % config.num_kv_heads == 0,
                 "attention: num_heads is ", config.num_heads, " and num_kv_heads is ",
                 config.num_kv_heads, ", want a multiple");
    AMOEBA_CHECK(config.sliding_window >= 0, "attention: sliding_window is ", config.sliding_window,
                 ", want >= 0");
  }
  const int64_t rotated = config.mla ? config.mla->qk_rope_head_dim : config.head_dim;
  AMOEBA_CHECK(config.rope.head_dim == rotated && rotated > 0 && rotated % 2 == 0,
               "attention: rope.head_dim is ", config.rope.head_dim, ", want ",
               config.mla ? "qk_rope_head_dim " : "head_dim ", rotated, ", even and > 0");
}

Attention::Kind Attention::make_kind(const AttentionConfig& config, const std::string& prefix,
                                     const LayerInit& init, ParameterStore& store) {
  check_attention_config(config);
  if (config.mla) return LatentAttention(config, prefix, init, store);
  return GroupedQueryAttention(config, prefix, init, store);
}

Attention::Attention(const AttentionConfig& config, const std::string& prefix,
                     const LayerInit& init, ParameterStore& store)
    : kind_(make_kind(config, prefix, init, store)) {}

at::Tensor Attention::forward(const at::Tensor& hidden, const SequenceLayout& layout,
                              const RopeTable& table, KvCache* cache) const {
  RECORD_USER_SCOPE("attention");
  return std::visit([&](const auto& kind) { return kind.forward(hidden, layout, table, cache); },
                    kind_);
}

KvCache Attention::make_cache(int64_t num_rows, int64_t max_positions,
                              at::TensorOptions options) const {
  return std::visit(
      [&](const auto& kind) { return kind.make_cache(num_rows, max_positions, options); }, kind_);
}

}  // namespace amoeba::nn
