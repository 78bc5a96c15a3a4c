#include "nn/mla.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "nn/columns.h"
#include "nn/cpu_math.h"
#include "nn/linear.h"
#include "nn/parallel.h"
#include "nn/rms_norm.h"

namespace amoeba::nn {

namespace {

AMOEBA_CPU_CLONES
void add_heads(const float* x, int64_t heads, float* y, int64_t size) {
  std::fill_n(y, size, 0.0f);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t d = 0; d < size; ++d) y[d] += x[head * size + d];
  }
}

// x [T, heads, rope] -> [T, rope], heads added in order and in fp32.
at::Tensor sum_heads(const at::Tensor& x) {
  if (!has_cpu_loop(x)) return x.sum(1, /*keepdim=*/false, at::kFloat).to(x.scalar_type());
  const int64_t tokens = x.size(0), heads = x.size(1), size = x.size(2);
  at::Tensor y = at::empty({tokens, size}, x.options());
  const float* in = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      add_heads(in + t * heads * size, heads, out + t * size, size);
    }
  });
  return y;
}

// kv [T, heads, nope + v] and the shared rotated key k_rope [T, rope] -> keys [T, heads, nope +
// rope] and values [T, heads, value_width], v padded with zeros. One copy each way.
class KeysAndValues : public torch::autograd::Function<KeysAndValues> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& kv, const at::Tensor& k_rope,
                                                int64_t nope, int64_t value_width) {
    const int64_t tokens = kv.size(0), heads = kv.size(1), rotated = k_rope.size(1);
    const int64_t key_dim = nope + rotated, value_dim = kv.size(2) - nope;
    at::Tensor k = at::empty({tokens, heads, key_dim}, kv.options());
    at::Tensor v = at::empty({tokens, heads, value_width}, kv.options());
    k.narrow(2, 0, nope).copy_(kv.narrow(2, 0, nope));
    k.narrow(2, nope, rotated).copy_(k_rope.unsqueeze(1));
    v.narrow(2, 0, value_dim).copy_(kv.narrow(2, nope, value_dim));
    v.narrow(2, value_dim, value_width - value_dim).zero_();
    context->saved_data["nope"] = nope;
    context->saved_data["value_dim"] = value_dim;
    return {k, v};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const at::Tensor &dk = grad_outputs[0], &dv = grad_outputs[1];
    const int64_t nope = context->saved_data["nope"].toInt();
    const int64_t value_dim = context->saved_data["value_dim"].toInt();
    at::Tensor dkv = at::empty({dk.size(0), dk.size(1), nope + value_dim}, dk.options());
    dkv.narrow(2, 0, nope).copy_(dk.narrow(2, 0, nope));
    dkv.narrow(2, nope, value_dim).copy_(dv.narrow(2, 0, value_dim));
    return {dkv, sum_heads(dk.narrow(2, nope, dk.size(2) - nope).contiguous()), at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

LatentAttention::LatentAttention(const AttentionConfig& config, const std::string& prefix,
                                 const LayerInit& init, ParameterStore& store)
    : config_(config),
      scale_(yarn_scale_factor(config.rope, config.yarn_mscale) /
             std::sqrt(static_cast<double>(config.key_dim()))) {
  const MlaConfig& mla = *config.mla;
  const int64_t dim = config.dim, heads = config.num_heads, q_rows = heads * config.key_dim();
  const auto linear_map = [&](const char* name, int64_t rows, int64_t columns, double std) {
    return store.declare(prefix + name, {rows, columns}, truncated_normal_init(std), true);
  };
  const auto norm = [&](const char* name, int64_t size) {
    return store.declare(prefix + name, {size}, ones_init(), false, true);
  };
  if (mla.q_lora_rank == 0) {
    wq_ = linear_map(".wq.weight", q_rows, dim, init.input_std);
  } else {
    wq_a_ = linear_map(".wq_a.weight", mla.q_lora_rank, dim, init.input_std);
    q_norm_ = norm(".q_norm.weight", mla.q_lora_rank);
    wq_b_ = linear_map(".wq_b.weight", q_rows, mla.q_lora_rank, init.input_std);
  }
  wkv_a_ =
      linear_map(".wkv_a.weight", mla.kv_lora_rank + mla.qk_rope_head_dim, dim, init.input_std);
  kv_norm_ = norm(".kv_norm.weight", mla.kv_lora_rank);
  wkv_b_ = linear_map(".wkv_b.weight", heads * (mla.qk_nope_head_dim + mla.v_head_dim),
                      mla.kv_lora_rank, init.input_std);
  wo_ = linear_map(".wo.weight", dim, heads * mla.v_head_dim, init.output_std);
}

at::Tensor LatentAttention::queries(const at::Tensor& hidden) const {
  if (wq_ != nullptr) return linear(hidden, *wq_);
  return linear(rms_norm(linear(hidden, *wq_a_), *q_norm_, config_.latent_eps()), *wq_b_);
}

at::Tensor LatentAttention::forward(const at::Tensor& hidden, const SequenceLayout& layout,
                                    const RopeTable& table, KvCache* cache) const {
  const MlaConfig& mla = *config_.mla;
  const int64_t heads = config_.num_heads, nope = mla.qk_nope_head_dim;
  const at::Tensor q =
      rope(queries(hidden).view({-1, heads, config_.key_dim()}), table, layout.positions);
  const auto latent =
      split_columns(linear(hidden, *wkv_a_), {mla.kv_lora_rank, mla.qk_rope_head_dim});
  const at::Tensor k_rope = rope(latent[1].unsqueeze(1), table, layout.positions).squeeze(1);
  const at::Tensor kv = linear(rms_norm(latent[0], *kv_norm_, config_.latent_eps()), *wkv_b_);
  const auto parts = KeysAndValues::apply(kv.view({-1, heads, nope + mla.v_head_dim}), k_rope, nope,
                                          value_width(q, mla.v_head_dim));
  return linear(causal_attention(q, parts[0], parts[1], mla.v_head_dim, scale_, layout, cache),
                *wo_);
}

KvCache LatentAttention::make_cache(int64_t num_rows, int64_t max_positions,
                                    at::TensorOptions options) const {
  const auto heads = [&](int64_t width) {
    return at::empty({num_rows, config_.num_heads, max_positions, width}, options);
  };
  return {heads(config_.key_dim()), heads(config_.value_dim()),
          std::vector<int64_t>(static_cast<size_t>(num_rows), 0)};
}

}  // namespace amoeba::nn
