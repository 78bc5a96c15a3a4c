#include "nn/attention.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "amoeba/error.h"
#include "nn/linear.h"
#include "nn/rms_norm.h"

namespace amoeba::nn {

namespace {

// x [T, a+b+c] -> x[:, :a], x[:, a:a+b], x[:, a+b:], each contiguous. Autograd's own slices would
// build a zero tensor of the full width for each part.
class SplitColumns : public torch::autograd::Function<SplitColumns> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*,
                                                const at::Tensor& x, int64_t a, int64_t b) {
    return {x.narrow(1, 0, a).contiguous(), x.narrow(1, a, b).contiguous(),
            x.narrow(1, a + b, x.size(1) - a - b).contiguous()};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grad_outputs) {
    return {at::cat(grad_outputs, 1), at::Tensor(), at::Tensor()};
  }
};

// [rows*length, heads, hd] -> [rows, heads, length, hd] without a copy.
at::Tensor to_heads(const at::Tensor& x, int64_t rows, int64_t length) {
  return x.view({rows, length, x.size(1), x.size(2)}).transpose(1, 2);
}

// q [rows*length, heads, hd], k and v alike with fewer heads -> [rows*length, heads*hd]
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t rows,
                  int64_t length) {
  const at::Tensor y = at::scaled_dot_product_attention(
      to_heads(q, rows, length), to_heads(k, rows, length), to_heads(v, rows, length),
      /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true, /*scale=*/{},
      /*enable_gqa=*/q.size(1) != k.size(1));
  return y.transpose(1, 2).reshape({rows * length, q.size(1) * q.size(2)});
}

// Generation: T new tokens of one sequence against everything cached.
at::Tensor attend_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         KvCache& cache) {
  const int64_t tokens = q.size(0);
  AMOEBA_CHECK(cache.length == 0 || tokens == 1, "attention: got ", tokens,
               " tokens on a cache of ", cache.length,
               ", want the whole prompt first and then one token a call");
  AMOEBA_CHECK(cache.length + tokens <= cache.keys.size(2), "attention: the cache holds ",
               cache.keys.size(2), " positions, want ", cache.length + tokens);
  cache.keys.narrow(2, cache.length, tokens).copy_(to_heads(k, 1, tokens));
  cache.values.narrow(2, cache.length, tokens).copy_(to_heads(v, 1, tokens));
  cache.length += tokens;
  const at::Tensor y = at::scaled_dot_product_attention(
      to_heads(q, 1, tokens), cache.keys.narrow(2, 0, cache.length),
      cache.values.narrow(2, 0, cache.length), {}, 0.0, /*is_causal=*/tokens > 1, {},
      q.size(1) != k.size(1));
  return y.transpose(1, 2).reshape({tokens, q.size(1) * q.size(2)});
}

}  // namespace

Attention::Attention(const AttentionConfig& config, const std::string& prefix,
                     const LayerInit& init, ParameterStore& store)
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
    q_norm_ = store.declare(prefix + ".q_norm.weight", {config.head_dim}, ones_init(), false, true);
    k_norm_ = store.declare(prefix + ".k_norm.weight", {config.head_dim}, ones_init(), false, true);
  }
}

at::Tensor Attention::forward(const at::Tensor& hidden, const SequenceLayout& layout,
                              const RopeTable& table, KvCache* cache) const {
  RECORD_USER_SCOPE("attention");
  const int64_t hd = config_.head_dim;
  const auto parts = SplitColumns::apply(linear(hidden, *wqkv_), config_.num_heads * hd,
                                         config_.num_kv_heads * hd);
  at::Tensor q = parts[0].view({-1, config_.num_heads, hd});
  at::Tensor k = parts[1].view({-1, config_.num_kv_heads, hd});
  const at::Tensor v = parts[2].view({-1, config_.num_kv_heads, hd});
  if (config_.qk_norm) {
    q = rms_norm(q, *q_norm_, config_.norm_eps);
    k = rms_norm(k, *k_norm_, config_.norm_eps);
  }
  q = rope(q, table, layout.positions);
  k = rope(k, table, layout.positions);
  if (cache != nullptr) return linear(attend_cached(q, k, v, *cache), *wo_);
  if (layout.segments.empty()) {
    return linear(attend(q, k, v, layout.batch_size, layout.seq_len), *wo_);
  }
  std::vector<at::Tensor> pieces;
  pieces.reserve(layout.segments.size());
  for (const Segment& segment : layout.segments) {
    const int64_t begin = segment.row * layout.seq_len + segment.begin;
    pieces.push_back(attend(q.narrow(0, begin, segment.length), k.narrow(0, begin, segment.length),
                            v.narrow(0, begin, segment.length), 1, segment.length));
  }
  return linear(at::cat(pieces, 0), *wo_);
}

}  // namespace amoeba::nn
