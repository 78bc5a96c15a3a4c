// route() against a naive search over every case, and the error word.
#include <gtest/gtest.h>

#include "base/error_word.h"
#include "support/kernels/cases.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::RouteArguments;

std::vector<int32_t> filled(int64_t size) {
  return std::vector<int32_t>(static_cast<size_t>(size), 77);
}

TEST(CpuRoute, SortsSlotsByExpertInOrder) {
  for (const KernelCase& c : kernel_cases()) {
    if (!c.has_slots) continue;
    const KernelValues values = make_values(c, DType::kF32);
    StoredExperts stored(c, DType::kF32, values, make_previous(c, DType::kF32));
    std::vector<int32_t> counts = filled(c.num_experts()), offsets = filled(c.num_experts() + 1);
    std::vector<int32_t> row_slot = filled(c.num_rows()), slot_row = filled(c.num_rows());
    int32_t error = kErrorNanLogit;  // bits of others stay
    kernels::cpu::route({stored.expert_ids(), c.num_experts(), counts.data(), offsets.data(),
                         row_slot.data(), slot_row.data(), &error},
                        serial_executor());
    const Routing want = naive_routing(c, values);
    EXPECT_EQ(counts, want.counts) << c;
    EXPECT_EQ(offsets, want.offsets) << c;
    EXPECT_EQ(row_slot, want.row_slot) << c;
    EXPECT_EQ(slot_row, want.slot_row) << c;
    EXPECT_EQ(error, kErrorNanLogit | (c.num_bad > 0 ? kErrorBadId : 0)) << c;
    EXPECT_EQ(stored.damage(), "") << c;
  }
}

}  // namespace
}  // namespace amoeba::test
