// When a run must end to be saved before its job's time is up.
#pragma once

#include <cstdint>
#include <vector>

#include "train/plain/run_config.h"

namespace amoeba::train {

// Seconds come from the caller; nothing here reads a clock.
class WallTime {
 public:
  explicit WallTime(const RunSection& run);

  void add_step(double seconds);
  void add_save(double seconds) { save_seconds_ = seconds; }
  void add_validation(double seconds) { validation_seconds_ = seconds; }

  // Whether another step, with a validation behind it or not, could leave too little time to save:
  // the time left is less than the margin, the longest of the last 20 steps, the last validation
  // and the last save together.
  bool is_up(double seconds_since_start, bool with_validation) const;

 private:
  double limit_seconds_;  // 0: none
  double margin_seconds_;
  std::vector<double> step_seconds_;  // of the last steps, in a ring
  int64_t num_steps_ = 0;
  double save_seconds_ = 0;
  double validation_seconds_ = 0;
};

}  // namespace amoeba::train
