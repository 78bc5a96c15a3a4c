#include "train/plain/wall_time.h"

#include <algorithm>

namespace amoeba::train {

namespace {
constexpr size_t kNumSteps = 20;
}

WallTime::WallTime(const RunSection& run)
    : limit_seconds_(60 * run.max_wall_minutes),
      margin_seconds_(run.stop_margin_seconds),
      step_seconds_(kNumSteps, 0.0) {}

void WallTime::add_step(double seconds) {
  step_seconds_[static_cast<size_t>(num_steps_++) % kNumSteps] = seconds;
}

bool WallTime::is_up(double seconds_since_start, bool with_validation) const {
  if (limit_seconds_ == 0) return false;
  const double longest_step = *std::max_element(step_seconds_.begin(), step_seconds_.end());
  const double wanted = margin_seconds_ + longest_step + save_seconds_ +
                        (with_validation ? validation_seconds_ : 0.0);
  return limit_seconds_ - seconds_since_start < wanted;
}

}  // namespace amoeba::train
