// The comparator of all tensor tests.
//
// compare_rows: the error of a row (largest absolute difference to fp64) is at most 2x the largest
// row error of the plain computation in the same dtype over that tensor, + 2 ulp of the row's
// largest fp64 value. A row that is zero in both references must be zero. Rows: all dimensions but
// the last flattened. NaN and infinity fail everywhere, on either side.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace amoeba::test {

struct Comparison {
  bool passed = true;
  std::string message;  // "" when passed; otherwise the worst row, its error and its bound
  explicit operator bool() const { return passed; }
};

// `other_draws`: the largest row error of the plain computation in other draws of the problem; one
// draw of few rows samples it badly.
Comparison compare_rows(const at::Tensor& actual, const at::Tensor& same_dtype_reference,
                        const at::Tensor& fp64_reference, double other_draws = 0);

// Largest difference to fp64: what compare_rows calls the plain error.
double plain_error(const at::Tensor& same_dtype_reference, const at::Tensor& fp64_reference);

// Equal in every bit but the sign of a zero, dtype and shape included; NaN never passes.
Comparison compare_exact(const at::Tensor& actual, const at::Tensor& expected);

// Both fp64: largest difference at most 1e-12 of the largest expected value.
Comparison compare_fp64(const at::Tensor& actual, const at::Tensor& expected);

}  // namespace amoeba::test
