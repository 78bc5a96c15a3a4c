#include "nn/moe.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/where.h>
#include <ATen/record_function.h>

#include "amoeba/error.h"
#include "nn/dispatch.h"

namespace amoeba::nn {

namespace {

// The hook on the experts' output rows [R, D]. Rows past sum(counts) belong to skipped slots: they
// stay zero and send no gradient to the hook.
at::Tensor postprocess_rows(const MoeConfig& config, const at::Tensor& rows,
                            const at::Tensor& counts) {
  if (!config.output_postprocess) return rows;
  const at::Tensor out = config.output_postprocess(rows);
  AMOEBA_CHECK(out.sizes() == rows.sizes() && out.scalar_type() == rows.scalar_type(),
               "output_postprocess: the result is ", out.scalar_type(), " ", out.sizes(), ", want ",
               rows.scalar_type(), " ", rows.sizes());
  const at::Tensor is_routed = at::arange(rows.size(0), counts.options()).lt(counts.sum());
  return at::where(is_routed.unsqueeze(1), out, 0.0);
}

}  // namespace

Moe::Moe(const MoeConfig& config, const std::string& prefix, const LayerInit& init,
         ParameterStore& store)
    : config_(config), router_(config.router, prefix + ".router", init.output_std, store) {
  const int64_t experts = config.router.num_experts, dim = config.router.dim;
  const int64_t hidden = config.hidden_dim;
  w1_ = store.declare(prefix + ".experts.w1", {experts, hidden, dim},
                      truncated_normal_init(init.input_std), true);
  w2_ = store.declare(prefix + ".experts.w2", {experts, dim, hidden},
                      truncated_normal_init(init.output_std), true);
  w3_ = store.declare(prefix + ".experts.w3", {experts, hidden, dim},
                      truncated_normal_init(init.output_std), true);
  if (config.num_shared_experts > 0) {
    shared_.emplace(dim, config.num_shared_experts * hidden, prefix + ".shared_experts", init,
                    store);
  }
}

ExpertWeights Moe::weights(at::Tensor Parameter::*tensor) const {
  return {w1_->*tensor, w2_->*tensor, w3_->*tensor};
}

at::Tensor Moe::run_rows(const at::Tensor& x, const RouterOutput& routing,
                         const at::Tensor& error_word, const ExpertBackend& backend,
                         ExpertStats& stats) const {
  const Routes routes = sort_by_expert(routing.expert_ids, config_.router.num_experts);
  at::Tensor rows = gather_rows(x, routes);  // [R, D]
  if (config_.score_before_experts) {
    const at::Tensor row_scores = routing.scores.reshape(-1).index_select(0, routes.row_slot);
    rows = (rows.to(at::kFloat) * row_scores.unsqueeze(1)).to(x.scalar_type());
  }
  rows = run_expert_rows(backend, rows, routing.counts, {w1_->use(), w2_->use(), w3_->use()},
                         config_.experts, stats, error_word);
  rows = postprocess_rows(config_, rows, routing.counts);
  return combine_rows(rows, config_.score_before_experts ? at::Tensor() : routing.scores, routes);
}

at::Tensor Moe::run_routed(const at::Tensor& x, const RouterOutput& routing,
                           const at::Tensor& error_word, const ExpertBackend& backend,
                           ExpertStats& stats) const {
  RECORD_USER_SCOPE("routed experts");
  const bool has_hook = static_cast<bool>(config_.output_postprocess);
  if (!refuse_tokens(backend, has_hook).empty()) {
    return run_rows(x, routing, error_word, backend, stats);
  }
  return run_expert_tokens(
      backend, {x, routing.expert_ids, routing.scores, config_.score_before_experts},
      {weights(&Parameter::compute), weights(&Parameter::master), weights(&Parameter::grad)}, stats,
      error_word);
}

MoeOutput Moe::forward(const at::Tensor& x, const at::Tensor& expert_bias,
                       const at::Tensor& token_mask, const at::Tensor& expert_ids,
                       const at::Tensor& error_word, const ExpertBackend& backend,
                       ExpertStats& stats) const {
  RouterOutput routing = router_.forward(x, expert_bias, token_mask, expert_ids, error_word);
  MoeOutput out;
  out.y = run_routed(x, routing, error_word, backend, stats);
  if (shared_) out.y = out.y + shared_->forward(x);
  out.expert_ids = routing.expert_ids;
  out.counts = routing.counts;
  out.aux_loss = routing.aux_loss;
  out.z_loss = routing.z_loss;
  return out;
}

}  // namespace amoeba::nn
