// Local dispatch: tokens to rows grouped by expert, and back as a weighted sum in a fixed order.
//
// Legend: T tokens, D model width, E experts, K choices, R = T*K rows; slot = t*K + k.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace amoeba::nn {

struct Routes {
  at::Tensor row_slot;  // [R] int64, slot of each sorted row; skipped slots last
  at::Tensor slot_row;  // [R] int64, its inverse
  int64_t top_k = 0;
};

// Stable sort of the slots by expert id [T, K] int64 in [0, E]; E: skipped.
Routes sort_by_expert(const at::Tensor& expert_ids, int64_t num_experts);

// x [T, D] -> rows [R, D]. Backward sums a token's K rows in the order of k.
at::Tensor gather_rows(const at::Tensor& x, const Routes& routes);

// rows [R, D], scores [T, K] fp32 or undefined (weight 1) -> y [T, D] in the dtype of rows:
// y[t] = sum over k, in order and in fp32, of scores[t, k] * rows[slot_row[t, k]].
at::Tensor combine_rows(const at::Tensor& rows, const at::Tensor& scores, const Routes& routes);

}  // namespace amoeba::nn
