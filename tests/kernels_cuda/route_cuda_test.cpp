// route() on the GPU against a naive search: the shared cases, and sizes of many blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/error_word.h"
#include "base/rng.h"
#include "kernels_cuda/device.h"
#include "support/kernels/cases.h"

namespace amoeba::test {
namespace {

namespace cuda = kernels::cuda;
using kernels::DType;
using kernels::View;

struct RouteResults {
  std::vector<int32_t> counts, offsets, row_slot, slot_row;
  int32_t error = 0;
};

// `ids` [T, K] on the device.
RouteResults run_route(const View& ids, int64_t num_experts) {
  const int64_t slots = ids.size[0] * ids.size[1];
  const int64_t scratch_bytes = cuda::route_scratch_bytes(slots, num_experts);
  DeviceBuffer scratch(scratch_bytes + 1);
  check(cudaMemset(scratch.data(), 0xff, static_cast<size_t>(scratch_bytes)));
  DeviceBuffer out((2 * num_experts + 2 * slots + 2) * 4);
  check(cudaMemset(out.data(), 77, static_cast<size_t>((2 * num_experts + 2 * slots + 2) * 4)));
  int32_t* at = reinterpret_cast<int32_t*>(out.data());
  const auto take = [&](int64_t size) {
    int32_t* part = at;
    at += size;
    return part;
  };
  kernels::RouteArguments arguments = {
      ids,         num_experts, take(num_experts), take(num_experts + 1), take(slots),
      take(slots), take(1)};
  const int32_t before = kErrorNanLogit;  // bits of others stay
  check(cudaMemcpy(arguments.error, &before, 4, cudaMemcpyDefault));
  cuda::route(arguments, scratch.data(), nullptr);
  check(cudaDeviceSynchronize());
  RouteResults results;
  const auto get = [](std::vector<int32_t>* to, const int32_t* from, int64_t size) {
    to->resize(static_cast<size_t>(size));
    check(cudaMemcpy(to->data(), from, to->size() * 4, cudaMemcpyDefault));
  };
  get(&results.counts, arguments.counts, num_experts);
  get(&results.offsets, arguments.offsets, num_experts + 1);
  get(&results.row_slot, arguments.row_slot, slots);
  get(&results.slot_row, arguments.slot_row, slots);
  check(cudaMemcpy(&results.error, arguments.error, 4, cudaMemcpyDefault));
  return results;
}

TEST(CudaRoute, SortsSlotsByExpertInOrder) {
  SKIP_WITHOUT_GPU();
  for (const KernelCase& c : kernel_cases()) {
    if (!c.has_slots) continue;
    const KernelValues values = make_values(c, DType::kF32);
    StoredExperts stored(c, DType::kF32, values, make_previous(c, DType::kF32));
    HostTensor* ids = stored.tensors().front();
    DeviceBuffer placed(static_cast<int64_t>(ids->bytes.size()));
    check(cudaMemcpy(placed.data(), ids->bytes.data(), ids->bytes.size(), cudaMemcpyDefault));
    ids->placed = placed.data() + 256;
    const RouteResults got = run_route(stored.expert_ids(), c.num_experts());
    const Routing want = naive_routing(c, values);
    EXPECT_EQ(got.counts, want.counts) << c;
    EXPECT_EQ(got.offsets, want.offsets) << c;
    EXPECT_EQ(got.row_slot, want.row_slot) << c;
    EXPECT_EQ(got.slot_row, want.slot_row) << c;
    EXPECT_EQ(got.error, kErrorNanLogit | (c.num_bad > 0 ? kErrorBadId : 0)) << c;
  }
}

TEST(CudaRoute, SortsManyBlocksOfSlots) {
  SKIP_WITHOUT_GPU();
  struct Shape {
    int64_t num_tokens, num_choices, num_experts;
  };
  for (const Shape& shape : {Shape{32768, 8, 256}, {511, 3, 1}, {4097, 5, 1500}, {3, 70000, 40}}) {
    const int64_t slots = shape.num_tokens * shape.num_choices;
    std::vector<int32_t> ids(static_cast<size_t>(slots));
    for (int64_t i = 0; i < slots; ++i) {  // squared: skewed to low experts; some are skipped
      const double u = random_uniform(3, 5, static_cast<uint64_t>(i));
      ids[static_cast<size_t>(i)] =
          static_cast<int32_t>(u * u * static_cast<double>(shape.num_experts + 1)) - (i % 97 == 0);
    }
    std::vector<int32_t> row_slot, slot_row(ids.size(), -1), offsets = {0};
    std::vector<std::vector<int32_t>> by_expert(static_cast<size_t>(shape.num_experts));
    for (size_t slot = 0; slot < ids.size(); ++slot) {
      if (ids[slot] >= 0 && ids[slot] < shape.num_experts) {
        by_expert[static_cast<size_t>(ids[slot])].push_back(static_cast<int32_t>(slot));
      }
    }
    for (const std::vector<int32_t>& expert : by_expert) {
      for (const int32_t slot : expert) {
        slot_row[static_cast<size_t>(slot)] = static_cast<int32_t>(row_slot.size());
        row_slot.push_back(slot);
      }
      offsets.push_back(static_cast<int32_t>(row_slot.size()));
    }
    row_slot.resize(ids.size(), -1);
    DeviceBuffer placed(slots * 4);
    check(cudaMemcpy(placed.data(), ids.data(), ids.size() * 4, cudaMemcpyDefault));
    View view;
    view.data = placed.data();
    view.dtype = DType::kI32;
    view.size[0] = shape.num_tokens;
    view.size[1] = shape.num_choices;
    view.stride[0] = shape.num_choices;
    view.stride[1] = 1;
    const RouteResults got = run_route(view, shape.num_experts);
    EXPECT_EQ(got.offsets, offsets);
    EXPECT_TRUE(got.row_slot == row_slot && got.slot_row == slot_row) << shape.num_experts;
    EXPECT_EQ(got.error, kErrorNanLogit);
  }
}

}  // namespace
}  // namespace amoeba::test
