#include "nn/router.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <limits>

#include "base/error_word.h"
#include "nn/linear.h"
#include "nn/parallel.h"

namespace amoeba::nn {

namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

at::Tensor replace_nan(const at::Tensor& x) { return at::where(at::isnan(x), kLowest, x); }

// Selection sort of the K best: K is small, and a strict comparison keeps the lower id on ties.
void select_row(const float* choice, int64_t num_experts, int64_t top_k, int64_t* ids) {
  for (int64_t k = 0; k < top_k; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < num_experts; ++e) {
      if (std::find(ids, ids + k, e) != ids + k) continue;
      if (best < 0 || choice[e] > choice[best]) best = e;
    }
    ids[k] = best;
  }
}

}  // namespace

at::Tensor select_experts(const at::Tensor& choice, int64_t top_k) {
  const at::Tensor clean = replace_nan(choice.detach()).contiguous();
  const int64_t tokens = clean.size(0), num_experts = clean.size(1);
  if (!clean.is_cpu()) {
    return std::get<1>(at::sort(clean, /*stable=*/true, -1, /*descending=*/true))
        .narrow(1, 0, top_k)
        .contiguous();
  }
  at::Tensor ids = at::empty({tokens, top_k}, clean.options().dtype(at::kLong));
  const float* values = clean.const_data_ptr<float>();
  int64_t* out = ids.mutable_data_ptr<int64_t>();
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      select_row(values + t * num_experts, num_experts, top_k, out + t * top_k);
    }
  });
  return ids;
}

at::Tensor count_experts(const at::Tensor& expert_ids, int64_t num_experts) {
  const at::Tensor flat = expert_ids.reshape(-1);
  // Integers: exact in any order. (bincount would read the largest id on the host.)
  return at::zeros({num_experts + 1}, flat.options())
      .scatter_add_(0, flat, at::ones_like(flat))
      .narrow(0, 0, num_experts);
}

at::Tensor load_balance_loss(const at::Tensor& scores_TE, const at::Tensor& counts, int64_t top_k,
                             const at::Tensor& token_mask) {
  const auto num_experts = static_cast<double>(scores_TE.size(1));
  at::Tensor total, mean_scores;
  if (token_mask.defined()) {
    const at::Tensor tokens = token_mask.sum().clamp_min(1).to(at::kFloat);
    mean_scores = (scores_TE * token_mask.to(at::kFloat).unsqueeze(1)).sum(0) / tokens;
    total = tokens * static_cast<double>(top_k);
  } else {
    const auto tokens = static_cast<double>(std::max<int64_t>(1, scores_TE.size(0)));
    mean_scores = scores_TE.sum(0) / tokens;  // not mean(): NaN without tokens
    total = at::full_like(mean_scores.select(0, 0), tokens * static_cast<double>(top_k));
  }
  return (counts.to(at::kFloat) / total * mean_scores).sum() * num_experts;
}

Router::Router(const RouterConfig& config, const std::string& prefix, double gate_std,
               ParameterStore& store)
    : config_(config),
      gate_(store.declare(prefix + ".gate.weight", {config.num_experts, config.dim},
                          truncated_normal_init(gate_std), true, /*keep_fp32=*/true)) {}

RouterOutput Router::forward(const at::Tensor& x, const at::Tensor& expert_bias,
                             const at::Tensor& token_mask, const at::Tensor& expert_ids,
                             const at::Tensor& error_word) const {
  RECORD_USER_SCOPE("router");
  const at::Tensor logits = linear(x.to(at::kFloat), *gate_);  // [T, E]
  if (error_word.defined()) {
    at::Tensor bad = at::isnan(logits.detach()).any(1);           // [T]
    if (token_mask.defined()) bad = bad.logical_and(token_mask);  // padding may hold anything
    error_word.bitwise_or_(bad.any().to(at::kInt).mul(kErrorNanLogit));
  }
  const at::Tensor scores_TE = at::softmax(replace_nan(logits), -1);
  RouterOutput out;
  const at::Tensor ids = expert_ids.defined()
                             ? expert_ids.clamp_max(config_.num_experts - 1)
                             : select_experts(scores_TE.detach() + expert_bias, config_.top_k);
  out.scores = scores_TE.gather(1, ids);
  if (config_.route_norm) out.scores = out.scores / (out.scores.sum(-1, true) + 1e-20);
  if (config_.route_scale != 1.0) out.scores = out.scores * config_.route_scale;
  const at::Tensor& taken = expert_ids.defined() ? expert_ids : ids;
  out.expert_ids =
      token_mask.defined() ? at::where(token_mask.unsqueeze(1), taken, config_.num_experts) : taken;
  out.counts = count_experts(out.expert_ids, config_.num_experts);
  out.aux_loss = load_balance_loss(scores_TE, out.counts, config_.top_k, token_mask);
  return out;
}

at::Tensor balanced_expert_bias(const at::Tensor& expert_bias, const at::Tensor& counts,
                                double coeff) {
  const at::Tensor load = counts.to(at::kFloat);
  const at::Tensor delta = coeff * at::sign(load.mean(-1, true) - load);
  return expert_bias + (delta - delta.mean(-1, true));
}

}  // namespace amoeba::nn
