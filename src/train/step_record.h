// What a logged step writes down, gathered from the step, the model and the machine.
#pragma once

#include <cstdint>

#include "amoeba/model.h"
#include "train/plain/metrics.h"
#include "train/train_step.h"

namespace amoeba::train {

// Totals since the last logged step.
struct Interval {
  int64_t tokens = 0;  // without padding
  int64_t steps = 0;
  double seconds = 0;
  double data_seconds = 0;
};

// All but step, lr and tokens_seen, which the run knows.
StepRecord make_step_record(const StepResult& result, const Interval& interval, nn::Model& model,
                            const RunConfig& config, double flops_per_token);

}  // namespace amoeba::train
