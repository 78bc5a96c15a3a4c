// A Mixture-of-Experts layer: router, routed experts through the backend table, shared experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "amoeba/experts.h"
#include "nn/feed_forward.h"
#include "nn/parameters.h"
#include "nn/router.h"

namespace amoeba::nn {

struct MoeConfig {
  RouterConfig router;
  int64_t hidden_dim = 0;          // of one expert
  int64_t num_shared_experts = 0;  // one FFN of width num_shared_experts * hidden_dim; 0: none
  bool score_before_experts = false;
  ExpertOptions experts;
  // Applied to the experts' output rows [R, D] (grouped by expert, skipped slots last, whose rows
  // stay zero) before they are weighted and summed; keeps shape and dtype, differentiable. Empty:
  // none.
  std::function<at::Tensor(const at::Tensor& rows)> output_postprocess;
};

struct MoeOutput {
  at::Tensor y;           // [T, D]
  at::Tensor expert_ids;  // [T, K], what a recomputation passes back in
  at::Tensor counts;      // [E] int64
  at::Tensor aux_loss;    // fp32 scalar; undefined in inference mode
  at::Tensor z_loss;      // likewise
};

class Moe {
 public:
  // Declares `<prefix>.router.gate.weight`, `<prefix>.experts.{w1,w2,w3}` and
  // `<prefix>.shared_experts.*`.
  Moe(const MoeConfig& config, const std::string& prefix, const LayerInit& init,
      ParameterStore& store);

  // A pure function of x [T, D] and, when given, the routing ids: counters and the bias are the
  // caller's. `stats` sums up what the backend did.
  MoeOutput forward(const at::Tensor& x, const at::Tensor& expert_bias,
                    const at::Tensor& token_mask, const at::Tensor& expert_ids,
                    const at::Tensor& error_word, const ExpertBackend& backend,
                    ExpertStats& stats) const;

 private:
  ExpertWeights weights(at::Tensor Parameter::*tensor) const;
  // The part between the router and the sum with the shared experts.
  at::Tensor run_routed(const at::Tensor& x, const RouterOutput& routing,
                        const at::Tensor& error_word, const ExpertBackend& backend,
                        ExpertStats& stats) const;
  // The composed path of a backend that takes rows: gather, rows, post-process, combine.
  at::Tensor run_rows(const at::Tensor& x, const RouterOutput& routing,
                      const at::Tensor& error_word, const ExpertBackend& backend,
                      ExpertStats& stats) const;

  MoeConfig config_;
  Router router_;
  const Parameter* w1_;
  const Parameter* w2_;
  const Parameter* w3_;
  std::optional<FeedForward> shared_;
};

}  // namespace amoeba::nn
