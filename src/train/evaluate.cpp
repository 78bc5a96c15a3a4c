#include "train/evaluate.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "nn/loss.h"
#include "train/batch.h"

namespace amoeba::train {

namespace {

void set_means(Evaluation& evaluation, double loss_sum) {
  evaluation.loss = loss_sum / static_cast<double>(evaluation.tokens);
  evaluation.bits_per_byte = loss_sum / std::numbers::ln2 / static_cast<double>(evaluation.bytes);
}

}  // namespace

Evaluation evaluate(nn::Model& model, const ValidationSet& set, const EvaluateOptions& options) {
  const c10::InferenceMode inference;  // a call less at every operator
  const int64_t total = options.max_windows > 0 ? std::min(options.max_windows, set.num_windows())
                                                : set.num_windows();
  const nn::ExpertStats training_stats = model.expert_stats();
  Evaluation out;
  double loss_sum = 0.0;
  while (out.windows < total && !(options.stop && options.stop())) {
    if (options.progress) options.progress(out.windows, total);
    const int64_t size = std::min(options.batch_size, total - out.windows);
    const ValidationBatch batch = set.batch(out.windows, size);
    const DeviceBatch on_device = to_device(batch.micro_batch, model.device());
    const nn::LossOutput loss =
        nn::lm_head_cross_entropy(model.forward(on_device.input).hidden, model.lm_head(),
                                  on_device.targets, {1.0, options.loss_chunk_bytes});
    loss_sum += loss.loss_sum.item<double>();
    out.tokens += batch.micro_batch.valid_tokens;
    out.bytes += batch.num_bytes;
    out.windows += size;
  }
  model.expert_stats() = training_stats;
  out.complete = out.windows == total;
  set_means(out, loss_sum);
  return out;
}

Evaluation total_of(std::span<const Evaluation> parts) {
  Evaluation out;
  out.complete = true;
  double loss_sum = 0.0;
  for (const Evaluation& part : parts) {
    if (part.tokens > 0) loss_sum += part.loss * static_cast<double>(part.tokens);
    out.tokens += part.tokens;
    out.bytes += part.bytes;
    out.windows += part.windows;
    out.complete = out.complete && part.complete;
  }
  set_means(out, loss_sum);
  return out;
}

}  // namespace amoeba::train
