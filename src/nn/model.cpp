#include "amoeba/model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "amoeba/error.h"
#include "nn/embedding.h"
#include "nn/rms_norm.h"

namespace amoeba::nn {

namespace {

void check_input(const ModelInput& input) {
  const SequenceLayout& layout = input.layout;
  const int64_t tokens = layout.batch_size * layout.seq_len;
  const auto check = [&](const char* name, const at::Tensor& tensor, at::ScalarType dtype) {
    AMOEBA_CHECK(tensor.defined() && tensor.scalar_type() == dtype &&
                     tensor.sizes() == at::IntArrayRef{tokens},
                 "model: ", name, " is ",
                 tensor.defined() ? cat(tensor.scalar_type(), " ", tensor.sizes()) : "undefined",
                 ", want ", dtype, " [", tokens, "] for ", layout.batch_size, " sequences of ",
                 layout.seq_len);
  };
  check("tokens", input.tokens, at::kLong);
  check("positions", layout.positions, at::kLong);
  if (input.token_mask.defined()) check("token_mask", input.token_mask, at::kBool);
  int64_t covered = 0;
  for (const Segment& segment : layout.segments) covered += segment.length;
  AMOEBA_CHECK(layout.segments.empty() || covered == tokens, "model: the segments cover ", covered,
               " tokens, want all ", tokens);
}

}  // namespace

Model::Model(const ModelConfig& config, at::Device device, at::ScalarType dtype, uint64_t seed)
    : config_(config), dtype_(dtype) {
  const int64_t dim = config.attention.dim;
  embedding_ = store_.declare("tok_embeddings.weight", {config.vocab_size, dim},
                              normal_init(config.embedding_std), true);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = cat("layers.", layer);
    const LayerInit init{config.init_std,
                         config.init_std / std::sqrt(2.0 * static_cast<double>(layer + 1))};
    const Parameter* attention_norm =
        store_.declare(prefix + ".attention_norm.weight", {dim}, ones_init(), false, true);
    Attention attention(config.attention, prefix + ".attention", init, store_);
    const Parameter* ffn_norm =
        store_.declare(prefix + ".ffn_norm.weight", {dim}, ones_init(), false, true);
    blocks_.push_back(
        {attention_norm, attention, ffn_norm, Moe(config.moe, prefix + ".moe", init, store_)});
  }
  norm_ = store_.declare("norm.weight", {dim}, ones_init(), false, true);
  const double head_std = 1.0 / std::sqrt(static_cast<double>(dim));
  lm_head_ = config.tie_embeddings
                 ? embedding_
                 : store_.declare("output.weight", {config.vocab_size, dim},
                                  truncated_normal_init(head_std, 3 * head_std), true);
  store_.allocate(device, dtype, seed);
  rope_ = make_rope_table(config.max_seq_len, config.attention.head_dim, config.rope_theta, device);
  const int64_t experts = config.moe.router.num_experts;
  expert_bias_ =
      at::zeros({config.num_layers, experts}, at::TensorOptions(at::kFloat).device(device));
  error_word_ = at::zeros({1}, at::TensorOptions(at::kInt).device(device));
  const at::Tensor row = at::empty({0, dim}, at::TensorOptions(dtype).device(device));
  const at::Tensor w1 =
      at::empty({experts, config.moe.hidden_dim, dim}, at::TensorOptions(dtype).device(at::kMeta));
  if (!device.is_meta()) {
    expert_choice_ = choose_expert_backend(
        config.compute_backend, describe_problem(row, w1, /*has_output_postprocess=*/false));
  }
}

BlockOutput Model::block(int64_t layer, const at::Tensor& hidden, const ModelInput& input,
                         const at::Tensor& expert_ids, KvCache* cache) {
  const Block& block = blocks_[static_cast<size_t>(layer)];
  const double eps = config_.attention.norm_eps;
  const at::Tensor x =
      hidden + block.attention.forward(rms_norm(hidden, *block.attention_norm, eps), input.layout,
                                       rope_, cache);
  MoeOutput moe = block.moe.forward(rms_norm(x, *block.ffn_norm, eps),
                                    expert_bias_.select(0, layer), input.token_mask, expert_ids,
                                    error_word_, *expert_choice_.backend, expert_stats_);
  return {x + moe.y, moe.expert_ids, moe.counts, moe.aux_loss};
}

ModelOutput Model::forward(const ModelInput& input, std::vector<KvCache>* caches) {
  check_input(input);
  at::Tensor hidden = embedding(input.tokens, *embedding_);
  std::vector<at::Tensor> counts, losses;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    BlockOutput out = block(layer, hidden, input, /*expert_ids=*/{},
                            caches == nullptr ? nullptr : &(*caches)[static_cast<size_t>(layer)]);
    hidden = out.hidden;
    counts.push_back(out.counts);
    losses.push_back(out.aux_loss);
  }
  return {rms_norm(hidden, *norm_, config_.attention.norm_eps), at::stack(counts),
          at::stack(losses).mean()};
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  return at::mm(hidden, lm_head_->compute.t()).to(at::kFloat);
}

std::vector<KvCache> Model::make_caches(int64_t max_positions) const {
  std::vector<KvCache> caches(static_cast<size_t>(config_.num_layers));
  for (KvCache& cache : caches) {
    const auto options = at::TensorOptions(dtype_).device(expert_bias_.device());
    cache.keys = at::empty(
        {1, config_.attention.num_kv_heads, max_positions, config_.attention.head_dim}, options);
    cache.values = at::empty_like(cache.keys);
  }
  return caches;
}

ModelSize Model::size(int64_t seq_len) const {
  ModelSize size;
  size.total = store_.numel();
  const MoeConfig& moe = config_.moe;
  const int64_t expert = 3 * moe.router.dim * moe.hidden_dim;
  size.active =
      size.total - config_.num_layers * expert * (moe.router.num_experts - moe.router.top_k);
  // Tied embeddings are counted once and are the output projection; untied, the input one is a
  // look-up.
  const int64_t embedding = config_.tie_embeddings ? 0 : embedding_->numel();
  const AttentionConfig& attention = config_.attention;
  size.flops_per_token = 6.0 * static_cast<double>(size.active - embedding) +
                         6.0 * static_cast<double>(config_.num_layers * attention.num_heads * 2 *
                                                   attention.head_dim * seq_len);
  return size;
}

}  // namespace amoeba::nn
