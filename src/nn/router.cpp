#include "nn/router.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>

#include "amoeba/error.h"
#include "base/error_word.h"
#include "nn/cpu_math.h"
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

// Ids [T, K] by the configured rule.
at::Tensor choose_experts(const RouterConfig& config, const at::Tensor& choice) {
  const int64_t tokens = choice.size(0), num_experts = config.num_experts, top_k = config.top_k;
  if (config.force_balance) {
    return at::arange(tokens * top_k, choice.options().dtype(at::kLong))
        .remainder(num_experts)
        .view({tokens, top_k});
  }
  if (config.num_groups == 0) return select_experts(choice, top_k);
  return select_experts(
      limit_to_groups(choice, config.num_groups, config.num_limited_groups, config.num_group_best),
      top_k);
}

// ids [...] -> [..., E]: which expert each is.
at::Tensor matches(const at::Tensor& ids, int64_t num_experts) {
  return ids.unsqueeze(-1).eq(at::arange(num_experts, ids.options()));
}

// The scores [T, K] of the chosen ids; of a skipped slot, those of the last expert.
at::Tensor scores_of(const at::Tensor& scores_TE, const at::Tensor& ids) {
  const int64_t last = scores_TE.size(1) - 1;
  if (!scores_TE.is_cuda()) return scores_TE.gather(1, ids.clamp_max(last));
  // The same by a sum with one term that is not zero: gather's backward would sort.
  return at::where(matches(ids.clamp_max(last), last + 1), scores_TE.unsqueeze(1), 0.0).sum(-1);
}

// Each row of scores divided by its sum.
at::Tensor normalized(const at::Tensor& scores) { return scores / (scores.sum(-1, true) + 1e-20); }

// Tokens (rows of values) inside the mask, a device scalar; at least 1, so that no token divides
// by 0.
at::Tensor num_tokens(const at::Tensor& values, const at::Tensor& token_mask) {
  if (token_mask.defined()) return token_mask.sum().clamp_min(1).to(at::kFloat);
  return at::full({}, std::max<int64_t>(1, values.size(0)), values.options().dtype(at::kFloat));
}

// Mean over the tokens inside the mask: values [T, N] -> [N]. (mean() is NaN without tokens.)
at::Tensor token_mean(const at::Tensor& values, const at::Tensor& token_mask) {
  const at::Tensor kept =
      token_mask.defined() ? at::where(token_mask.unsqueeze(1), values, 0.0) : values;
  return kept.sum(0) / num_tokens(values, token_mask);
}

}  // namespace

