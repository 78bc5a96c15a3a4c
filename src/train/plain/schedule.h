// What changes from step to step by plan: the learning rate (linear warm-up, stable, decay;
// torchtitan's schedule) and the batch size.
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

// Sequences of `step` (from 0): a pure function, so that resuming needs nothing. With s =
// batch_ramp_start, l = local_batch_size, g = global_batch_size (0: l) and r = batch_ramp_steps it
// is s + l * floor((g - s) / l * step / r) for step < r, and g from step r on or without a ramp
// (s = 0). Error(kUsage) when s or g is no multiple of l, s is above g, or s is set without r.
int64_t global_batch_size(const TrainingSection& training, int64_t step);

// The sum of global_batch_size over the steps [begin, end).
int64_t num_sequences(const TrainingSection& training, int64_t begin, int64_t end);

}  // namespace amoeba::train
