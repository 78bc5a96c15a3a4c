#include "nn/embedding.h"

#include <ATen/ops/embedding_dense_backward.h>
#include <torch/csrc/autograd/custom_function.h>

namespace amoeba::nn {

namespace {

class Embedding : public torch::autograd::Function<Embedding> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& tokens,
                            const at::Tensor& master, const at::Tensor& weight,
                            const at::Tensor& grad) {
    (void)master;
    context->save_for_backward({tokens});
    context->saved_data["grad"] = grad;
    return weight.index_select(0, tokens);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const at::Tensor tokens = context->get_saved_variables()[0];
    const at::Tensor dy = grad_outputs[0].to(at::kFloat).contiguous();
    at::Tensor grad = context->saved_data["grad"].toTensor();
    if (dy.is_cpu()) {
      // In token order on one thread: a handful of rows of D, always the same sum.
      const int64_t dim = dy.size(1);
      const int64_t* id = tokens.const_data_ptr<int64_t>();
      const float* in = dy.const_data_ptr<float>();
      float* out = grad.mutable_data_ptr<float>();
      for (int64_t t = 0; t < tokens.numel(); ++t) {
        float* row = out + id[t] * dim;
        for (int64_t d = 0; d < dim; ++d) row[d] += in[t * dim + d];
      }
    } else {
      grad.add_(at::embedding_dense_backward(dy, tokens, grad.size(0), /*padding_idx=*/-1,
                                             /*scale_grad_by_freq=*/false));
    }
    return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor embedding(const at::Tensor& tokens, const Parameter& weight) {
  if (!weight.wants_gradient()) {
    return weight.compute.index_select(0, tokens);
  }
  return Embedding::apply(tokens, weight.master, weight.compute, weight.grad);
}

}  // namespace amoeba::nn
