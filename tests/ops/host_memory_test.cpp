// Blocks come back to be used again, and are little more bytes together than once were in use.
#include "ops/host_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace amoeba::ops {
namespace {

constexpr int64_t kMiB = 1 << 20;

int64_t held() { return host_memory_bytes().in_use + host_memory_bytes().kept; }

TEST(HostMemory, HandsOutAgainWhatCameBack) {
  void* first = take_host_memory(8 * kMiB);
  ASSERT_NE(first, nullptr);
  std::memset(first, 1, 8 * kMiB);
  give_back_host_memory(first);
  void* smaller = take_host_memory(7 * kMiB + 1);
  EXPECT_EQ(smaller, first);
  void* other = take_host_memory(8 * kMiB);
  EXPECT_NE(other, first);
  std::memset(other, 2, 8 * kMiB);
  std::memset(smaller, 3, 7 * kMiB);
  EXPECT_EQ(static_cast<char*>(other)[0], 2);
  give_back_host_memory(smaller);
  give_back_host_memory(other);
}

TEST(HostMemory, HoldsLittleMoreThanWasOnceInUse) {
  int64_t most = held();                           // as no test before has blocks left in use
  for (int64_t size = 1; size <= 64; size *= 2) {  // no block fits the next size
    void* block = take_host_memory(size * kMiB);
    ASSERT_NE(block, nullptr);
    most = std::max(most, host_memory_bytes().in_use);
    EXPECT_LE(held(), most / 4 * 5) << size;
    give_back_host_memory(block);
    EXPECT_LE(held(), most / 4 * 5) << size;
  }
  EXPECT_EQ(host_memory_bytes().in_use, 0);
  EXPECT_GE(host_memory_bytes().kept, 64 * kMiB);
}

TEST(HostMemory, GivesNothingWhereThereIsNone) {
  EXPECT_EQ(take_host_memory(int64_t{1} << 60), nullptr);
  EXPECT_EQ(host_memory_bytes().in_use, 0);
}

TEST(HostMemory, ServesThreads) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&wrong, t] {
      for (int i = 0; i < 200; ++i) {
        const auto size = static_cast<size_t>(kMiB + i % 3 * 4096);
        auto* block = static_cast<char*>(take_host_memory(static_cast<int64_t>(size)));
        block[0] = block[size - 1] = static_cast<char>(t);
        std::this_thread::yield();
        wrong[t] += block[0] != static_cast<char>(t) || block[size - 1] != static_cast<char>(t);
        give_back_host_memory(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
  EXPECT_EQ(host_memory_bytes().in_use, 0);
}

}  // namespace
}  // namespace amoeba::ops