at::Tensor select_experts(const at::Tensor& choice, int64_t top_k) {
  const at::Tensor clean = replace_nan(choice.detach()).contiguous();
  const int64_t tokens = clean.size(0), num_experts = clean.size(1);
  if (!has_cpu_loop(clean)) {
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
  if (flat.is_cuda()) return matches(flat, num_experts).sum(0);  // adding in place would sort
  // Integers: exact in any order. (bincount would read the largest id on the host.)
  return at::zeros({num_experts + 1}, flat.options())
      .scatter_add_(0, flat, at::ones_like(flat))
      .narrow(0, 0, num_experts);
}

at::Tensor limit_to_groups(const at::Tensor& choice, int64_t num_groups, int64_t num_limited_groups,
                           int64_t num_group_best) {
  const int64_t tokens = choice.size(0), group_size = choice.size(1) / num_groups;
  const at::Tensor groups =
      replace_nan(choice.detach()).clamp_min(kLowest).reshape({tokens, num_groups, group_size});
  const at::Tensor group_scores =
      std::get<0>(at::topk(groups, num_group_best, -1)).sum(-1);  // [T, G]
  const at::Tensor best = select_experts(group_scores, num_limited_groups);
  const at::Tensor is_limited_out =
      at::ones_like(group_scores, at::kBool).scatter_(1, best, false).unsqueeze(2);
  return groups.masked_fill(is_limited_out, -std::numeric_limits<float>::infinity())
      .view(choice.sizes());
}

at::Tensor load_balance_loss(const at::Tensor& scores_TE, const at::Tensor& counts, int64_t top_k,
                             const at::Tensor& token_mask) {
  const at::Tensor num_choices = num_tokens(scores_TE, token_mask) * top_k;
  const at::Tensor mean_scores = token_mean(scores_TE, token_mask);  // [E]
  return (counts.to(at::kFloat) / num_choices * mean_scores).sum() *
         static_cast<double>(scores_TE.size(1));
}

at::Tensor router_z_loss(const at::Tensor& logits, const at::Tensor& token_mask) {
  return token_mean(at::logsumexp(logits, 1, /*keepdim=*/true).square(), token_mask).squeeze(0);
}

void check_router_config(const RouterConfig& config) {
  const int64_t experts = config.num_experts, groups = config.num_groups;
  const int64_t limited = config.num_limited_groups;
  int64_t candidates = experts;
  if (groups != 0) {
    AMOEBA_CHECK(groups > 0 && experts % groups == 0, "router: num_groups is ", groups,
                 ", want a divisor of the ", experts, " experts, or 0 (off)");
    AMOEBA_CHECK(experts / groups >= 2, "router: num_groups is ", groups, " for ", experts,
                 " experts, want at least 2 experts a group");
    candidates = limited * (experts / groups);
  }
  AMOEBA_CHECK(config.num_group_best == 1 || config.num_group_best == 2,
               "router: num_group_best is ", config.num_group_best, ", want 1 or 2");
  const int64_t least = groups == 0 ? 0 : 1;
  AMOEBA_CHECK(limited >= least && limited <= groups, "router: num_limited_groups is ", limited,
               ", want ", least, " to num_groups, which is ", groups);
  AMOEBA_CHECK(config.top_k >= 1 && config.top_k <= candidates, "router: top_k is ", config.top_k,
               ", want 1 to the ", candidates, " experts that a token can choose from");
}

Router::Router(const RouterConfig& config, const std::string& prefix, double gate_std,
               ParameterStore& store)
    : config_(config) {
  check_router_config(config);
  gate_ = store.declare(prefix + ".gate.weight", {config.num_experts, config.dim},
                        truncated_normal_init(gate_std), true, /*keep_fp32=*/true);
}

RouterOutput Router::forward(const at::Tensor& x, const at::Tensor& expert_bias,
                             const at::Tensor& token_mask, const at::Tensor& expert_ids,
                             const at::Tensor& error_word) const {
  RECORD_USER_SCOPE("router");
  at::Tensor logits = linear(x.to(at::kFloat), *gate_);  // [T, E]
  // Padding may hold anything.
  if (token_mask.defined()) logits = at::where(token_mask.unsqueeze(1), logits, 0.0);
  if (error_word.defined()) {
    error_word.bitwise_or_(at::isnan(logits.detach()).any().to(at::kInt).mul(kErrorNanLogit));
  }
  logits = replace_nan(logits);
  const bool is_sigmoid = config_.score_function == ScoreFunction::kSigmoid;
  const at::Tensor scores_TE = is_sigmoid ? at::sigmoid(logits) : at::softmax(logits, -1);
  RouterOutput out;
  const at::Tensor taken =
      expert_ids.defined() ? expert_ids : choose_experts(config_, scores_TE.detach() + expert_bias);
  out.scores = scores_of(scores_TE, taken);
  if (config_.route_norm) out.scores = normalized(out.scores);
  if (config_.route_scale != 1.0) out.scores = out.scores * config_.route_scale;
  out.expert_ids =
      token_mask.defined() ? at::where(token_mask.unsqueeze(1), taken, config_.num_experts) : taken;
  out.counts = count_experts(out.expert_ids, config_.num_experts);
  if (c10::InferenceMode::is_enabled()) return out;  // nobody trains by the losses
  out.aux_loss = load_balance_loss(is_sigmoid ? normalized(scores_TE) : scores_TE, out.counts,
                                   config_.top_k, token_mask);
  out.z_loss = router_z_loss(logits, token_mask);
  return out;
}

at::Tensor balanced_expert_bias(const at::Tensor& expert_bias, const at::Tensor& counts,
                                double coeff) {
  // In integers: an fp32 mean of large counts can miss the sign.
  const at::Tensor deficit = counts.sum(-1, true) - counts * counts.size(-1);  // E (mean - count)
  const at::Tensor delta = coeff * at::sign(deficit).to(at::kFloat);
  return expert_bias + (delta - delta.mean(-1, true));
}

}  // namespace amoeba::nn
