// A made-up run for tests of metrics and report: curves of ordinary shape, any size.
#pragma once

#include <cstdint>

#include "train/plain/metrics.h"

namespace amoeba::test {

struct HistoryShape {
  int64_t num_steps = 520;
  int64_t log_interval = 10;
  int64_t validation_interval = 100;  // 0: none
  int64_t num_layers = 4;
  int64_t num_experts = 8;
};

train::RunHistory synthetic_history(const HistoryShape& shape);

}  // namespace amoeba::test
