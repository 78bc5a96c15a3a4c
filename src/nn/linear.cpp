#include "nn/linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

namespace amoeba::nn {

namespace {

class Linear : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& master, const at::Tensor& weight,
                            const at::Tensor& grad) {
    (void)master;  // present so that the output is part of the graph even when x is not
    context->save_for_backward({x, weight});
    context->saved_data["grad"] = grad;
    context->saved_data["x_needs_grad"] = x.requires_grad();
    return at::mm(x, weight.t());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &dy = grad_outputs[0];
    add_weight_gradient(context->saved_data["grad"].toTensor(), dy, x);
    at::Tensor dx;
    if (context->saved_data["x_needs_grad"].toBool()) dx = at::mm(dy, weight);
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

void add_weight_gradient(at::Tensor grad, const at::Tensor& dy, const at::Tensor& x, double scale) {
  if (dy.scalar_type() == grad.scalar_type()) {
    grad.addmm_(dy.t(), x, /*beta=*/1, scale);
  } else if (grad.is_cuda()) {
    at::addmm_out(grad, grad, dy.t(), x, grad.scalar_type(), /*beta=*/1, scale);
  } else {
    grad.add_(at::mm(dy.t(), x), scale);
  }
}

at::Tensor linear(const at::Tensor& x, const Parameter& weight) {
  if (!weight.wants_gradient()) return at::mm(x, weight.compute.t());
  return Linear::apply(x, weight.master, weight.compute, weight.grad);
}

}  // namespace amoeba::nn
