// grouped_mm: at::_grouped_mm, one call a product, no host read of ours.
//
// It leaves the rows past the last group as uninitialised memory and refuses strides that are not
// multiples of 16 bytes: the tail is filled with zeros here, and everything passed is contiguous.
// Shapes: R rows, D model, H hidden, E experts.
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ge.h>

#include <limits>

#include "amoeba/error.h"
#include "nn/expert_backends/backends.h"
#include "nn/expert_backends/expert_function.h"
#include "nn/swiglu.h"

namespace amoeba::nn {
namespace {

constexpr int64_t kAlignment = 16;  // bytes: strides everywhere, addresses on CUDA

at::Tensor aligned(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  const bool is_aligned = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kAlignment == 0;
  return is_aligned || dense.is_cpu() ? dense : dense.clone();
}

class GroupedMm : public ExpertCall {
 public:
  GroupedMm(const at::Tensor& counts, int64_t num_rows) {
    const at::Tensor ends = counts.cumsum(0);  // [E]
    ends_ = ends.to(at::kInt);
    const at::Tensor total = ends.narrow(0, ends.size(0) - 1, 1);
    // On the CPU a look at the sum costs nothing; elsewhere it would stop the host.
    if (!counts.is_cpu() || total.item<int64_t>() < num_rows) {
      tail_ = at::arange(num_rows, counts.options()).ge(total).unsqueeze_(1);
    }
  }

  int64_t index_bytes() const override {
    return static_cast<int64_t>(ends_.nbytes() + (tail_.defined() ? tail_.nbytes() : 0));
  }

  ExpertForward forward(const at::Tensor& x, const ExpertWeights& weights) const override {
    const at::Tensor rows = aligned(x);
    const at::Tensor gate = multiply(rows, aligned(weights.w1).transpose(1, 2));  // [R, H]
    const at::Tensor up = multiply(rows, aligned(weights.w3).transpose(1, 2));    // [R, H]
    at::Tensor act = at::empty_like(gate);                                        // [R, H]
    swiglu_out(act, gate, up);
    const at::Tensor y = multiply(act, aligned(weights.w2).transpose(1, 2));  // [R, D]
    zero_tail(y);
    return {y, {gate, up}};
  }

  ExpertGradients backward(const at::Tensor& dy_in, const at::Tensor& x_in,
                           const ExpertWeights& weights, const std::vector<at::Tensor>& saved,
                           ExpertWanted wanted) const override {
    const at::Tensor dy = aligned(dy_in), x = aligned(x_in);
    const at::Tensor &gate = saved[0], &up = saved[1];
    at::Tensor d_act = multiply(dy, aligned(weights.w2));  // [R, H]
    SwigluGradients hidden = {at::empty_like(gate), at::empty_like(gate), at::empty_like(gate)};
    swiglu_backward_out(hidden, d_act, gate, up);
    ExpertGradients result;
    if (wanted.w1) result.w1 = multiply(hidden.d_gate.t(), x);  // [E, H, D]
    if (wanted.w2) result.w2 = multiply(dy.t(), hidden.act);    // [E, D, H]
    if (wanted.w3) result.w3 = multiply(hidden.d_up.t(), x);    // [E, H, D]
    if (wanted.x) {
      result.x = multiply(hidden.d_gate, aligned(weights.w1));
      result.x.add_(multiply(hidden.d_up, aligned(weights.w3)));
      zero_tail(result.x);
    }
    return result;
  }

 private:
  at::Tensor multiply(const at::Tensor& left, const at::Tensor& right) const {
    return at::_grouped_mm(left, right, ends_);
  }

  void zero_tail(const at::Tensor& rows) const {
    if (tail_.defined()) rows.masked_fill_(tail_, 0);
  }

  at::Tensor ends_;  // [E] int32, cumulative
  at::Tensor tail_;  // [R, 1] bool, or undefined when there is none
};

}  // namespace

std::string supports_grouped_mm(const ExpertProblem& problem) {
  if (problem.device == DeviceKind::kXpu) return "torch has no grouped_mm kernel for XPU";
  if (problem.device == DeviceKind::kCuda && problem.compute_capability < 80) {
    return cat("needs compute capability 80, this GPU has ", problem.compute_capability);
  }
  if (problem.dtype != at::kFloat && problem.dtype != at::kHalf && problem.dtype != at::kBFloat16) {
    return cat("takes float32, float16 and bfloat16, not ", problem.dtype);
  }
  const auto size = static_cast<int64_t>(c10::elementSize(problem.dtype));
  if (problem.model_dim * size % kAlignment != 0 || problem.hidden_dim * size % kAlignment != 0) {
    return cat("needs rows of a multiple of 16 bytes, got model_dim ", problem.model_dim,
               " and hidden_dim ", problem.hidden_dim, " at ", size, " bytes an element");
  }
  return "";
}

at::Tensor run_grouped_mm(const at::Tensor& x, const at::Tensor& counts,
                          const ExpertWeights& weights, const ExpertOptions&, ExpertStats& stats) {
  AMOEBA_CHECK(x.size(0) <= std::numeric_limits<int32_t>::max(), "grouped_mm: got ", x.size(0),
               " rows, want at most 2147483647 (offsets are int32)");
  stats.padded_rows += x.size(0);
  return run_expert_call(c10::make_intrusive<GroupedMm>(counts, x.size(0)), x, weights, stats);
}

}  // namespace amoeba::nn
