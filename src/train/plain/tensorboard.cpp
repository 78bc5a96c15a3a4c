#include "train/plain/tensorboard.h"

#include <cmath>

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

constexpr double kBytesPerGib = 1024.0 * 1024.0 * 1024.0;

std::vector<formats::Scalar> finite(std::vector<formats::Scalar> scalars) {
  std::erase_if(scalars, [](const auto& scalar) { return !std::isfinite(scalar.value); });
  return scalars;
}

}  // namespace

std::vector<formats::Scalar> to_scalars(const StepRecord& record) {
  std::vector<formats::Scalar> scalars = {
      {"loss_metrics/global_avg_loss", record.loss},
      {"loss_metrics/aux_loss", record.aux_loss},
      {"loss_metrics/z_loss", record.z_loss},
      {"grad_norm", record.grad_norm},
      {"lr", record.lr},
      {"throughput(tps)", record.tokens_per_second},
      {"tflops", record.tflops},
      {"mfu(%)", record.mfu},
      {"time_metrics/end_to_end(s)", record.step_seconds},
      {"time_metrics/data_loading(s)", record.data_seconds},
      {"time_metrics/data_loading(%)", 100.0 * record.data_seconds / record.step_seconds},
      {"memory/max_active(GiB)", static_cast<double>(record.memory_peak_bytes) / kBytesPerGib},
      {"memory/max_active(%)", record.memory_percent},
      {"n_tokens_seen", static_cast<double>(record.tokens_seen)},
  };
  for (const ExpertLoad& experts : record.experts) {
    scalars.push_back(
        {cat("experts/layer_", experts.layer, "/max_over_mean"), max_over_mean(experts)});
  }
  return finite(std::move(scalars));
}

std::vector<formats::Scalar> to_scalars(const GuardRecord& record) {
  if (record.action == "skip") return {{"guard/rejected_step", 1.0}};
  return {{"guard/rollback_to_step", static_cast<double>(record.to_step)}};
}

std::vector<formats::Scalar> to_scalars(const ValidationRecord& record) {
  return finite({{"validation_metrics/loss", record.loss},
                 {"validation_metrics/bits_per_byte", record.bits_per_byte}});
}

}  // namespace amoeba::train
