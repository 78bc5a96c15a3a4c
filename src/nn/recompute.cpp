#include "nn/recompute.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <iterator>
#include <optional>
#include <utility>

namespace amoeba::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct HeldPiece : torch::CustomClassHolder {
  explicit HeldPiece(BlockPiece function) : piece(std::move(function)) {}
  BlockPiece piece;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // Returns hidden and, of a Mixture-of-Experts layer, the two losses, the ids and the counts.
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden,
                               const std::optional<at::Tensor>& expert_ids,
                               const at::Tensor& anchor, const BlockPiece& piece) {
    (void)anchor;
    const BlockOutput out = piece(hidden, expert_ids.value_or(at::Tensor()), /*again=*/false);
    context->set_materialize_grads(false);
    context->saved_data["piece"] = c10::IValue::make_capsule(c10::make_intrusive<HeldPiece>(piece));
    context->save_for_backward({hidden, out.expert_ids});
    if (!out.expert_ids.defined()) return {out.hidden};
    context->mark_non_differentiable({out.expert_ids, out.counts});
    return {out.hidden, out.aux_loss, out.z_loss, out.expert_ids, out.counts};
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    const variable_list saved = context->get_saved_variables();
    const auto held =
        c10::static_intrusive_pointer_cast<HeldPiece>(context->saved_data["piece"].toCapsule());
    const at::AutoGradMode with_gradients(true);
    const at::Tensor hidden = saved[0].detach().set_requires_grad(true);
    const BlockOutput out = held->piece(hidden, saved[1], /*again=*/true);
    variable_list roots, gradients;
    const at::Tensor* outputs[] = {&out.hidden, &out.aux_loss, &out.z_loss};
    for (size_t i = 0; i < std::size(outputs) && i < grad_outputs.size(); ++i) {
      if (!grad_outputs[i].defined()) continue;  // a loss that nobody uses
      roots.push_back(*outputs[i]);
      gradients.push_back(grad_outputs[i]);
    }
    torch::autograd::backward(roots, gradients);
    return {hidden.grad(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

BlockOutput recompute_in_backward(const BlockPiece& piece, const at::Tensor& hidden,
                                  const at::Tensor& expert_ids, const at::Tensor& anchor) {
  const auto ids = expert_ids.defined() ? std::optional(expert_ids) : std::nullopt;
  const variable_list out = Recompute::apply(hidden, ids, anchor, piece);
  if (out.size() == 1) return {out[0], {}, {}, {}, {}};
  return {out[0], out[3], out[4], out[1], out[2]};
}

}  // namespace amoeba::nn
