// The learning-rate range test on the real model and data: what `amoeba find-lr` calls.
#pragma once

#include <string>

#include "amoeba/train.h"
#include "train/plain/lr_curve.h"

namespace amoeba::train {

struct LrFinderResult {
  LrReport report;
  std::string json;  // path
  std::string page;  // path
};

// Trains the configuration's model from its first weights while the learning rate grows, one
// optimizer step a rate, at the full batch size (no ramp), until the sweep or the loss ends.
// Writes lr_finder.json and lr_finder.html into run.folder and nothing else there. Error(kNumeric)
// when the first loss already is not finite.
LrFinderResult find_lr(const RunConfig& config, const formats::Schema& schema, const LrSweep& sweep,
                       RunContext& context);

}  // namespace amoeba::train
