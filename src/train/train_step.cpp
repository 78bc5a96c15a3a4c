#include "train/train_step.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "nn/loss.h"
#include "nn/router.h"
#include "train/batch.h"
#include "train/device.h"

namespace amoeba::train {

namespace {

// A loss that the model gives beside the cross entropy.
struct ModelLoss {
  at::Tensor value;  // scalar
  double coeff;      // weight in the gradient; 0: reported only
};

std::vector<ModelLoss> model_losses(const nn::ModelOutput& out, const MoeSection& moe) {
  return {{out.aux_loss, moe.aux_loss_coeff}, {out.z_loss, moe.z_loss_coeff}};
}

// Sums over the micro-batches, on the device.
struct StepSums {
  at::Tensor loss;
  std::vector<ModelLoss> model_losses;
  at::Tensor counts;  // [L, E]
};

void add_to(at::Tensor& sum, const at::Tensor& value) { sum = sum.defined() ? sum + value : value; }

nn::LossOutput cross_entropy(const at::Tensor& hidden, const nn::Model& model,
                             const at::Tensor& targets, const nn::LossOptions& options) {
  RECORD_USER_SCOPE("loss");
  return nn::lm_head_cross_entropy(hidden, model.lm_head(), targets, options);
}

void backward(const at::Tensor& hidden, const at::Tensor& dhidden,
              const std::vector<ModelLoss>& losses, double share) {
  RECORD_USER_SCOPE("backward");
  std::vector<at::Tensor> roots{hidden}, gradients{dhidden};
  for (const ModelLoss& loss : losses) {
    if (loss.coeff == 0 || !loss.value.requires_grad()) continue;  // a dense model's is a constant
    roots.push_back(loss.value);
    gradients.push_back(at::full_like(loss.value, loss.coeff * share));
  }
  torch::autograd::backward(roots, gradients);
}

double valid_tokens_of(const StepBatch& batch) {
  return static_cast<double>(std::max<int64_t>(1, batch.valid_tokens));
}

StepInputs inputs_of(const StepBatch& batch, double lr, const StepLimits& limits,
                     at::Device device) {
  StepInputs inputs;
  for (const MicroBatch& micro_batch : batch.micro_batches) {
    inputs.micro_batches.push_back(to_device(micro_batch, device));
  }
  inputs.settings = to_device(std::vector<double>{lr, limits.loss, limits.grad_norm}, device);
  return inputs;
}

StepSums forward_backward(nn::Model& model, const StepBatch& batch, const StepInputs& inputs,
                          const RunConfig& config) {
  const double valid_tokens = valid_tokens_of(batch);
  const nn::LossOptions options{
      1.0 / valid_tokens, loss_chunk_bytes(config.training.loss_chunk_mib, model.device().type())};
  StepSums sums;
  for (size_t m = 0; m < batch.micro_batches.size(); ++m) {
    const MicroBatch& micro_batch = batch.micro_batches[m];
    const DeviceBatch& on_device = inputs.micro_batches[m];
    const nn::ModelOutput out = model.forward(on_device.input);
    const nn::LossOutput loss = cross_entropy(out.hidden, model, on_device.targets, options);
    std::vector<ModelLoss> losses = model_losses(out, config.moe);
    // Each micro-batch's own losses count by its share of the step's tokens.
    const double share = static_cast<double>(micro_batch.valid_tokens) / valid_tokens;
    backward(out.hidden, loss.dhidden, losses, share);
    add_to(sums.loss, loss.loss_sum);
    add_to(sums.counts, out.counts);
    for (ModelLoss& own : losses) own.value = own.value.detach() * share;
    if (sums.model_losses.empty()) {
      sums.model_losses = losses;
    } else {
      for (size_t i = 0; i < losses.size(); ++i) {
        add_to(sums.model_losses[i].value, losses[i].value);
      }
    }
  }
  return sums;
}

// Everything between the batch and the result, on the device: [losses, norm, rejected, error word,
// the model's losses, counts] fp64.
at::Tensor compute_step(nn::Model& model, AdamW& optimizer, const StepBatch& batch,
                        const StepInputs& inputs, const RunConfig& config) {
  model.store().zero_grad();
  model.error_word().zero_();
  const StepSums sums = forward_backward(model, batch, inputs, config);
  RECORD_USER_SCOPE("optimizer");
  const auto setting = [&](int64_t index) { return inputs.settings.select(0, index); };
  const at::Tensor reject =
      at::isfinite(sums.loss)
          .logical_not()
          .logical_or(sums.loss.to(at::kDouble).div(valid_tokens_of(batch)).gt(setting(1)))
          .logical_or(model.error_word().squeeze(0).ne(0));
  const OptimizerStep done =
      optimizer.step(setting(0), config.training.max_norm, setting(2), reject);
  if (config.moe.balance_coeff > 0) {
    at::Tensor& bias = model.expert_bias();
    bias.copy_(at::where(done.rejected, bias,
                         nn::balanced_expert_bias(bias, sums.counts, config.moe.balance_coeff)));
  }
  std::vector<at::Tensor> scalars{sums.loss, done.grad_norm, done.rejected,
                                  model.error_word().squeeze(0)};
  for (const ModelLoss& loss : sums.model_losses) scalars.push_back(loss.value);
  for (at::Tensor& scalar : scalars) scalar = scalar.to(at::kDouble);
  return at::cat({at::stack(scalars), sums.counts.reshape(-1).to(at::kDouble)});
}

// The one host read of the step.
StepResult read_result(const at::Tensor& on_device, at::IntArrayRef counts_shape,
                       double valid_tokens) {
  constexpr int64_t kNumScalars = 6;
  const at::Tensor host = on_device.to(at::kCPU);
  const double* values = host.const_data_ptr<double>();
  StepResult result;
  result.loss = values[0] / valid_tokens;
  result.grad_norm = values[1];
  result.rejected = values[2] != 0.0;
  result.errors = static_cast<int32_t>(values[3]);
  result.aux_loss = values[4];
  result.z_loss = values[5];
  result.counts =
      host.narrow(0, kNumScalars, host.numel() - kNumScalars).to(at::kLong).view(counts_shape);
  return result;
}

// What of a batch a recording would hold fast; "" for a batch whose documents or padding are its
// own.
std::string shape_of(const StepBatch& batch) {
  std::string shape;
  for (const MicroBatch& micro_batch : batch.micro_batches) {
    const auto num_documents = static_cast<int64_t>(micro_batch.segments.size());
    if (!micro_batch.token_mask.empty() || num_documents > micro_batch.batch_size) return "";
    shape += cat(micro_batch.batch_size, " x ", micro_batch.seq_len, ", ", micro_batch.valid_tokens,
                 " valid; ");
  }
  return shape;
}

}  // namespace

StepResult train_step(nn::Model& model, AdamW& optimizer, const StepBatch& batch,
                      const RunConfig& config, double lr, const StepLimits& limits,
                      StepGraph* graph) {
  const auto compute = [&](const StepInputs& inputs) {
    return compute_step(model, optimizer, batch, inputs, config);
  };
  const StepInputs inputs = inputs_of(batch, lr, limits, model.device());
  const at::Tensor result =
      graph == nullptr ? compute(inputs)
                       : graph->run(shape_of(batch), inputs, model.expert_stats(), compute);
  return read_result(result, model.expert_bias().sizes(), valid_tokens_of(batch));
}

}  // namespace amoeba::train
