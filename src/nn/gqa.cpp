#include "nn/gqa.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "nn/columns.h"
#include "nn/cpu_attention/grouped.h"
#include "nn/cpu_math.h"
#include "nn/linear.h"
#include "nn/rms_norm.h"

namespace amoeba::nn {

GroupedQueryAttention::GroupedQueryAttention(const AttentionConfig& config,
                                             const std::string& prefix, const LayerInit& init,
                                             ParameterStore& store)
    : config_(config) {
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const Init input = truncated_normal_init(init.input_std);
  wqkv_ = store.join({store.declare(prefix + ".wq.weight", {q_rows, config.dim}, input, true),
                      store.declare(prefix + ".wk.weight", {kv_rows, config.dim}, input, true),
                      store.declare(prefix + ".wv.weight", {kv_rows, config.dim}, input, true)});
  wo_ = store.declare(prefix + ".wo.weight", {config.dim, q_rows},
                      truncated_normal_init(init.output_std), true);
  if (config.qk_norm) {
    const int64_t q_size = config.qk_norm_whole ? q_rows : config.head_dim;
    const int64_t k_size = config.qk_norm_whole ? kv_rows : config.head_dim;
    q_norm_ = store.declare(prefix + ".q_norm.weight", {q_size}, ones_init(), false, true);
    k_norm_ = store.declare(prefix + ".k_norm.weight", {k_size}, ones_init(), false, true);
  }
}

at::Tensor GroupedQueryAttention::forward(const at::Tensor& hidden, const SequenceLayout& layout,
                                          const RopeTable& table, KvCache* cache) const {
  const int64_t hd = config_.head_dim, heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(hd));
  const at::Tensor product = linear(hidden, *wqkv_);
  const cpu_attention::GroupedHeads grouped{heads,   kv_heads,         hd,   q_norm_,
                                            k_norm_, config_.norm_eps, scale};
  const int64_t window = config_.sliding_window;
  if (cache == nullptr && !config_.qk_norm_whole && !is_cut(window, layout.seq_len)) {
    const at::Tensor wide = widened(product);
    if (const auto* kernels = cpu_attention::kernels_for(wide, grouped)) {
      const at::Tensor y = cpu_attention::attend_grouped(
          *kernels, wide, grouped, table, layout.positions, document_lengths(layout));
      return linear(y.to(product.scalar_type()), *wo_);
    }
  }
  const auto parts = split_columns(product, {heads * hd, kv_heads * hd, kv_heads * hd});
  at::Tensor q = parts[0], k = parts[1];  // [T, heads*hd], [T, kv heads*hd]
  const at::Tensor v = parts[2].view({-1, kv_heads, hd});
  if (config_.qk_norm) {
    q = rms_norm(q.view({-1, q_norm_->shape[0]}), *q_norm_, config_.norm_eps);
    k = rms_norm(k.view({-1, k_norm_->shape[0]}), *k_norm_, config_.norm_eps);
  }
  q = q.view({-1, heads, hd});
  k = k.view({-1, kv_heads, hd});
  q = rope(q, table, layout.positions);
  k = rope(k, table, layout.positions);
  return linear(causal_attention(q, k, v, hd, scale, layout, cache, window), *wo_);
}

KvCache GroupedQueryAttention::make_cache(int64_t num_rows, int64_t max_positions,
                                          at::TensorOptions options) const {
  const auto heads = [&] {
    return at::empty({num_rows, config_.num_kv_heads, max_positions, config_.head_dim}, options);
  };
  return {heads(), heads(), std::vector<int64_t>(static_cast<size_t>(num_rows), 0)};
}

}  // namespace amoeba::nn
