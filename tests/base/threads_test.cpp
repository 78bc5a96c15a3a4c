#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace amoeba {
namespace {

TEST(RunInParallel, CallsEveryIndexOnce) {
  for (const int64_t num_threads : {0, 1, 3, 16}) {
    for (const int64_t count : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      run_in_parallel(num_threads, count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& number : calls) EXPECT_EQ(number, 1);
    }
  }
}

TEST(RunInParallel, PassesAnExceptionOnAndStops) {
  std::atomic<int> calls = 0;
  const auto body = [&](int64_t i) {
    ++calls;
    if (i == 3) throw std::runtime_error("third");
  };
  EXPECT_THROW(run_in_parallel(1, 1000, body), std::runtime_error);
  EXPECT_EQ(calls, 4);
  EXPECT_THROW(run_in_parallel(4, 1000, body), std::runtime_error);
}

}  // namespace
}  // namespace amoeba
