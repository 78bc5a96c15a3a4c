#include "nn/expert_backends/expert_function.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include "amoeba/error.h"

namespace amoeba::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kNumInputs = 4;  // x, w1, w2, w3

struct ExpertFunction : torch::autograd::Function<ExpertFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& w1,
                            const at::Tensor& w2, const at::Tensor& w3,
                            const c10::intrusive_ptr<ExpertCall>& call, int64_t* saved_bytes) {
    ExpertForward result =
        call->forward(x.detach().contiguous(), {w1.detach(), w2.detach(), w3.detach()});
    *saved_bytes = call->index_bytes();
    for (const at::Tensor& tensor : result.saved) *saved_bytes += tensor.nbytes();
    variable_list kept = {x, w1, w2, w3};
    kept.insert(kept.end(), result.saved.begin(), result.saved.end());
    context->save_for_backward(std::move(kept));
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    return result.y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    check_first_order();
    const auto call =
        c10::static_intrusive_pointer_cast<ExpertCall>(context->saved_data["call"].toCapsule());
    variable_list kept = context->get_saved_variables();
    const std::vector<at::Tensor> saved(kept.begin() + kNumInputs, kept.end());
    const ExpertWanted wanted = {context->needs_input_grad(0), context->needs_input_grad(1),
                                 context->needs_input_grad(2), context->needs_input_grad(3)};
    const ExpertGradients result =
        call->backward(grads[0].contiguous(), kept[0].detach().contiguous(),
                       {kept[1].detach(), kept[2].detach(), kept[3].detach()}, saved, wanted);
    return {result.x, result.w1, result.w2, result.w3, {}, {}};
  }
};

}  // namespace

at::Tensor run_expert_call(const c10::intrusive_ptr<ExpertCall>& call, const at::Tensor& x,
                           const ExpertWeights& weights, ExpertStats& stats) {
  const auto& [w1, w2, w3] = weights;
  if (!at::GradMode::is_enabled() ||
      !(x.requires_grad() || w1.requires_grad() || w2.requires_grad() || w3.requires_grad())) {
    return call->forward(x.detach().contiguous(), {w1.detach(), w2.detach(), w3.detach()}).y;
  }
  int64_t saved_bytes = 0;
  at::Tensor y = ExpertFunction::apply(x, w1, w2, w3, call, &saved_bytes);
  stats.saved_bytes += saved_bytes;
  return y;
}

void check_first_order() {
  AMOEBA_CHECK(!at::GradMode::is_enabled(),
               "experts: gradients of gradients are not supported, got a backward with "
               "create_graph, want one without");
}

void swiglu_backward_out(SwigluGradients& out, at::Tensor& d_act, const at::Tensor& gate,
                         const at::Tensor& up) {
  at::silu_out(out.act, gate);
  at::mul_out(out.d_up, out.act, d_act);
  out.act.mul_(up);
  d_act.mul_(up);
  at::silu_backward_out(out.d_gate, d_act, gate);
}

}  // namespace amoeba::nn
