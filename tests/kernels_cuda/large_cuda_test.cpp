// More than 2^31 elements of rows: a period of tokens, repeated, gives the bits of one period.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "kernels_cuda/device.h"

namespace amoeba::test {
namespace {

namespace cuda = kernels::cuda;
using kernels::DType;
using kernels::View;

constexpr int64_t kPeriod = 8;  // tokens
constexpr int64_t kModelDim = 8192;
constexpr int64_t kHiddenDim = 64;
constexpr int64_t kChoices = 2;
constexpr int64_t kExperts = 3;

View view(const DeviceBuffer& buffer, DType dtype, int64_t a, int64_t b, int64_t c = 0) {
  View v;
  v.data = buffer.data();
  v.dtype = dtype;
  v.size[0] = a, v.size[1] = b, v.size[2] = c;
  v.stride[2] = c > 0 ? 1 : 0;
  v.stride[1] = c > 0 ? c : 1;
  v.stride[0] = b * v.stride[1];
  return v;
}

// `count` bf16 values of a quarter's steps within [-1, 1].
std::vector<uint16_t> random_bf16(uint64_t stream, int64_t count) {
  constexpr uint16_t kValues[] = {0xbf80, 0xbf40, 0xbf00, 0xbe80, 0,
                                  0x3e80, 0x3f00, 0x3f40, 0x3f80};
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = kValues[static_cast<size_t>(random_uniform(1, stream, i) * 9)];
  }
  return values;
}

// The bytes of `period` again and again.
template <typename Element>
void fill(const DeviceBuffer& to, const std::vector<Element>& period, int64_t num_periods) {
  const int64_t bytes = static_cast<int64_t>(period.size() * sizeof(Element));
  check(cudaMemcpy(to.data(), period.data(), static_cast<size_t>(bytes), cudaMemcpyDefault));
  for (int64_t done = 1; done < num_periods; done *= 2) {
    check(cudaMemcpy(to.data() + done * bytes, to.data(),
                     static_cast<size_t>(std::min(done, num_periods - done) * bytes),
                     cudaMemcpyDefault));
  }
}

struct Outputs {
  std::vector<uint16_t> y, dx;
  std::vector<float> dscores;
};

Outputs run(std::string_view variant_name, int64_t num_periods) {
  const int64_t tokens = num_periods * kPeriod;
  const int64_t rows = tokens * kChoices;
  DeviceBuffer x(tokens * kModelDim * 2), dy(tokens * kModelDim * 2), y(tokens * kModelDim * 2),
      dx(tokens * kModelDim * 2), scores(rows * 4), dscores(rows * 4), ids(rows * 4),
      integers((2 * kExperts + 2 * rows + 2) * 4);
  const int64_t matrix = kExperts * kHiddenDim * kModelDim;
  DeviceBuffer gate(matrix * 2), up(matrix * 2), down(matrix * 2), dgate(matrix * 2),
      dup(matrix * 2), ddown(matrix * 2);
  fill(x, random_bf16(1, kPeriod * kModelDim), num_periods);
  fill(dy, random_bf16(2, kPeriod * kModelDim), num_periods);
  fill(scores,
       std::vector<float>{0.5f, 0.25f, 1, 0.75f, 0.125f, 1, 0.5f, 0.5f, 0.25f, 1, 1, 0.5f, 0.75f,
                          0.25f, 1, 0.5f},
       num_periods);
  fill(ids, std::vector<int32_t>{0, 1, 2, 0, 1, 2, 2, 1, 0, 2, 1, 0, 0, 1, 2, 1}, num_periods);
  fill(gate, random_bf16(3, matrix), 1);
  fill(up, random_bf16(4, matrix), 1);
  fill(down, random_bf16(5, matrix), 1);
  check(cudaMemset(integers.data(), 0, static_cast<size_t>((2 * kExperts + 2 * rows + 2) * 4)));

  kernels::RouteArguments routing;
  routing.expert_ids = view(ids, DType::kI32, tokens, kChoices);
  routing.num_experts = kExperts;
  routing.counts = reinterpret_cast<int32_t*>(integers.data());
  routing.offsets = routing.counts + kExperts;
  routing.row_slot = routing.offsets + kExperts + 1;
  routing.slot_row = routing.row_slot + rows;
  routing.error = routing.slot_row + rows;
  DeviceBuffer route_scratch(cuda::route_scratch_bytes(rows, kExperts) + 1);
  cuda::route(routing, route_scratch.data(), nullptr);

  kernels::ExpertsArguments arguments;
  arguments.x = view(x, DType::kBF16, tokens, kModelDim);
  arguments.scores = view(scores, DType::kF32, tokens, kChoices);
  arguments.offsets = routing.offsets;
  arguments.row_slot = routing.row_slot;
  arguments.slot_row = routing.slot_row;
  arguments.gate_up[0] = view(gate, DType::kBF16, kExperts, kHiddenDim, kModelDim);
  arguments.gate_up[1] = view(up, DType::kBF16, kExperts, kHiddenDim, kModelDim);
  arguments.down = view(down, DType::kBF16, kExperts, kModelDim, kHiddenDim);
  arguments.num_rows = rows;
  arguments.num_experts = kExperts;
  arguments.hidden_dim = kHiddenDim;
  arguments.error = routing.error;
  kernels::ExpertsGradients gradients;
  gradients.dx = view(dx, DType::kBF16, tokens, kModelDim);
  gradients.dscores = view(dscores, DType::kF32, tokens, kChoices);
  gradients.dgate_up[0] = view(dgate, DType::kBF16, kExperts, kHiddenDim, kModelDim);
  gradients.dgate_up[1] = view(dup, DType::kBF16, kExperts, kHiddenDim, kModelDim);
  gradients.ddown = view(ddown, DType::kBF16, kExperts, kModelDim, kHiddenDim);

  const kernels::ExpertsOptions options;
  const kernels::Variant& variant = cuda::choose_variant(arguments, options, variant_name);
  const kernels::WorkspaceSizes sizes = cuda::workspace(variant, arguments, options);
  DeviceBuffer saved(sizes.saved_bytes);
  DeviceBuffer scratch(std::max(sizes.forward_scratch_bytes, sizes.backward_scratch_bytes));
  cuda::experts_forward(variant, arguments, options, view(y, DType::kBF16, tokens, kModelDim),
                        saved.data(), scratch.data(), nullptr);
  cuda::experts_backward(variant, arguments, options, view(dy, DType::kBF16, tokens, kModelDim),
                         saved.data(), gradients, scratch.data(), nullptr);
  check(cudaDeviceSynchronize());
  Outputs out;
  const auto get = [](auto* to, const DeviceBuffer& from, int64_t count) {
    to->resize(static_cast<size_t>(count));
    check(cudaMemcpy(to->data(), from.data(), to->size() * sizeof((*to)[0]), cudaMemcpyDefault));
  };
  get(&out.y, y, tokens * kModelDim);
  get(&out.dx, dx, tokens * kModelDim);
  get(&out.dscores, dscores, rows);
  return out;
}

// Periods of `big` that differ from `small`, one period.
template <typename Element>
int64_t num_different(const std::vector<Element>& big, const std::vector<Element>& small) {
  int64_t count = 0;
  for (size_t at = 0; at < big.size(); at += small.size()) {
    count += std::memcmp(&big[at], small.data(), small.size() * sizeof(Element)) == 0 ? 0 : 1;
  }
  return count;
}

TEST(CudaLarge, RowsOfMoreThanTwoToTheThirtyOneElements) {
  SKIP_WITHOUT_GPU();
  constexpr int64_t kPeriods = (int64_t{1} << 31) / (kPeriod * kChoices * kModelDim) + 33;
  static_assert(kPeriods * kPeriod * kChoices * kModelDim > int64_t{1} << 31);
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (free_bytes < size_t{24} << 30) GTEST_SKIP() << "less than 24 GiB of free device memory";
  for (const kernels::Variant& variant : cuda::variants()) {
    const Outputs small = run(variant.name, 1);
    const Outputs big = run(variant.name, kPeriods);
    EXPECT_EQ(num_different(big.y, small.y), 0) << variant.name;
    EXPECT_EQ(num_different(big.dx, small.dx), 0) << variant.name;
    EXPECT_EQ(num_different(big.dscores, small.dscores), 0) << variant.name;
    EXPECT_TRUE(std::any_of(small.y.begin(), small.y.end(), [](uint16_t v) { return v != 0; }));
  }
}

}  // namespace
}  // namespace amoeba::test
