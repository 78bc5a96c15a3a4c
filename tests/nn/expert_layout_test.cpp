#include "nn/expert_layout.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error_word.h"

namespace amoeba::nn {
namespace {

using List = std::vector<int64_t>;

List list(const at::Tensor& tensor) {
  EXPECT_EQ(tensor.scalar_type(), at::kLong);
  return {tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel()};
}

at::Tensor tensor(const List& values) {
  return at::tensor(at::ArrayRef<int64_t>(values), at::kLong);
}

TEST(ExpertLayout, PlacesEveryRow) {
  struct Line {
    List counts;
    int64_t num_rows;
    List starts, expert_of, position;
  };
  const Line lines[] = {
      {{3, 0, 2}, 5, {0, 3, 3}, {0, 0, 0, 2, 2}, {0, 1, 2, 0, 1}},
      {{0, 0, 2, 0}, 4, {0, 0, 0, 2}, {2, 2, 4, 4}, {0, 1, 0, 1}},  // two tail rows
      {{0, 0}, 3, {0, 0}, {2, 2, 2}, {0, 1, 2}},
      {{4}, 4, {0}, {0, 0, 0, 0}, {0, 1, 2, 3}},
      {{2, 1}, 0, {0, 2}, {}, {}},
      {{}, 2, {}, {0, 0}, {0, 1}},
      {{}, 0, {}, {}, {}},
  };
  for (const Line& line : lines) {
    const ExpertLayout layout = expert_layout(tensor(line.counts), line.num_rows);
    EXPECT_EQ(list(layout.starts), line.starts);
    EXPECT_EQ(list(layout.expert_of), line.expert_of);
    EXPECT_EQ(list(layout.position), line.position);
  }
}

TEST(ClampCounts, CutsWhatDoesNotFitAndSetsTheErrorBit) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  struct Line {
    List counts;
    int64_t num_rows;
    List clamped;
    bool is_error;
  };
  const Line lines[] = {
      {{3, 0, 2}, 5, {3, 0, 2}, false},
      {{3, 0, 2}, 9, {3, 0, 2}, false},
      {{3, -1, 2}, 5, {3, 0, 2}, true},
      {{3, 4, 2}, 5, {3, 2, 0}, true},
      {{kHuge, kHuge, 1}, 5, {5, 0, 0}, true},
      {{-kHuge, 2, kHuge}, 5, {0, 2, 3}, true},
      {{0, 0}, 0, {0, 0}, false},
      {{1}, 0, {0}, true},
      {{}, 4, {}, false},
  };
  for (const Line& line : lines) {
    const at::Tensor error = at::zeros({1}, at::kInt).fill_(kErrorBadId);  // other bits stay
    EXPECT_EQ(list(clamp_counts(tensor(line.counts), line.num_rows, error)), line.clamped);
    EXPECT_EQ(error.item<int>(), kErrorBadId | (line.is_error ? kErrorCounts : 0));
    EXPECT_EQ(list(clamp_counts(tensor(line.counts), line.num_rows, {})), line.clamped);
  }
}

}  // namespace
}  // namespace amoeba::nn
