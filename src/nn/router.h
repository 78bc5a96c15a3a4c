// The router: token-choice top-K over softmax or sigmoid scores with bias-corrected, optionally
// node-limited selection.
//
// Legend: T tokens, D model width, E experts, K choices per token.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/parameters.h"

namespace amoeba::nn {

enum class ScoreFunction { kSoftmax, kSigmoid };

struct RouterConfig {
  int64_t dim = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  ScoreFunction score_function = ScoreFunction::kSoftmax;
  // Node-limited selection (DeepSeek-V2, section 2.2.2; groups scored as in DeepSeek-V3, section
  // 2.1.2): of num_groups groups of neighbouring experts only the num_limited_groups best can be
  // chosen. 0: off.
  int64_t num_groups = 0;
  int64_t num_limited_groups = 0;
  int64_t num_group_best = 2;  // experts, the best, whose scores make a group's (DeepSeek-V2: 1)
  bool route_norm = false;     // selected scores divided by their sum
  double route_scale = 1.0;
  // Benchmarks only: slot t*K + k goes to expert (t*K + k) mod E, whatever the scores, which are
  // still gathered at these ids.
  bool force_balance = false;
};

// Error(kUsage) for sizes that do not fit together: E not a multiple of the groups, fewer than two
// experts a group, no limited groups or more than groups, top_k beyond what the limited groups (all
// experts, without groups) hold.
void check_router_config(const RouterConfig& config);

struct RouterOutput {
  at::Tensor scores;      // [T, K] fp32, differentiable
  at::Tensor expert_ids;  // [T, K] int64 in [0, E); E for tokens outside the mask
  at::Tensor counts;      // [E] int64, tokens inside the mask only
  // fp32 scalars, differentiable; undefined in inference mode.
  at::Tensor aux_loss;  // load_balance_loss
  at::Tensor z_loss;    // router_z_loss
};

// The K largest of each row of choice [T, E] fp32, best first; equal values: the lower id. NaN
// counts as the lowest finite value, so ids are always in range and distinct.
at::Tensor select_experts(const at::Tensor& choice, int64_t top_k);

// choice [T, E] fp32 -> the same with -inf outside each row's best groups. A group's score is the
// sum of its `num_group_best` best choices; equal groups: the lower one. NaN and -inf count, and
// come back, as the lowest finite value, so that an expert inside always ranks above one outside.
at::Tensor limit_to_groups(const at::Tensor& choice, int64_t num_groups, int64_t num_limited_groups,
                           int64_t num_group_best = 2);

// Rows per expert [E] int64 of ids in [0, E]; E (skipped slots) is not counted. No host read.
at::Tensor count_experts(const at::Tensor& expert_ids, int64_t num_experts);

// E * sum_e f_e P_e (Switch Transformer, Fedus et al. 2021, eq. 4): f_e the share of the T*K
// choices that expert e got (no gradient), P_e its mean score; 1 when balanced, 0 without tokens.
// The rows of scores_TE sum to 1: the router divides sigmoid scores by their sum first
// (DeepSeek-V3, eq. 17-20).
at::Tensor load_balance_loss(const at::Tensor& scores_TE, const at::Tensor& counts, int64_t top_k,
                             const at::Tensor& token_mask);

// Mean over the tokens inside the mask of logsumexp(logits[t])^2 (ST-MoE, Zoph et al. 2022, eq. 5);
// 0 without tokens.
at::Tensor router_z_loss(const at::Tensor& logits, const at::Tensor& token_mask);

class Router {
 public:
  // Checks the configuration and declares `<prefix>.gate.weight` [E, D], kept in fp32.
  Router(const RouterConfig& config, const std::string& prefix, double gate_std,
         ParameterStore& store);

  // x [T, D]; expert_bias [E] fp32 joins the selection only. `token_mask` [T] bool, undefined: all.
  // `expert_ids` [T, K] in [0, E] given: selection is skipped (force_balance too) and the scores
  // are gathered at these ids; the mask still applies. `error_word` int32 [1]: gets kErrorNanLogit
  // when a logit is NaN.
  RouterOutput forward(const at::Tensor& x, const at::Tensor& expert_bias,
                       const at::Tensor& token_mask, const at::Tensor& expert_ids,
                       const at::Tensor& error_word) const;

 private:
  RouterConfig config_;
  const Parameter* gate_;
};

// expert_bias [L, E] fp32 += coeff * sign(mean(counts) - counts), centred to mean zero
// (DeepSeek-V3's balancing without an auxiliary loss, as torchtitan applies it). counts [L, E]
// int64 of one whole step; the sign is exact for any of them.
at::Tensor balanced_expert_bias(const at::Tensor& expert_bias, const at::Tensor& counts,
                                double coeff);

}  // namespace amoeba::nn
