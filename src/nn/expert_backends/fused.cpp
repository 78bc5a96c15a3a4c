// fused: the registered operators. With tokens, gather, products, SwiGLU and combine are one call
// each way, and weight gradients go straight into the flat buffers.
//
// Shapes: T tokens, K choices, R rows, D model, H hidden, E experts.
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "amoeba/error.h"
#include "nn/expert_backends/backends.h"
#include "nn/expert_backends/expert_function.h"
#include "nn/expert_layout.h"
#include "nn/operators.h"

namespace amoeba::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class FusedRows : public ExpertCall {
 public:
  explicit FusedRows(const at::Tensor& counts) : offsets_(expert_bounds(counts).to(at::kInt)) {}

  int64_t index_bytes() const override { return static_cast<int64_t>(offsets_.nbytes()); }

  ExpertForward forward(const at::Tensor& x, const ExpertWeights& weights) const override {
    const OperatorForward result = experts_forward(inputs(x, weights), /*keeps_saved=*/true, {});
    return {result.y, {result.saved}};
  }

  ExpertGradients backward(const at::Tensor& dy, const at::Tensor& x, const ExpertWeights& weights,
                           const std::vector<at::Tensor>& saved,
                           ExpertWanted wanted) const override {
    const OperatorGradients result = experts_backward(
        dy, saved[0], inputs(x, weights), {wanted.x, false, wanted.w1 || wanted.w3, wanted.w2});
    const auto& [w1, w2, w3] = result.weights;
    return {result.x, wanted.w1 ? w1 : at::Tensor(), w2, wanted.w3 ? w3 : at::Tensor()};
  }

 private:
  // Dense weights: kernels ask for rows in order, only the plain reference takes any strides.
  OperatorInputs inputs(const at::Tensor& x, const ExpertWeights& weights) const {
    const auto& [w1, w2, w3] = weights;
    return {x, {}, {offsets_, {}, {}}, {w1.contiguous(), w2.contiguous(), w3.contiguous()}, false};
  }

  at::Tensor offsets_;  // [E+1] int32
};

// The graph around a forward that has run: `w1`, `w2`, `w3` are the masters.
struct FusedTokens : torch::autograd::Function<FusedTokens> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scores,
                            const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const OperatorInputs& inputs, const OperatorForward& result,
                            const ExpertWeights& grad) {
    const auto& [offsets, row_slot, slot_row] = inputs.routes;
    const auto& [w1, w2, w3] = inputs.weights;
    context->save_for_backward({x, scores, offsets, row_slot, slot_row, w1, w2, w3, result.saved});
    context->saved_data["score_before"] = inputs.score_before;
    // Not saved variables: they change in place meanwhile.
    if (grad.w1.defined()) {
      context->saved_data["grad"] = std::vector<at::Tensor>{grad.w1, grad.w2, grad.w3};
    }
    return result.y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    check_first_order();
    const variable_list kept = context->get_saved_variables();
    const OperatorInputs inputs = {kept[0].detach(),
                                   kept[1].detach(),
                                   {kept[2], kept[3], kept[4]},
                                   {kept[5], kept[6], kept[7]},
                                   context->saved_data["score_before"].toBool()};
    const at::Tensor& saved = kept[8];
    const auto grad = context->saved_data.find("grad");
    OperatorGradients result;
    if (grad != context->saved_data.end()) {
      const std::vector<at::Tensor> sums = grad->second.toTensorVector();
      result = experts_backward_accumulate(grads[0], saved, inputs, {sums[0], sums[1], sums[2]});
    } else {
      result = experts_backward(
          grads[0], saved, inputs,
          {context->needs_input_grad(0), context->needs_input_grad(1), false, false});
    }
    variable_list gradients(8);
    if (context->needs_input_grad(0)) gradients[0] = result.x;
    if (context->needs_input_grad(1)) gradients[1] = result.scores;
    return gradients;
  }
};

