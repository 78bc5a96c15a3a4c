// The learning rate of a step: linear warm-up, stable, decay; torchtitan's schedule.
#pragma once

#include <cstdint>

#include "train/plain/run_config.h"

namespace amoeba::train {

// With n = total_steps, w = min(warmup_steps, n), d = min(round-half-even(n * decay_ratio), n - w)
// and m = min_lr_factor, the factor on base_lr at `step` (from 0) is
//   (step + 1) / w          for step < w,
//   1                       for w <= step <= n - d,
//   m + (1 - m) * shape(p)  after that, p = (step - n + d) / d,
// where shape is 1 - p (linear), 1 - sqrt(p) or (1 + cos(pi p)) / 2 (cosine). The decay would end
// at the virtual step n, so that the last real one, n - 1, still learns when m is 0.
double learning_rate(const LrSchedulerSection& section, double base_lr, int64_t step,
                     int64_t total_steps);

}  // namespace amoeba::train
