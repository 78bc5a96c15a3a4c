#include "amoeba/experts.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "amoeba/error.h"
#include "base/cuda_driver.h"
#include "base/text.h"
#include "nn/expert_backends/backends.h"
#include "nn/expert_layout.h"

namespace amoeba::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// No row reaches an expert: zeros that depend on every input, with zero gradients. Nothing is
// multiplied by zero, so NaN in the inputs stays there.
struct NoRows : torch::autograd::Function<NoRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& w1,
                            const at::Tensor& w2, const at::Tensor& w3) {
    context->save_for_backward({x, w1, w2, w3});
    return at::zeros(x.sizes(), x.options());
  }
  static variable_list backward(AutogradContext* context, const variable_list&) {
    variable_list zeros;
    for (const at::Tensor& input : context->get_saved_variables()) {
      zeros.push_back(at::zeros(input.sizes(), input.options()));
    }
    return zeros;
  }
};

int cuda_compute_capability(at::DeviceIndex device) {
  const auto info = query_cuda_device(device);
  if (!info) fail(ErrorKind::kInternal, cat("experts: no driver facts about cuda:", int{device}));
  return info->compute_capability;
}

void check_weight(const char* name, const at::Tensor& weight, const at::Tensor& x,
                  at::IntArrayRef want) {
  AMOEBA_CHECK(weight.defined() && weight.sizes() == want, "experts: ", name, " is ",
               weight.defined() ? cat(weight.sizes()) : "undefined", ", want ", want);
  AMOEBA_CHECK(weight.scalar_type() == x.scalar_type() && weight.device() == x.device(),
               "experts: ", name, " is ", weight.scalar_type(), " on ", weight.device(), ", want ",
               x.scalar_type(), " on ", x.device(), " like x");
}

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  return cat(tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device());
}

void check_x_and_weights(const at::Tensor& x, const ExpertWeights& weights) {
  AMOEBA_CHECK(x.defined() && x.dim() == 2 && at::isFloatingType(x.scalar_type()), "experts: x is ",
               x.defined() ? cat(x.scalar_type(), " ", x.sizes()) : "undefined",
               ", want floating point [R, D]");
  AMOEBA_CHECK(weights.w1.defined() && weights.w1.dim() == 3, "experts: w1 is ",
               weights.w1.defined() ? cat(weights.w1.sizes()) : "undefined", ", want [E, H, D]");
  const int64_t num_experts = weights.w1.size(0), hidden_dim = weights.w1.size(1);
  const int64_t model_dim = x.size(1);
  AMOEBA_CHECK(model_dim > 0 && hidden_dim > 0, "experts: D is ", model_dim, " and H is ",
               hidden_dim, ", want both > 0");
  check_weight("w1", weights.w1, x, {num_experts, hidden_dim, model_dim});
  check_weight("w2", weights.w2, x, {num_experts, model_dim, hidden_dim});
  check_weight("w3", weights.w3, x, {num_experts, hidden_dim, model_dim});
}

void check_counts(const at::Tensor& counts, int64_t num_experts, const at::Tensor& x) {
  AMOEBA_CHECK(counts.defined() && counts.scalar_type() == at::kLong && counts.dim() == 1 &&
                   counts.size(0) == num_experts && counts.device() == x.device(),
               "experts: counts is ", describe(counts), ", want Long [", num_experts, "] on ",
               x.device());
}

void check_count_values(const at::Tensor& counts, int64_t num_rows) {  // host counts
  const int64_t* value = counts.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t e = 0; e < counts.size(0); ++e) {
    AMOEBA_CHECK(value[e] >= 0, "experts: counts[", e, "] is ", value[e], ", want >= 0");
    AMOEBA_CHECK(value[e] <= num_rows - sum, "experts: counts up to expert ", e, " sum to ", sum,
                 " + ", value[e], ", want at most the ", num_rows, " rows of x");
    sum += value[e];
  }
}

std::string backend_names() {
  std::string names = "auto";
  for (const ExpertBackend& backend : expert_backends()) names += cat(", ", backend.name);
  return names;
}

const ExpertBackend& find_backend(std::string_view name) {
  for (const ExpertBackend& backend : expert_backends()) {
    if (backend.name == name) return backend;
  }
  if (name == "bmm" || name == "bmm_nodrop") {
    fail(ErrorKind::kUsage, cat("compute_backend: '", name, "' is an old name, want '",
                                name == "bmm" ? "batched_mm_capacity" : "batched_mm_padded", "'"));
  }
  fail(ErrorKind::kUsage, cat("compute_backend: got '", name, "', want one of ", backend_names()));
}

}  // namespace

ExpertProblem describe_problem(const at::Tensor& x, const at::Tensor& w1,
                               bool has_output_postprocess) {
  AMOEBA_CHECK(x.dim() == 2 && w1.dim() == 3, "experts: x is ", x.sizes(), " and w1 is ",
               w1.sizes(), ", want [R, D] and [E, H, D]");
  ExpertProblem problem;
  if (x.is_cuda()) {
    problem.device = DeviceKind::kCuda;
    problem.compute_capability = cuda_compute_capability(x.device().index());
  } else if (x.is_xpu()) {
    problem.device = DeviceKind::kXpu;
  } else {
    AMOEBA_CHECK(x.is_cpu(), "experts: x is on ", x.device(), ", want cpu, cuda or xpu");
  }
  problem.dtype = x.scalar_type();
  problem.model_dim = w1.size(2);
  problem.hidden_dim = w1.size(1);
  problem.num_experts = w1.size(0);
  problem.has_output_postprocess = has_output_postprocess;
  return problem;
}

