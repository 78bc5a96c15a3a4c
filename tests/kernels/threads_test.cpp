// Results are the same bits for any number of threads, any order of chunks, and from run to run.
#include <gtest/gtest.h>

#include "amoeba/error.h"
#include "kernels/problem.h"
#include "support/kernels/cases.h"
#include "support/kernels/oracle.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::Variant;

void expect_same_bits(const KernelResults& actual, const KernelResults& expected,
                      const std::string& what) {
  for (size_t i = 0; i < KernelResults::kCount; ++i) {
    EXPECT_EQ(*actual.list()[i], *expected.list()[i]) << KernelResults::kNames[i] << " of " << what;
  }
}

TEST(CpuVariants, GiveEqualBitsForAnyNumberOfThreads) {
  for (size_t i = 0; i < kernel_cases().size(); i += 5) {  // 5: every shape with every layout
    const KernelCase& c = kernel_cases()[i];
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const KernelValues values = make_values(c, dtype);
      const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
      for (const Variant& variant : tested_variants()) {
        StoredExperts stored(c, dtype, values, previous);
        if (!variant.supports(stored.arguments(), c.options).empty()) continue;
        const KernelResults alone = run_cpu(variant.name, c, dtype, values, previous);
        for (const int num_threads : {1, 2, 4, 8}) {
          ShuffledThreads threads(num_threads, i);
          expect_same_bits(
              run_cpu(variant.name, c, dtype, values, previous, threads.executor()), alone,
              cat(variant.name, " ", name_of(dtype), " with ", num_threads, " threads: ", c));
        }
      }
    }
  }
}

}  // namespace
}  // namespace amoeba::test
