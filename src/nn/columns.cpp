#include "nn/columns.h"

#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/custom_function.h>

namespace amoeba::nn {

namespace {

class SplitColumns : public torch::autograd::Function<SplitColumns> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*,
                                                const at::Tensor& x,
                                                const std::vector<int64_t>& widths) {
    torch::autograd::variable_list parts = x.split_with_sizes(widths, 1);
    for (at::Tensor& part : parts) part = part.contiguous();
    return parts;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grad_outputs) {
    return {at::cat(grad_outputs, 1), at::Tensor()};
  }
};

}  // namespace

std::vector<at::Tensor> split_columns(const at::Tensor& x, const std::vector<int64_t>& widths) {
  return SplitColumns::apply(x, widths);
}

}  // namespace amoeba::nn
