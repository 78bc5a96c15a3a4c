// The plain computation that every fast piece is compared with: ordinary ATen calls under autograd,
// once in the dtype under test and once in fp64.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <string>
#include <vector>

#include "nn/parameters.h"
#include "support/torch/compare.h"

namespace amoeba::test {

using Tensors = std::vector<at::Tensor>;

// f(inputs) -> output. Runs it in `dtype` with gradients; returns output, then the gradient of each
// floating-point input.
inline Tensors run_with_gradients(const std::function<at::Tensor(const Tensors&)>& f,
                                  const Tensors& inputs, const at::Tensor& dy,
                                  at::ScalarType dtype) {
  Tensors leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.is_floating_point()
                         ? input.detach().to(dtype).clone().set_requires_grad(true)
                         : input);
  }
  const at::Tensor y = f(leaves);
  torch::autograd::backward({y}, {dy.to(y.scalar_type())});
  Tensors out = {y.detach()};
  for (const at::Tensor& leaf : leaves) {
    if (leaf.requires_grad()) out.push_back(leaf.grad());
  }
  return out;
}

// Compares actual tensors with the plain computation of the same inputs by the per-row rule.
inline void expect_agrees(const Tensors& actual, const std::function<at::Tensor(const Tensors&)>& f,
                          const Tensors& inputs, const at::Tensor& dy, at::ScalarType dtype) {
  const Tensors same = run_with_gradients(f, inputs, dy, dtype);
  const Tensors exact = run_with_gradients(f, inputs, dy, at::kDouble);
  ASSERT_EQ(actual.size(), same.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const Comparison result = compare_rows(actual[i], same[i], exact[i]);
    EXPECT_TRUE(result) << (i == 0 ? "output" : "gradient " + std::to_string(i)) << ": "
                        << result.message;
  }
}

// A store with one parameter of the given values, ready for training.
struct OneParameter {
  explicit OneParameter(const at::Tensor& values, at::ScalarType dtype = at::kFloat,
                        at::Device device = at::kCPU) {
    handle = store.declare("weight", values.sizes().vec(), nn::ones_init(), true);
    store.allocate(device, dtype, 1);
    store.allocate_training_state();
    store.groups()[0].master.copy_(values.reshape(-1));
    store.refresh_compute();
  }
  nn::ParameterStore store;
  const nn::Parameter* handle;
};

inline at::Tensor random(at::IntArrayRef sizes) {
  return at::randn(sizes, at::TensorOptions(at::kDouble));
}

}  // namespace amoeba::test
