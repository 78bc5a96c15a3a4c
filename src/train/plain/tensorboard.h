// The numbers of a run as scalars for TensorBoard, under torchtitan's tags where it has them. What
// is missing or not finite is left out.
#pragma once

#include <vector>

#include "formats/tfevents.h"
#include "train/plain/metrics.h"

namespace amoeba::train {

std::vector<formats::Scalar> to_scalars(const StepRecord& record);
std::vector<formats::Scalar> to_scalars(const ValidationRecord& record);
std::vector<formats::Scalar> to_scalars(const GuardRecord& record);

}  // namespace amoeba::train
