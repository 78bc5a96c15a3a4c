#include "train/step_record.h"

#include "train/device.h"

namespace amoeba::train {

namespace {

void add_memory(StepRecord& record, at::Device device) {
  const MemoryUsage memory = memory_usage(device);
  record.memory_bytes = memory.current_bytes;
  record.memory_reserved_bytes = memory.reserved_bytes;
  record.memory_peak_bytes = memory.peak_bytes;
  if (memory.capacity_bytes > 0) {
    record.memory_percent =
        100.0 * static_cast<double>(memory.peak_bytes) / static_cast<double>(memory.capacity_bytes);
  }
}

void add_experts(StepRecord& record, const nn::ExpertStats& stats, const at::Tensor& counts) {
  if (stats.dropped_rows.defined()) record.dropped_rows = stats.dropped_rows.item<int64_t>();
  if (stats.rows > 0) {
    record.padding_ratio = static_cast<double>(stats.padded_rows) / static_cast<double>(stats.rows);
  }
  record.expert_calls = stats.calls;
  record.host_syncs = stats.host_syncs;
  record.saved_bytes = stats.saved_bytes;
  const int64_t* load = counts.const_data_ptr<int64_t>();
  for (int64_t layer = 0; layer < counts.size(0); ++layer) {
    record.experts.push_back(
        {layer, {load + layer * counts.size(1), load + (layer + 1) * counts.size(1)}});
  }
}

}  // namespace

StepRecord make_step_record(const StepResult& result, const Interval& interval, nn::Model& model,
                            const RunConfig& config, double flops_per_token) {
  StepRecord record;
  record.loss = result.loss;
  record.grad_norm = result.grad_norm;
  record.aux_loss = result.aux_loss;
  record.z_loss = result.z_loss;
  record.rejected = result.rejected;
  const auto steps = static_cast<double>(interval.steps);
  record.tokens_per_second = static_cast<double>(interval.tokens) / interval.seconds;
  record.step_seconds = interval.seconds / steps;
  record.data_seconds = interval.data_seconds / steps;
  record.tflops = flops_per_token * record.tokens_per_second * 1e-12;
  const double peak = peak_flops(model.device(), resolve_dtype(config.training.dtype));
  if (peak > 0) record.mfu = 100.0 * record.tflops * 1e12 / peak;
  add_memory(record, model.device());
  add_experts(record, model.expert_stats(), result.counts);
  return record;
}

}  // namespace amoeba::train
