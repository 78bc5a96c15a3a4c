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
#include <vector>

#include "nn/loss.h"
#include "nn/router.h"
#include "train/batch.h"
#include "train/device.h"

namespace amoeba::train {

namespace {

// A loss that the model gives beside the cross entropy.
struct ModelLoss {
  double StepResult::*field;  // where its value goes
  at::Tensor value;           // scalar
  double coeff;               // weight in the gradient; 0: reported only
};

std::vector<ModelLoss> model_losses(const nn::ModelOutput& out, const MoeSection& moe) {
  return {{&StepResult::aux_loss, out.aux_loss, moe.aux_loss_coeff},
          {&StepResult::z_loss, out.z_loss, moe.z_loss_coeff}};
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

StepSums forward_backward(nn::Model& model, const StepBatch& batch, const RunConfig& config,
                          double valid_tokens) {
  const nn::LossOptions options{
      1.0 / valid_tokens, loss_chunk_bytes(config.training.loss_chunk_mib, model.device().type())};
  StepSums sums;
  for (const MicroBatch& micro_batch : batch.micro_batches) {
    const DeviceBatch on_device = to_device(micro_batch, model.device());
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

// The one host read of the step.
StepResult read_result(const StepSums& sums, const OptimizerStep& done,
                       const at::Tensor& error_word, double valid_tokens) {
  std::vector<at::Tensor> scalars{sums.loss, done.grad_norm, done.rejected, error_word.squeeze(0)};
  for (const ModelLoss& loss : sums.model_losses) scalars.push_back(loss.value);
  for (at::Tensor& scalar : scalars) scalar = scalar.to(at::kDouble);
  const auto num_scalars = static_cast<int64_t>(scalars.size());
  const at::Tensor host =
      at::cat({at::stack(scalars), sums.counts.reshape(-1).to(at::kDouble)}).to(at::kCPU);
  const double* values = host.const_data_ptr<double>();
  StepResult result;
  result.loss = values[0] / valid_tokens;
  result.grad_norm = values[1];
  result.rejected = values[2] != 0.0;
  result.errors = static_cast<int32_t>(values[3]);
  for (size_t i = 0; i < sums.model_losses.size(); ++i) {
    result.*sums.model_losses[i].field = values[4 + i];
  }
  result.counts =
      host.narrow(0, num_scalars, sums.counts.numel()).to(at::kLong).view_as(sums.counts);
  return result;
}

}  // namespace

StepResult train_step(nn::Model& model, AdamW& optimizer, const StepBatch& batch,
                      const RunConfig& config, double lr, const StepLimits& limits) {
  model.store().zero_grad();
  model.error_word().zero_();
  const auto valid_tokens = static_cast<double>(std::max<int64_t>(1, batch.valid_tokens));
  const StepSums sums = forward_backward(model, batch, config, valid_tokens);
  RECORD_USER_SCOPE("optimizer");
  const at::Tensor reject =
      at::isfinite(sums.loss)
          .logical_not()
          .logical_or(sums.loss.to(at::kDouble).div(valid_tokens).gt(limits.loss))
          .logical_or(model.error_word().squeeze(0).ne(0));
  const OptimizerStep done = optimizer.step(lr, config.training.max_norm, limits.grad_norm, reject);
  if (config.moe.balance_coeff > 0) {
    at::Tensor& bias = model.expert_bias();
    bias.copy_(at::where(done.rejected, bias,
                         nn::balanced_expert_bias(bias, sums.counts, config.moe.balance_coeff)));
  }
  return read_result(sums, done, model.error_word(), valid_tokens);
}

}  // namespace amoeba::train
