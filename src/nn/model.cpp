#include "amoeba/model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
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

void check_config(const ModelConfig& config) {
  AMOEBA_CHECK(config.vocab_size > 0 && config.num_layers > 0, "model: vocab_size is ",
               config.vocab_size, " and num_layers is ", config.num_layers, ", want both > 0");
  AMOEBA_CHECK(config.num_dense_layers >= 0 && config.num_dense_layers <= config.num_layers,
               "model: num_dense_layers is ", config.num_dense_layers, ", want 0 to num_layers ",
               config.num_layers);
  AMOEBA_CHECK(config.num_dense_layers == 0 || config.dense_hidden_dim > 0,
               "model: dense_hidden_dim is ", config.dense_hidden_dim, ", want > 0 with ",
               config.num_dense_layers, " dense layers");
  if (config.num_dense_layers == config.num_layers) return;
  AMOEBA_CHECK(config.moe.router.dim == config.attention.dim, "model: moe.router.dim is ",
               config.moe.router.dim, ", want attention.dim ", config.attention.dim);
  AMOEBA_CHECK(config.moe.hidden_dim > 0, "model: moe.hidden_dim is ", config.moe.hidden_dim,
               ", want > 0");
}

at::Tensor mean_loss(const std::vector<at::Tensor>& losses, at::Device device) {
  if (losses.empty()) return at::zeros({}, at::TensorOptions(at::kFloat).device(device));
  return at::stack(losses).mean();
}

}  // namespace

Model::Model(const ModelConfig& config, at::Device device, at::ScalarType dtype, uint64_t seed)
    : config_(config), dtype_(dtype) {
  check_config(config);
  const int64_t dim = config.attention.dim;
  embedding_ = store_.declare("tok_embeddings.weight", {config.vocab_size, dim},
                              normal_init(config.embedding_std), true);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = cat("layers.", layer);
    const LayerInit init{config.init_std,
                         config.init_std / std::sqrt(2.0 * static_cast<double>(layer + 1))};
    const bool dense = layer < config.num_dense_layers;
    blocks_.emplace_back(
        BlockConfig{config.attention, dense ? config.dense_hidden_dim : 0, config.moe}, prefix,
        init, store_);
  }
  norm_ = store_.declare("norm.weight", {dim}, ones_init(), false, true);
  const double head_std = 1.0 / std::sqrt(static_cast<double>(dim));
  lm_head_ = config.tie_embeddings
                 ? embedding_
                 : store_.declare("output.weight", {config.vocab_size, dim},
                                  truncated_normal_init(head_std, 3 * head_std), true);
  store_.allocate(device, dtype, seed);
  rope_ = make_rope_table(config.attention.rope, config.max_seq_len, device);
  const int64_t experts = config.moe.router.num_experts;
  expert_bias_ =
      at::zeros({num_moe_layers(), experts}, at::TensorOptions(at::kFloat).device(device));
  error_word_ = at::zeros({1}, at::TensorOptions(at::kInt).device(device));
  if (device.is_meta() || num_moe_layers() == 0) return;
  const at::Tensor row = at::empty({0, dim}, at::TensorOptions(dtype).device(device));
  const at::Tensor w1 =
      at::empty({experts, config.moe.hidden_dim, dim}, at::TensorOptions(dtype).device(at::kMeta));
  expert_choice_ = choose_expert_backend(
      config.compute_backend,
      describe_problem(row, w1, static_cast<bool>(config.moe.output_postprocess)));
}

BlockOutput Model::block(int64_t layer, const at::Tensor& hidden, const ModelInput& input,
                         const at::Tensor& expert_ids, KvCache* cache) {
  const int64_t moe_layer = layer - config_.num_dense_layers;
  const BlockCall call{
      input.layout,     rope_,
      input.token_mask, moe_layer < 0 ? at::Tensor() : expert_bias_.select(0, moe_layer),
      error_word_,      expert_choice_.backend,
      &expert_stats_};
  return blocks_[static_cast<size_t>(layer)].forward(hidden, call, expert_ids, cache,
                                                     config_.activation_checkpoint);
}

ModelOutput Model::forward(const ModelInput& input, std::vector<KvCache>* caches) {
  check_input(input);
  at::Tensor hidden = embedding(input.tokens, *embedding_);
  std::vector<at::Tensor> counts, aux_losses, z_losses;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const BlockOutput out =
        block(layer, hidden, input, /*expert_ids=*/{},
              caches == nullptr ? nullptr : &(*caches)[static_cast<size_t>(layer)]);
    hidden = out.hidden;
    if (!out.counts.defined()) continue;  // a dense layer
    counts.push_back(out.counts);
    if (!out.aux_loss.defined()) continue;  // inference mode
    aux_losses.push_back(out.aux_loss);
    z_losses.push_back(out.z_loss);
  }
  return {rms_norm(hidden, *norm_, config_.attention.norm_eps),
          counts.empty() ? at::zeros(expert_bias_.sizes(), expert_bias_.options().dtype(at::kLong))
                         : at::stack(counts),
          mean_loss(aux_losses, device()), mean_loss(z_losses, device())};
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  return at::mm(hidden, lm_head_->compute.t()).to(at::kFloat);
}

std::vector<KvCache> Model::make_caches(int64_t num_rows, int64_t max_positions) const {
  const auto options = at::TensorOptions(dtype_).device(device());
  std::vector<KvCache> caches;
  caches.reserve(blocks_.size());
  for (const Block& block : blocks_) {
    caches.push_back(block.make_cache(num_rows, max_positions, options));
  }
  return caches;
}

ModelSize Model::size(int64_t seq_len) const {
  ModelSize size;
  size.total = store_.numel();
  const MoeConfig& moe = config_.moe;
  const int64_t experts = moe.router.num_experts, layers = num_moe_layers();
  const int64_t expert = 3 * moe.router.dim * moe.hidden_dim;
  size.active = size.total - layers * expert * (experts - moe.router.top_k);
  size.sparse = layers * (moe.router.dim * experts + expert * (experts + moe.num_shared_experts));
  // Tied embeddings are counted once and are the output projection; untied, the input one is a
  // look-up.
  const int64_t embedding = config_.tie_embeddings ? 0 : embedding_->numel();
  const AttentionConfig& attention = config_.attention;
  const int64_t head = attention.key_dim() + attention.value_dim();
  size.flops_per_token =
      6.0 * static_cast<double>(size.active - embedding) +
      6.0 * static_cast<double>(config_.num_layers * attention.num_heads * head * seq_len);
  return size;
}

}  // namespace amoeba::nn
