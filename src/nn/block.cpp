#include "nn/block.h"

#include <ATen/TensorOperators.h>

#include "nn/rms_norm.h"

namespace amoeba::nn {

namespace {

std::variant<FeedForward, Moe> make_network(const BlockConfig& config, const std::string& prefix,
                                            const LayerInit& init, ParameterStore& store) {
  if (config.dense_hidden_dim == 0) return Moe(config.moe, prefix + ".moe", init, store);
  return FeedForward(config.attention.dim, config.dense_hidden_dim, prefix + ".feed_forward", init,
                     store);
}

}  // namespace

BlockCall BlockCall::uncounted() const {
  BlockCall call = *this;
  call.error_word = at::Tensor();
  call.stats = nullptr;
  return call;
}

Block::Block(const BlockConfig& config, const std::string& prefix, const LayerInit& init,
             ParameterStore& store)
    : norm_eps_(config.attention.norm_eps),
      attention_norm_(store.declare(prefix + ".attention_norm.weight", {config.attention.dim},
                                    ones_init(), false, true)),
      attention_(config.attention, prefix + ".attention", init, store),
      ffn_norm_(store.declare(prefix + ".ffn_norm.weight", {config.attention.dim}, ones_init(),
                              false, true)),
      network_(make_network(config, prefix, init, store)) {}

at::Tensor Block::attend(const at::Tensor& hidden, const BlockCall& call, KvCache* cache) const {
  const auto [residual, x] = rms_norm_residual(hidden, *attention_norm_, norm_eps_);
  return residual + attention_.forward(x, call.layout, call.rope, cache);
}

BlockOutput Block::feed_forward(const at::Tensor& hidden, const BlockCall& call,
                                const at::Tensor& expert_ids) const {
  const auto [residual, x] = rms_norm_residual(hidden, *ffn_norm_, norm_eps_);
  if (const auto* dense = std::get_if<FeedForward>(&network_)) {
    return {residual + dense->forward(x), {}, {}, {}, {}};
  }
  ExpertStats uncounted;
  const MoeOutput moe = std::get<Moe>(network_).forward(
      x, call.expert_bias, call.token_mask, expert_ids, call.error_word, *call.backend,
      call.stats != nullptr ? *call.stats : uncounted);
  return {residual + moe.y, moe.expert_ids, moe.counts, moe.aux_loss, moe.z_loss};
}

BlockOutput Block::forward(const at::Tensor& hidden, const BlockCall& call,
                           const at::Tensor& expert_ids, KvCache* cache,
                           ActivationCheckpoint mode) const {
  if (mode == ActivationCheckpoint::kNone || cache != nullptr ||
      !attention_norm_->wants_gradient()) {
    return feed_forward(attend(hidden, call, cache), call, expert_ids);
  }
  const bool whole = mode == ActivationCheckpoint::kFull;
  const auto piece = [this, call, whole](const at::Tensor& x, const at::Tensor& ids, bool again) {
    const BlockCall& now = again ? call.uncounted() : call;
    return feed_forward(whole ? attend(x, now, nullptr) : x, now, ids);
  };
  return recompute_in_backward(piece, whole ? hidden : attend(hidden, call, nullptr), expert_ids,
                               attention_norm_->master);
}

}  // namespace amoeba::nn
