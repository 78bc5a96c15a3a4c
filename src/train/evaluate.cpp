#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "nn/loss.h"
#include "train/batch.h"

namespace amoeba::train {

Evaluation evaluate(nn::Model& model, const ValidationSet& set, const EvaluateOptions& options) {
  const at::NoGradGuard no_grad;
  const int64_t total = options.max_windows > 0 ? std::min(options.max_windows, set.num_windows())
                                                : set.num_windows();
  const nn::ExpertStats training_stats = model.expert_stats();
  Evaluation out;
  double loss_sum = 0.0;
  int64_t tokens = 0, bytes = 0;
  while (out.windows < total && !(options.stop && options.stop())) {
    if (options.progress) options.progress(out.windows, total);
    const int64_t size = std::min(options.batch_size, total - out.windows);
    const ValidationBatch batch = set.batch(out.windows, size);
    const DeviceBatch on_device = to_device(batch.micro_batch, model.device());
    const nn::LossOutput loss =
        nn::lm_head_cross_entropy(model.forward(on_device.input).hidden, model.lm_head(),
                                  on_device.targets, {1.0, options.loss_chunk_bytes});
    loss_sum += loss.loss_sum.item<double>();
    tokens += batch.micro_batch.valid_tokens;
    bytes += batch.num_bytes;
    out.windows += size;
  }
  model.expert_stats() = training_stats;
  out.loss = loss_sum / static_cast<double>(tokens);
  out.complete = out.windows == total;
  out.bits_per_byte = loss_sum / std::numbers::ln2 / static_cast<double>(bytes);
  return out;
}

}  // namespace amoeba::train
