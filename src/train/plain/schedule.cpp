#include "train/plain/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

double decay_shape(const std::string& type, double progress) {
  if (type == "linear") return 1.0 - progress;
  if (type == "sqrt") return 1.0 - std::sqrt(progress);
  if (type == "cosine") return 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  fail(ErrorKind::kUsage,
       cat("lr_scheduler.decay_type is '", type, "', want linear, sqrt or cosine"));
}

struct BatchRamp {
  int64_t start;       // sequences of the first step
  int64_t num_levels;  // sizes above it, one local batch apart
  int64_t steps;       // 0: no ramp
  int64_t end;         // sequences after the ramp
};

BatchRamp batch_ramp(const TrainingSection& training) {
  const int64_t local = training.local_batch_size, start = training.batch_ramp_start;
  AMOEBA_CHECK(local >= 1, "configuration: training.local_batch_size is ", local,
               ", want at least 1");
  const int64_t global = training.global_batch_size == 0 ? local : training.global_batch_size;
  AMOEBA_CHECK(global >= 1 && global % local == 0, "configuration: training.global_batch_size is ",
               global, " and training.local_batch_size is ", local, ", want a multiple");
  AMOEBA_CHECK((start > 0) == (training.batch_ramp_steps > 0),
               "configuration: training.batch_ramp_start is ", start,
               " and training.batch_ramp_steps is ", training.batch_ramp_steps,
               ", want both or neither above 0");
  if (start == 0) return {global, 0, 0, global};
  AMOEBA_CHECK(start % local == 0, "configuration: training.batch_ramp_start is ", start,
               " and training.local_batch_size is ", local, ", want a multiple");
  AMOEBA_CHECK(start <= global, "configuration: training.batch_ramp_start is ", start,
               " and training.global_batch_size is ", global, ", want no more");
  return {start, (global - start) / local, training.batch_ramp_steps, global};
}

}  // namespace

double learning_rate(const LrSchedulerSection& section, double base_lr, int64_t step,
                     int64_t total_steps) {
  AMOEBA_CHECK(step >= 0 && step <= total_steps, "learning rate: step is ", step, ", want 0 to ",
               total_steps);
  const int64_t warmup = std::min(section.warmup_steps, total_steps);
  const auto wanted_decay =
      std::llrint(static_cast<double>(total_steps) * section.decay_ratio);  // half to even
  const int64_t decay = std::min<int64_t>(wanted_decay, total_steps - warmup);
  if (step < warmup) {
    return base_lr * (static_cast<double>(step + 1) / static_cast<double>(warmup));
  }
  if (step <= total_steps - decay) return base_lr;
  const double progress =
      static_cast<double>(step - (total_steps - decay)) / static_cast<double>(decay);
  const double shape = decay_shape(section.decay_type, progress);
  return base_lr * (section.min_lr_factor + (1.0 - section.min_lr_factor) * shape);
}

int64_t global_batch_size(const TrainingSection& training, int64_t step) {
  const BatchRamp ramp = batch_ramp(training);
  if (step >= ramp.steps) return ramp.end;
  return ramp.start + training.local_batch_size * (ramp.num_levels * step / ramp.steps);
}

int64_t num_sequences(const TrainingSection& training, int64_t begin, int64_t end) {
  const BatchRamp ramp = batch_ramp(training);
  const int64_t flat_from = std::clamp(ramp.steps, begin, end);
  int64_t sum = (end - flat_from) * ramp.end + (flat_from - begin) * ramp.start;
  // Each level adds one local batch from the first step with num_levels * step / steps >= level on.
  for (int64_t level = 1; level <= ramp.num_levels; ++level) {
    const int64_t first = (level * ramp.steps + ramp.num_levels - 1) / ramp.num_levels;
    if (first >= flat_from) break;
    sum += (flat_from - std::max(first, begin)) * training.local_batch_size;
  }
  return sum;
}

}  // namespace amoeba::train
