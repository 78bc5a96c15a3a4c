#include "nn/expert_layout.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/diff.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include "base/error_word.h"

namespace amoeba::nn {

at::Tensor expert_bounds(const at::Tensor& counts) {
  at::Tensor bounds = at::zeros({counts.size(0) + 1}, counts.options());
  bounds.narrow(0, 1, counts.size(0)).copy_(counts.cumsum(0));
  return bounds;
}

ExpertLayout expert_layout(const at::Tensor& counts, int64_t num_rows) {
  const int64_t num_experts = counts.size(0);
  const at::Tensor bounds = expert_bounds(counts);  // [E+1]
  const at::Tensor rows = at::arange(num_rows, counts.options());
  // The first expert whose end lies past the row: empty experts share an end and are passed over.
  const at::Tensor expert_of =
      at::searchsorted(bounds.narrow(0, 1, num_experts), rows, /*out_int32=*/false, /*right=*/true);
  return {bounds.narrow(0, 0, num_experts), expert_of, rows.sub(bounds.index_select(0, expert_of))};
}

at::Tensor clamp_counts(const at::Tensor& counts, int64_t num_rows, const at::Tensor& error_word) {
  // Each count is clamped before the sum, which then cannot overflow.
  const at::Tensor bounds = expert_bounds(counts.clamp(0, num_rows)).clamp_max_(num_rows);
  at::Tensor clamped = at::diff(bounds);
  if (error_word.defined()) {
    const at::Tensor bad = clamped.ne(counts).any().to(at::kInt).mul_(kErrorCounts);
    error_word.bitwise_or_(bad);
  }
  return clamped;
}

}  // namespace amoeba::nn
