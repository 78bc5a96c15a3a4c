// The experts operation in fp64 by plain loops over tokens, written apart from any kernel, and the
// comparison with it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "support/kernels/cases.h"

namespace amoeba::test {

// Logical values of every output; those of absent inputs are empty.
struct KernelResults {
  std::vector<double> y, dx;                             // [T, D]
  std::vector<double> dscores;                           // [T, K]
  std::vector<double> dgate, dup;                        // [E, H, D]
  std::vector<double> ddown;                             // [E, D, H]
  std::vector<double> dgate_bias, dup_bias, ddown_bias;  // [E, H], [E, H], [E, D]

  static constexpr size_t kCount = 9;
  static constexpr std::array<const char*, kCount> kNames = {
      "y", "dx", "dscores", "dgate", "dup", "ddown", "dgate_bias", "dup_bias", "ddown_bias"};
  std::array<const std::vector<double>*, kCount> list() const;
};

// The case with a limit that clamps some of the values, far from any of them: near it a rounding
// error turns the derivative from one to zero, and no bound holds.
KernelCase with_clear_limit(const KernelCase& kernel_case, const KernelValues& values);

struct OracleResults {
  KernelResults results;
  // Largest number of significant bits of what a kernel may round to its dtype on the way.
  int intermediate_bits = 0;
  std::vector<double> clampable;  // what an activation with clamping compares with its limit
};

// `previous` is added where the case accumulates.
OracleResults oracle_experts(const KernelCase& kernel_case, const KernelValues& values,
                             const KernelValues& previous);

// The densest exact values whose every intermediate has at most 8 significant bits, those of bf16,
// and the oracle's results for them.
struct ExactProblem {
  KernelValues values;
  KernelResults results;
};
ExactProblem make_exact_problem(const KernelCase& kernel_case, const KernelValues& previous);

// The dtype and the row width of every output, in the order of KernelResults::list().
std::array<kernels::DType, KernelResults::kCount> dtypes_of(const KernelCase& kernel_case,
                                                            kernels::DType dtype);
std::array<int64_t, KernelResults::kCount> widths_of(const KernelCase& kernel_case);

// The largest row error of a plain computation, tensor by tensor.
using PlainErrors = std::array<double, KernelResults::kCount>;
PlainErrors plain_errors(const KernelCase& kernel_case, const KernelResults& plain,
                         const KernelResults& exact);

// "" or the first violation. The rule: both finite, and the error of a row at most twice the plain
// error of that tensor, + 2 ulp of the row's largest exact value; a row of zeros is exact.
std::string compare_rows(const KernelCase& kernel_case, kernels::DType dtype,
                         const KernelResults& actual, const PlainErrors& plain,
                         const KernelResults& exact);
// Equal values (of `exact` rounded to the outputs' dtypes); NaN never passes.
std::string compare_exact(const KernelCase& kernel_case, kernels::DType dtype,
                          const KernelResults& actual, const KernelResults& exact);
// Every tensor within 1e-12 of its largest exact value.
std::string compare_fp64(const KernelResults& actual, const KernelResults& exact);

}  // namespace amoeba::test
