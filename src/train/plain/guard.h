// Which steps the optimizer must not take, and when the run goes back to a checkpoint.
//
// A step that is not finite is always rejected. So is a spike: a loss or gradient norm above
//   median + threshold * max(MAD, floor)      MAD: median absolute deviation from the median
// of the last `window` accepted steps. Limits come from steps before the one they judge and
// rejected steps never enter, so that no spike and no NaN can widen or poison them. They are
// numbers known before the step: the device compares and selects, the host reads nothing more.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "formats/value.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// A step above either is rejected.
struct StepLimits {
  double loss = std::numeric_limits<double>::infinity();
  double grad_norm = std::numeric_limits<double>::infinity();
};

// What a finished step leads to. Both but kGoOn: too many rejected steps.
enum class GuardAction { kGoOn, kRollBack, kEnd };

// median + threshold * max(MAD, floor), with 1 % of the median as the floor; `values` is not empty.
// A median of an even number is the mean of the two in the middle.
double spike_limit(std::vector<double> values, double threshold);

class Guard {
 public:
  Guard(const GuardSection& section, int64_t max_rejected_in_a_row);

  // For the next step.
  StepLimits limits() const;

  // Counts a step; `step` is its number, from 1.
  GuardAction add(int64_t step, double loss, double grad_norm, bool rejected);

  int64_t rejected_in_a_row() const { return rejected_in_a_row_; }
  int64_t num_skips() const { return static_cast<int64_t>(skipped_steps_.size()); }
  int64_t num_rollbacks() const { return num_rollbacks_; }
  // The first of the rejected steps that count now; 0: none does.
  int64_t first_skip() const { return skipped_steps_.empty() ? 0 : skipped_steps_.front(); }

  // Takes the window of a checkpoint's guard, forgets the skips and counts a roll-back.
  void roll_back(const Guard& to);

  formats::Value to_value() const;
  // Continues as the guard that wrote `value`, with these settings: of a longer window the newest
  // steps. Error(kData) that begins with `what` for a missing key, a wrong type or number.
  void restore(const formats::Value& value, std::string_view what);

 private:
  GuardSection section_;
  int64_t max_rejected_in_a_row_;
  // Accepted steps, oldest first, at most section_.window of them.
  std::vector<double> losses_, grad_norms_;
  std::vector<int64_t> skipped_steps_;  // within the last section_.skip_interval steps, ascending
  int64_t rejected_in_a_row_ = 0;
  int64_t num_rollbacks_ = 0;
};

}  // namespace amoeba::train
