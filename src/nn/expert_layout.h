// Where each routed row sits: the one layout helper that every padded path shares.
#pragma once

#include <ATen/core/Tensor.h>

namespace amoeba::nn {

struct ExpertLayout {
  at::Tensor starts;     // [E] int64, first row of each expert (exclusive prefix sum of counts)
  at::Tensor expert_of;  // [R] int64, expert of each row; E for tail rows
  at::Tensor position;   // [R] int64, position of each row within its expert; tail rows from 0
};

// counts [E] int64 with sum(counts) <= num_rows, on the device of the result; no host read.
ExpertLayout expert_layout(const at::Tensor& counts, int64_t num_rows);

// Where each expert begins, and the end of the last [E+1]: 0, then the cumulative sums of counts.
at::Tensor expert_bounds(const at::Tensor& counts);

// Counts that expert_layout accepts, whatever `counts` holds: negative ones become 0, and what
// exceeds num_rows is cut from the last experts. A change ORs kErrorCounts into `error_word` (int32
// [1]; may be undefined). No host read.
at::Tensor clamp_counts(const at::Tensor& counts, int64_t num_rows, const at::Tensor& error_word);

}  // namespace amoeba::nn
