// Every CPU variant over every case: the per-row rule against fp64, integer cases to the bit, and
// the reference in fp64 against the oracle.
#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "kernels/problem.h"
#include "support/kernels/cases.h"
#include "support/kernels/oracle.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::Variant;

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// The variants that take the case, the reference only if asked for.
std::vector<std::string_view> names_for(const KernelCase& c, DType dtype,
                                        const KernelValues& values, const KernelValues& previous,
                                        bool with_reference) {
  StoredExperts stored(c, dtype, values, previous);
  std::vector<std::string_view> names;
  for (const Variant& variant : tested_variants()) {
    if (variant.name == "reference" && !with_reference) continue;
    if (variant.supports(stored.arguments(), c.options).empty()) names.push_back(variant.name);
  }
  return names;
}

TEST(KernelCases, AreAtLeastThreeHundredWithEveryOption) {
  EXPECT_GE(kernel_cases().size(), 300u);
  EXPECT_GE(exact_cases().size(), 100u);
  int num_accumulating = 0, num_before = 0, num_rows_entry = 0;
  for (const KernelCase& c : kernel_cases()) {
    num_accumulating += c.accumulates();
    num_before += c.options.score_before;
    num_rows_entry += !c.has_slots;
  }
  EXPECT_GE(num_accumulating, 100);
  EXPECT_GE(num_before, 50);
  EXPECT_GE(num_rows_entry, 50);
}

TEST(CpuReference, AgreesWithTheOracleInFp64) {
  for (const KernelCase& c : kernel_cases()) {
    const KernelValues values = make_values(c, DType::kF64),
                       previous = make_previous(c, DType::kF64);
    const KernelResults exact = oracle_experts(c, values, previous).results;
    const KernelResults actual = run_cpu("reference", c, DType::kF64, values, previous);
    EXPECT_EQ(compare_fp64(actual, exact), "") << c;
  }
}

// Every variant that takes the case.
void expect_row_rule(const KernelCase& unclear, DType dtype) {
  const KernelValues values = make_values(unclear, dtype);
  const KernelCase c = with_clear_limit(unclear, values);
  const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
  const KernelResults exact = oracle_experts(c, values, previous).results;
  PlainErrors plain = reference_errors(unclear, dtype, 1);
  bool has_many_draws = false;
  for (const std::string_view name : names_for(c, dtype, values, previous, false)) {
    const KernelResults actual = run_cpu(name, c, dtype, values, previous);
    std::string violation = compare_rows(c, dtype, actual, plain, exact);
    if (!violation.empty() && !has_many_draws) {
      // One draw of few rows samples the largest plain error badly.
      plain = reference_errors(unclear, dtype, 40);
      has_many_draws = true;
      violation = compare_rows(c, dtype, actual, plain, exact);
    }
    EXPECT_EQ(violation, "") << name << " " << kernels::name_of(dtype) << " " << c;
  }
}

TEST(CpuVariants, KeepTheRowRule) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const KernelCase& c : kernel_cases()) expect_row_rule(c, dtype);
  }
}

// More units than are packed at a time, and more rows than one product takes, whole and with a
// rest.
TEST(CpuVariants, KeepTheRowRuleInLongSums) {
  KernelCase wide, tall;
  wide.name = "wide_sums";
  wide.model_dim = 1062;
  wide.hidden_dim = 35;
  wide.counts = {3, 21};
  tall.name = "tall_sums";
  tall.model_dim = 33;
  tall.hidden_dim = 20;
  tall.counts = {1, 820, 0, 2};
  for (KernelCase c : {wide, tall}) {
    for (const bool transposed : {false, true}) {
      c.options.transposed = transposed;
      for (const DType dtype : {DType::kF32, DType::kBF16}) expect_row_rule(c, dtype);
    }
  }
}

bool any_nonzero(const std::vector<double>& values) {
  return std::any_of(values.begin(), values.end(), [](double value) { return value != 0; });
}

TEST(CpuVariants, ComputeIntegersToTheBit) {
  size_t num_telling = 0;
  for (const KernelCase& c : exact_cases()) {
    for (const DType dtype : kDTypes) {
      const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
      const auto [values, exact] = make_exact_problem(c, previous);
      num_telling += any_nonzero(exact.y) && any_nonzero(exact.dx);
      for (const std::string_view name : names_for(c, dtype, values, previous, true)) {
        const KernelResults actual = run_cpu(name, c, dtype, values, previous);
        EXPECT_EQ(compare_exact(c, dtype, actual, exact), "") << name << " " << c;
      }
    }
  }
  EXPECT_GE(num_telling, exact_cases().size());  // a third of all
}

}  // namespace
}  // namespace amoeba::test
