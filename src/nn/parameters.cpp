#include "nn/parameters.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <string_view>
#include <utility>

#include "amoeba/error.h"
#include "base/rng.h"
#include "nn/parallel.h"

namespace amoeba::nn {

namespace {

// Hands out the compute tensor and routes its gradient into the flat buffer.
class UseParameter : public torch::autograd::Function<UseParameter> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& master,
                            const at::Tensor& compute, const at::Tensor& grad) {
    (void)master;                        // present so that the output is part of the graph
    context->saved_data["grad"] = grad;  // not a saved variable: it changes in place meanwhile
    return compute.detach();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    context->saved_data["grad"].toTensor().add_(grad_outputs[0]);
    return {at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

uint64_t name_stream(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (unsigned char byte : name) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

at::Tensor slice(const at::Tensor& flat, const Parameter& parameter) {
  return flat.narrow(0, parameter.offset, parameter.numel()).view(parameter.shape);
}

void fill(at::Tensor& values, const Init& init, at::Generator generator) {
  switch (init.kind) {
    case Init::Kind::kOnes:
      values.fill_(1.0);
      return;
    case Init::Kind::kNormal:
      values.normal_(0.0, init.std, generator);
      return;
    case Init::Kind::kTruncatedNormal: {
      // Inverse transform of a uniform draw between the two tails, as torch's trunc_normal_ does.
      const double tail = 0.5 * (1.0 + std::erf(-init.cutoff / init.std / std::sqrt(2.0)));
      values.uniform_(2 * tail - 1, 1 - 2 * tail, generator);
      values.erfinv_().mul_(init.std * std::sqrt(2.0)).clamp_(-init.cutoff, init.cutoff);
      return;
    }
  }
}

}  // namespace

Init ones_init() { return {Init::Kind::kOnes, 0.0, 0.0}; }
Init normal_init(double std) { return {Init::Kind::kNormal, std, 0.0}; }
Init truncated_normal_init(double std, double cutoff) {
  return {Init::Kind::kTruncatedNormal, std, cutoff};
}

int64_t Parameter::numel() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

bool Parameter::wants_gradient() const { return at::GradMode::is_enabled() && grad.defined(); }

at::Tensor Parameter::use() const {
  if (!wants_gradient()) return compute;
  return UseParameter::apply(master, compute, grad);
}

const Parameter* ParameterStore::join(const std::vector<Parameter*>& parts) {
  AMOEBA_ASSERT(groups_.empty() && !parts.empty());
  joined_.push_back({std::make_unique<Parameter>(), parts});
  return joined_.back().parameter.get();
}

Parameter* ParameterStore::declare(std::string name, std::vector<int64_t> shape, Init init,
                                   bool decay, bool keep_fp32) {
  AMOEBA_ASSERT(groups_.empty());
  auto parameter = std::make_unique<Parameter>();
  parameter->name = std::move(name);
  parameter->shape = std::move(shape);
  parameter->init = init;
  parameter->decay = decay;
  parameter->keep_fp32 = keep_fp32;
  parameters_.push_back(std::move(parameter));
  return parameters_.back().get();
}

void ParameterStore::allocate(at::Device device, at::ScalarType compute_dtype, uint64_t seed) {
  AMOEBA_ASSERT(groups_.empty());
  groups_.resize(2);
  groups_[0].decay = true;
  groups_[1].decay = false;
  int64_t sizes[2] = {0, 0};
  for (auto& parameter : parameters_) {
    int64_t& size = sizes[parameter->decay ? 0 : 1];
    parameter->offset = size;
    size += parameter->numel();
  }
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(device);
  for (int g = 0; g < 2; ++g) {
    groups_[g].master = at::empty({sizes[g]}, fp32);
    if (compute_dtype != at::kFloat) {
      groups_[g].shadow = at::empty({sizes[g]}, fp32.dtype(compute_dtype));
    }
  }
  // Each has a stream of its own, so the order does not matter.
  const auto num_filled = device.is_meta() ? 0 : static_cast<int64_t>(parameters_.size());
  parallel_for(num_filled, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Parameter& parameter = *parameters_[static_cast<size_t>(i)];
      const at::Tensor master = slice(group_of(parameter).master, parameter);
      at::Tensor values = device.is_cpu() ? master : at::empty(parameter.shape, at::kFloat);
      fill(values, parameter.init,
           at::detail::createCPUGenerator(random_bits(seed, name_stream(parameter.name), 0)));
      if (!device.is_cpu()) master.copy_(values);
    }
  });
  for (Joined& joined : joined_) {
    Parameter& whole = *joined.parameter;
    whole = Parameter{*joined.parts[0]};
    whole.shape[0] = 0;
    for (const Parameter* part : joined.parts) {
      AMOEBA_ASSERT(part->decay == whole.decay && part->keep_fp32 == whole.keep_fp32);
      AMOEBA_ASSERT(part->offset == whole.offset + whole.numel());
      whole.shape[0] += part->shape[0];
    }
  }
  for_each_handle([&](Parameter& parameter) {
    const ParameterGroup& group = group_of(parameter);
    const bool shadowed = group.shadow.defined() && !parameter.keep_fp32;
    parameter.master = slice(group.master, parameter).detach();
    parameter.compute = slice(shadowed ? group.shadow : group.master, parameter).detach();
  });
  refresh_compute();
}

void ParameterStore::allocate_training_state() {
  for (ParameterGroup& group : groups_) {
    group.grad = at::zeros_like(group.master);
    group.exp_avg = at::zeros_like(group.master);
    group.exp_avg_sq = at::zeros_like(group.master);
  }
  for_each_handle([&](Parameter& parameter) {
    parameter.master.set_requires_grad(true);
    parameter.grad = slice(group_of(parameter).grad, parameter);
  });
}

void ParameterStore::zero_grad() {
  for (ParameterGroup& group : groups_) group.grad.zero_();
}

void ParameterStore::refresh_compute() {
  for (ParameterGroup& group : groups_) {
    if (group.shadow.defined()) group.shadow.copy_(group.master);
  }
}

int64_t ParameterStore::numel() const {
  int64_t count = 0;
  for (const auto& parameter : parameters_) count += parameter->numel();
  return count;
}

at::Tensor ParameterStore::exp_avg(const Parameter& parameter) const {
  return slice(group_of(parameter).exp_avg, parameter);
}

at::Tensor ParameterStore::exp_avg_sq(const Parameter& parameter) const {
  return slice(group_of(parameter).exp_avg_sq, parameter);
}

void ParameterStore::for_each_handle(const std::function<void(Parameter&)>& visit) {
  for (auto& parameter : parameters_) visit(*parameter);
  for (Joined& joined : joined_) visit(*joined.parameter);
}

const ParameterGroup& ParameterStore::group_of(const Parameter& parameter) const {
  return groups_[parameter.decay ? 0 : 1];
}

}  // namespace amoeba::nn
