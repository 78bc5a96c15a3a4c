#include "base/executor.h"

#include <gtest/gtest.h>

#include <vector>

namespace amoeba {
namespace {

TEST(SerialExecutorTest, CoversTheRangeOnceAndSkipsAnEmptyOne) {
  for (int64_t count : {0, 1, 7}) {
    std::vector<int> visits(7, 0);
    const Executor executor = serial_executor();
    executor.parallel_for(
        executor.context, count,
        [](void* context, int64_t begin, int64_t end) {
          ASSERT_LT(begin, end);
          for (int64_t i = begin; i < end; ++i) ++(*static_cast<std::vector<int>*>(context))[i];
        },
        &visits);
    for (int64_t i = 0; i < 7; ++i) EXPECT_EQ(visits[i], i < count ? 1 : 0) << i;
  }
}

}  // namespace
}  // namespace amoeba
