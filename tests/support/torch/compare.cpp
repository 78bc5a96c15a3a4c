#include "support/torch/compare.h"

#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>

#include "amoeba/error.h"

namespace amoeba::test {
namespace {

Comparison failed(const std::string& message) { return {false, message}; }

std::string describe(const at::Tensor& tensor) {
  return tensor.defined() ? cat(tensor.scalar_type(), " ", tensor.sizes()) : "undefined";
}

Comparison check_same_kind(const at::Tensor& actual, const at::Tensor& expected) {
  if (!actual.defined() || !expected.defined() || actual.sizes() != expected.sizes() ||
      actual.scalar_type() != expected.scalar_type()) {
    return failed(cat("got ", describe(actual), ", want ", describe(expected)));
  }
  if (!at::isfinite(actual).all().item<bool>()) return failed("got NaN or infinity");
  if (!at::isfinite(expected).all().item<bool>()) return failed("the reference is not finite");
  return {};
}

at::Tensor host_rows(const at::Tensor& tensor) {  // fp64 [rows, last dimension]
  const int64_t width = tensor.dim() == 0 ? 1 : tensor.size(-1);
  return tensor.detach().to(at::kCPU, at::kDouble).contiguous().view({-1, width});
}

struct Precision {
  double epsilon;        // ulp of values in [1, 2)
  double smallest_step;  // ulp of subnormal values
};

Precision precision_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return {std::ldexp(1.0, -52), std::ldexp(1.0, -1074)};
    case at::kFloat:
      return {std::ldexp(1.0, -23), std::ldexp(1.0, -149)};
    case at::kHalf:
      return {std::ldexp(1.0, -10), std::ldexp(1.0, -24)};
    case at::kBFloat16:
      return {std::ldexp(1.0, -7), std::ldexp(1.0, -133)};
    default:
      fail(ErrorKind::kUsage, cat("compare: got dtype ", dtype, ", want floating point"));
  }
}

double ulp(double value, const Precision& precision) {
  if (value == 0) return 0;
  return std::max(precision.epsilon * std::exp2(std::floor(std::log2(std::fabs(value)))),
                  precision.smallest_step);
}

double largest(const double* values, int64_t count) {
  double result = 0;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, std::fabs(values[i]));
  return result;
}

double largest_difference(const double* a, const double* b, int64_t count) {
  double result = 0;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, std::fabs(a[i] - b[i]));
  return result;
}

}  // namespace

double plain_error(const at::Tensor& same_dtype_reference, const at::Tensor& fp64_reference) {
  const at::Tensor plain = host_rows(same_dtype_reference), want = host_rows(fp64_reference);
  return largest_difference(plain.const_data_ptr<double>(), want.const_data_ptr<double>(),
                            want.numel());
}

Comparison compare_rows(const at::Tensor& actual, const at::Tensor& same_dtype_reference,
                        const at::Tensor& fp64_reference, double other_draws) {
  if (Comparison kind = check_same_kind(actual, same_dtype_reference); !kind) return kind;
  if (!fp64_reference.defined() || fp64_reference.scalar_type() != at::kDouble) {
    return failed(cat("the fp64 reference is ", describe(fp64_reference)));
  }
  const at::Tensor typed = fp64_reference.to(same_dtype_reference.options());
  if (Comparison kind = check_same_kind(typed, same_dtype_reference); !kind) {
    return failed("fp64 reference: " + kind.message);
  }
  if (actual.numel() == 0) return {};

  const at::Tensor got = host_rows(actual), plain = host_rows(same_dtype_reference),
                   want = host_rows(fp64_reference);
  const double allowed = std::max(other_draws, plain_error(plain, want));
  const int64_t num_rows = got.size(0), width = got.size(1);
  const auto row = [&](const at::Tensor& rows, int64_t r) {
    return rows.const_data_ptr<double>() + r * width;
  };
  const Precision precision = precision_of(actual.scalar_type());
  double worst_excess = 0;
  Comparison result;
  for (int64_t r = 0; r < num_rows; ++r) {
    const double error = largest_difference(row(got, r), row(want, r), width);
    const double size = largest(row(want, r), width);
    const bool is_zero = size == 0 && largest(row(plain, r), width) == 0;
    const double bound = is_zero ? 0 : 2 * allowed + 2 * ulp(size, precision);
    if (error - bound > worst_excess) {
      worst_excess = error - bound;
      result = failed(cat("row ", r, " of ", num_rows, ": error ", error, ", bound ", bound,
                          " (plain error ", allowed, ", largest value ", size, ")"));
    }
  }
  return result;
}

Comparison compare_exact(const at::Tensor& actual, const at::Tensor& expected) {
  if (Comparison kind = check_same_kind(actual, expected); !kind) return kind;
  const at::Tensor got = actual.detach().cpu().reshape({-1});
  const at::Tensor want = expected.detach().cpu().reshape({-1});
  const at::Tensor different = got.ne(want).nonzero();  // [N, 1]
  if (different.size(0) == 0) return {};
  const auto first = different.select(0, 0).item<int64_t>();
  return failed(cat(different.size(0), " of ", got.numel(), " elements differ, the first at ",
                    first, ": got ", got.select(0, first).item<double>(), ", want ",
                    want.select(0, first).item<double>()));
}

Comparison compare_fp64(const at::Tensor& actual, const at::Tensor& expected) {
  if (Comparison kind = check_same_kind(actual, expected); !kind) return kind;
  if (actual.scalar_type() != at::kDouble) return failed(cat("got ", describe(actual)));
  if (actual.numel() == 0) return {};
  const at::Tensor got = host_rows(actual), want = host_rows(expected);
  const double* want_data = want.const_data_ptr<double>();
  const double error = largest_difference(got.const_data_ptr<double>(), want_data, got.numel());
  const double bound = 1e-12 * largest(want_data, want.numel());
  if (error <= bound) return {};
  return failed(cat("error ", error, ", bound ", bound));
}

}  // namespace amoeba::test