const std::vector<ExpertBackend>& expert_backends() {
  static const std::vector<ExpertBackend> table = {
      {"fused", "our operators: gather, products and combine in few passes, no padding",
       supports_fused, run_fused_rows, run_fused_tokens, auto_refuses_fused},
      {"grouped_mm", "torch's grouped product: ragged, no padding, no host read of ours",
       supports_grouped_mm, run_grouped_mm},
      {"batched_mm_padded", "rows padded to the largest expert, batched products; nothing dropped",
       supports_any, run_batched_mm_padded},
      {"batched_mm_capacity",
       "rows padded or cut to a fixed capacity; over-capacity rows give zero", supports_any,
       run_batched_mm_capacity},
      {"for_loop", "one expert at a time; any device, any dtype", supports_any, run_for_loop},
  };
  return table;
}

std::string supports_any(const ExpertProblem&) { return ""; }

std::vector<const ExpertBackend*> expert_auto_order(DeviceKind device) {
  std::vector<const ExpertBackend*> order;
  for (const ExpertBackend& backend : expert_backends()) {
    if (backend.name != "batched_mm_capacity") order.push_back(&backend);
  }
  if (device == DeviceKind::kCpu) std::rotate(order.begin() + 1, order.end() - 1, order.end());
  return order;
}

ExpertChoice choose_expert_backend(std::string_view compute_backend, const ExpertProblem& problem) {
  ExpertChoice choice;
  if (compute_backend != "auto") {
    choice.backend = &find_backend(compute_backend);
    const std::string reason = choice.backend->supports(problem);
    AMOEBA_CHECK(reason.empty(), "compute_backend: '", compute_backend,
                 "' cannot run this problem: ", reason);
    return choice;
  }
  for (const ExpertBackend* backend : expert_auto_order(problem.device)) {
    std::string reason = backend->supports(problem);
    if (reason.empty() && backend->auto_refuses) reason = backend->auto_refuses(problem);
    if (reason.empty()) {
      choice.backend = backend;
      break;
    }
    choice.refusals.push_back({backend->name, std::move(reason)});
  }
  AMOEBA_ASSERT(choice.backend != nullptr);  // for_loop supports every problem
  return choice;
}

at::Tensor run_expert_rows(const ExpertBackend& backend, const at::Tensor& x,
                           const at::Tensor& counts, const ExpertWeights& weights,
                           const ExpertOptions& options, ExpertStats& stats,
                           const at::Tensor& error_word) {
  RECORD_USER_SCOPE("experts");
  check_x_and_weights(x, weights);
  check_counts(counts, weights.w1.size(0), x);
  const int64_t num_rows = x.size(0);
  stats.calls += 1;
  stats.rows += num_rows;
  if (counts.is_cpu()) check_count_values(counts, num_rows);
  if (num_rows == 0 || counts.size(0) == 0) {
    return NoRows::apply(x, weights.w1, weights.w2, weights.w3);
  }
  return backend.run_rows(x, counts.is_cpu() ? counts : clamp_counts(counts, num_rows, error_word),
                          weights, options, stats);
}

std::string refuse_tokens(const ExpertBackend& backend, bool has_output_postprocess) {
  if (backend.run_tokens == nullptr) return "takes rows only";
  if (has_output_postprocess) {
    return "output_postprocess works on the rows between the experts and their sum";
  }
  return "";
}

at::Tensor run_expert_tokens(const ExpertBackend& backend, const ExpertTokens& tokens,
                             const ExpertParameters& parameters, ExpertStats& stats,
                             const at::Tensor& error_word) {
  RECORD_USER_SCOPE("experts");
  AMOEBA_ASSERT(backend.run_tokens != nullptr);
  const auto& [x, expert_ids, scores, score_before] = tokens;
  check_x_and_weights(x, parameters.compute);
  AMOEBA_CHECK(expert_ids.defined() && expert_ids.scalar_type() == at::kLong &&
                   expert_ids.dim() == 2 && expert_ids.size(0) == x.size(0) &&
                   expert_ids.device() == x.device(),
               "experts: expert_ids is ", describe(expert_ids), ", want Long [", x.size(0),
               ", K] on ", x.device());
  AMOEBA_CHECK(scores.defined() && scores.scalar_type() == at::kFloat &&
                   scores.sizes() == expert_ids.sizes() && scores.device() == x.device(),
               "experts: scores is ", describe(scores), ", want Float ", expert_ids.sizes(), " on ",
               x.device());
  stats.calls += 1;
  stats.rows += expert_ids.numel();
  return backend.run_tokens(tokens, parameters, stats, error_word);
}

}  // namespace amoeba::nn