// The operators' view of a problem: no rows and no experts, so that nothing is allocated.
std::vector<OperatorVariant> variants_of(const ExpertProblem& problem) {
  const auto options = at::TensorOptions(problem.dtype)
                           .device(problem.device == DeviceKind::kCuda ? at::kCUDA : at::kCPU);
  const at::Tensor gate = at::empty({0, problem.hidden_dim, problem.model_dim}, options);
  const at::Tensor down = at::empty({0, problem.model_dim, problem.hidden_dim}, options);
  const at::Tensor offsets = at::zeros({1}, options.dtype(at::kInt));
  return experts_variants({at::empty({0, problem.model_dim}, options),
                           {},
                           {offsets, {}, {}},
                           {gate, down, gate},
                           false});
}

}  // namespace

std::string supports_fused(const ExpertProblem& problem) {
  if (problem.device == DeviceKind::kXpu) return "the operators run on the CPU and on CUDA";
  if (problem.device == DeviceKind::kCuda) {
    std::string reason = load_cuda_operators();
    if (!reason.empty()) return reason;
    if (!at::hasCUDA()) return "torch sees no CUDA device";
  }
  std::string reasons;
  for (const OperatorVariant& variant : variants_of(problem)) {
    if (variant.refusal.empty()) return "";
    reasons += cat(reasons.empty() ? "" : "; ", variant.name, ": ", variant.refusal);
  }
  return reasons;
}

std::string describe_fused(const ExpertProblem& problem) {
  std::string refusals;
  for (const OperatorVariant& variant : variants_of(problem)) {
    if (variant.refusal.empty()) {
      return refusals.empty() ? variant.name : cat(variant.name, " (", refusals, ")");
    }
    refusals += cat(refusals.empty() ? "" : "; ", variant.name, ": ", variant.refusal);
  }
  return refusals;
}

std::vector<std::pair<std::string, std::string>> fused_kernels(const ExpertProblem& problem) {
  std::vector<std::pair<std::string, std::string>> kernels;
  for (const OperatorVariant& variant : variants_of(problem)) {
    kernels.emplace_back(variant.name, variant.summary);
  }
  return kernels;
}

std::string auto_refuses_fused(const ExpertProblem& problem) {
  std::string reason = "this processor has no kernels";
  for (const OperatorVariant& variant : variants_of(problem)) {
    if (variant.name == "reference") break;
    if (variant.refusal.empty()) return "";
    reason = cat(variant.name, ": ", variant.refusal);
  }
  return cat("only the plain reference takes it (", reason, ")");
}

at::Tensor run_fused_rows(const at::Tensor& x, const at::Tensor& counts,
                          const ExpertWeights& weights, const ExpertOptions&, ExpertStats& stats) {
  stats.padded_rows += x.size(0);
  return run_expert_call(c10::make_intrusive<FusedRows>(counts), x, weights, stats);
}

at::Tensor run_fused_tokens(const ExpertTokens& tokens, const ExpertParameters& parameters,
                            ExpertStats& stats, const at::Tensor& error_word) {
  const auto& [x, expert_ids, scores, score_before] = tokens;
  const auto& [w1, w2, w3] = parameters.master;
  stats.padded_rows += expert_ids.numel();
  const at::Tensor rows = x.contiguous();
  const OperatorInputs inputs = {
      rows.detach(), scores.detach(),
      route_tokens(expert_ids, parameters.compute.w1.size(0), error_word), parameters.compute,
      score_before};
  const bool keeps = at::GradMode::is_enabled() &&
                     (x.requires_grad() || scores.requires_grad() || w1.requires_grad());
  const OperatorForward result = experts_forward(inputs, keeps, error_word);
  if (!keeps) return result.y;
  const auto& [offsets, row_slot, slot_row] = inputs.routes;
  for (const at::Tensor& tensor : {offsets, row_slot, slot_row, result.saved}) {
    stats.saved_bytes += static_cast<int64_t>(tensor.nbytes());
  }
  return FusedTokens::apply(rows, scores, w1, w2, w3, inputs, result, parameters.grad);
}

}  // namespace amoeba::nn
