#include "support/torch/cases.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <ostream>

#include "amoeba/error.h"

namespace amoeba::test {
namespace {

struct Leaves {
  at::Tensor x;
  nn::ExpertWeights weights;
};

Leaves make_leaves(const ExpertInputs& inputs) {
  const auto leaf = [](const at::Tensor& tensor) {
    return tensor.detach().clone().requires_grad_();
  };
  return {leaf(inputs.x),
          {leaf(inputs.weights.w1), leaf(inputs.weights.w2), leaf(inputs.weights.w3)}};
}

ExpertResults backward(const at::Tensor& y, const Leaves& leaves, const at::Tensor& dy) {
  y.backward(dy);
  return {y.detach(), leaves.x.grad(), leaves.weights.w1.grad(), leaves.weights.w2.grad(),
          leaves.weights.w3.grad()};
}

at::Tensor make_counts(const ExpertCase& expert_case, at::Device device) {
  return at::tensor(at::ArrayRef<int64_t>(expert_case.counts), at::kLong).to(device);
}

}  // namespace

int64_t ExpertCase::num_counted_rows() const {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

std::ostream& operator<<(std::ostream& out, const ExpertCase& expert_case) {
  return out << expert_case.name;
}

ExpertInputs ExpertInputs::to(at::ScalarType dtype) const {
  return {x.to(dtype),
          counts,
          {weights.w1.to(dtype), weights.w2.to(dtype), weights.w3.to(dtype)},
          dy.to(dtype)};
}

ExpertInputs make_inputs(const ExpertCase& expert_case, at::ScalarType dtype, at::Device device,
                         uint64_t seed) {
  const auto& [name, num_experts, model_dim, hidden_dim, counts, tail_rows, weight_scale] =
      expert_case;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef shape, double scale) {
    return at::randn(shape, generator, at::kDouble).mul_(scale).to(dtype).to(device);
  };
  const int64_t num_rows = expert_case.num_counted_rows() + tail_rows;
  ExpertInputs inputs;
  inputs.x = normal({num_rows, model_dim}, 1);
  inputs.counts = make_counts(expert_case, device);
  inputs.weights.w1 = normal({num_experts, hidden_dim, model_dim}, weight_scale);
  inputs.weights.w2 = normal({num_experts, model_dim, hidden_dim}, weight_scale);
  inputs.weights.w3 = normal({num_experts, hidden_dim, model_dim}, weight_scale);
  inputs.dy = normal({num_rows, model_dim}, 1);
  return inputs;
}

ExpertInputs make_integer_inputs(const ExpertCase& expert_case, at::ScalarType dtype,
                                 at::Device device, uint64_t seed) {
  ExpertInputs inputs = make_inputs(expert_case, dtype, device, seed);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto digits = [&](at::Tensor& tensor, int64_t low, int64_t high) {  // low..high
    tensor.copy_(at::randint(low, high + 1, tensor.sizes(), generator, at::kDouble));
  };
  digits(inputs.dy, -1, 1);
  // Column 0 of x alone feeds the gate, through weights 0 or 32. Few ones elsewhere keep every sum
  // within the 8 significant bits of bf16.
  digits(inputs.x, 0, 1);
  digits(inputs.weights.w1, 0, 1);
  inputs.weights.w1.narrow(2, 1, expert_case.model_dim - 1).zero_();
  inputs.weights.w1.mul_(32);
  for (at::Tensor* weight : {&inputs.weights.w2, &inputs.weights.w3}) {
    digits(*weight, -8, 1);
    weight->clamp_min_(-1).add_(1).clamp_max_(1);  // 1 with probability 2/10
  }
  return inputs;
}

ExpertResults reference_experts(const ExpertInputs& inputs, int64_t capacity) {
  const Leaves leaves = make_leaves(inputs);
  const auto w1 = leaves.weights.w1.unbind(), w2 = leaves.weights.w2.unbind(),
             w3 = leaves.weights.w3.unbind();
  const at::Tensor counts = inputs.counts.cpu();
  // Depends on every input, so that an expert without rows has a zero gradient.
  at::Tensor y = leaves.x.mul(0);
  for (const at::Tensor* weight : {&leaves.weights.w1, &leaves.weights.w2, &leaves.weights.w3}) {
    y = y.add(weight->sum().mul(0));
  }
  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (int64_t e = 0; e < counts.size(0); ++e) {
    const int64_t count = counts.const_data_ptr<int64_t>()[e];
    const int64_t kept = capacity < 0 ? count : std::min(count, capacity);
    const auto slot = static_cast<size_t>(e);
    const at::Tensor rows = leaves.x.narrow(0, begin, kept);
    const at::Tensor gate = rows.matmul(w1[slot].t()), up = rows.matmul(w3[slot].t());
    parts.push_back(at::silu(gate).mul(up).matmul(w2[slot].t()));
    parts.push_back(at::zeros({count - kept, inputs.x.size(1)}, inputs.x.options()));
    begin += count;
  }
  parts.push_back(at::zeros({inputs.x.size(0) - begin, inputs.x.size(1)}, inputs.x.options()));
  return backward(y.add(at::cat(parts)), leaves, inputs.dy);
}

ExpertResults run_experts(const nn::ExpertBackend& backend, const ExpertInputs& inputs,
                          nn::ExpertStats& stats, const nn::ExpertOptions& options) {
  const Leaves leaves = make_leaves(inputs);
  return backward(
      nn::run_expert_rows(backend, leaves.x, inputs.counts, leaves.weights, options, stats), leaves,
      inputs.dy);
}

const nn::ExpertBackend& backend_named(std::string_view name) {
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    if (backend.name == name) return backend;
  }
  fail(ErrorKind::kInternal, cat("no backend named ", name));
}

std::vector<at::Device> available_devices() {
  std::vector<at::Device> devices = {at::kCPU};
  if (at::globalContext().hasCUDA()) devices.emplace_back(at::kCUDA, 0);
  return devices;
}

NanFilledMemory::NanFilledMemory() {
  at::globalContext().setDeterministicFillUninitializedMemory(true);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
}

NanFilledMemory::~NanFilledMemory() {
  at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
}

}  // namespace amoeba::test
