#include "train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "nn/operators.h"

namespace amoeba::train {

AdamW::AdamW(nn::ParameterStore& store, const OptimizerSection& options)
    : store_(store),
      options_(options),
      num_steps_(at::zeros({}, store.groups()[0].master.options())) {}

// The shadow too.
void AdamW::update(nn::ParameterGroup& group, const at::Tensor& lr, const at::Tensor& grad_scale,
                   const at::Tensor& found_inf) {
  const double decay = group.decay ? options_.weight_decay : 0.0;
  if (nn::has_card_layers(group.master)) {
    nn::card_adamw({group.master, group.grad, group.exp_avg, group.exp_avg_sq, group.shadow, lr,
                    num_steps_, grad_scale, found_inf, options_.beta1, options_.beta2, decay,
                    options_.eps});
    return;
  }
  const auto call = [&](const auto& rate) {
    at::_fused_adamw_({group.master}, {group.grad}, {group.exp_avg}, {group.exp_avg_sq}, {},
                      {num_steps_}, rate, options_.beta1, options_.beta2, decay, options_.eps,
                      /*amsgrad=*/false, /*maximize=*/false,
                      grad_scale.defined() ? std::optional<at::Tensor>(grad_scale) : std::nullopt,
                      found_inf);
  };
  if (lr.is_cpu()) {
    call(lr.item<double>());
  } else {
    call(lr.to(at::kFloat));
  }
  if (group.shadow.defined()) group.shadow.copy_(group.master);
}

OptimizerStep AdamW::step(const at::Tensor& lr, double max_norm, const at::Tensor& norm_limit,
                          const at::Tensor& reject) {
  std::vector<at::Tensor> norms;
  for (const nn::ParameterGroup& group : store_.groups()) {
    norms.push_back(at::linalg_vector_norm(group.grad));
  }
  OptimizerStep out;
  out.grad_norm = at::linalg_vector_norm(at::stack(norms));
  out.rejected = reject.logical_or(at::isfinite(out.grad_norm).logical_not())
                     .logical_or(out.grad_norm.to(at::kDouble).gt(norm_limit));
  // The update leaves everything untouched when found_inf is 1, and divides by grad_scale.
  const at::Tensor found_inf = out.rejected.to(at::kFloat);
  const at::Tensor grad_scale =
      max_norm > 0 ? ((out.grad_norm + 1e-6) / max_norm).clamp_min(1.0) : at::Tensor();
  num_steps_.add_(1.0);
  for (nn::ParameterGroup& group : store_.groups()) {
    if (group.master.numel() == 0) continue;
    update(group, lr, grad_scale, found_inf);
  }
  num_steps_.sub_(found_inf);
  return out;
}

}  // namespace amoeba::train
