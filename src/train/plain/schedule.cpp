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

}  // namespace amoeba::train
