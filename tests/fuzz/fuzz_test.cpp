// The entries of fuzz/ over their seeds and over damaged ones.
#include "fuzz/target.h"

#include <gtest/gtest.h>

#include <iostream>

#include "amoeba/error.h"
#include "support/allocations.h"
#include "support/mutation.h"

namespace amoeba::fuzz {
namespace {

class Fuzz : public testing::TestWithParam<Target> {};

TEST_P(Fuzz, SeedsAreAccepted) {
  for (const std::string& seed : GetParam().seeds()) EXPECT_TRUE(GetParam().run(seed)) << seed;
}

TEST_P(Fuzz, DamagedSeedsAreReadOrRefusedInBoundedMemory) {
  constexpr uint64_t kMutations = 2000;
  constexpr int64_t kMaxBytes = 1 << 20;
  const std::vector<std::string> seeds = GetParam().seeds();
  int64_t accepted = 0, most = 0;
  for (uint64_t i = 0; i < kMutations; ++i) {
    const std::string data = test::mutated(seeds[i % seeds.size()], i);
    const test::HostAllocations allocations;
    accepted += GetParam().run(data);
    most = std::max(most, allocations.peak_bytes());
    ASSERT_LE(allocations.peak_bytes(), kMaxBytes) << "mutation " << i;
  }
  std::cout << GetParam().name << ": " << kMutations << " damaged files, " << accepted
            << " accepted, at most " << most / 1024 << " KiB\n";
  EXPECT_LT(accepted, static_cast<int64_t>(kMutations));
}

// Every `new` of a reading fails once: the failure comes out as it is, and the next reading is as
// if nothing had been. Not where libraries cannot: toml++ allocates in functions that may not
// throw, and a copy of a std::variant that fails is undefined behaviour in libstdc++ 12.
TEST_P(Fuzz, SurvivesEveryAllocationThatFails) {
  const std::string_view name = GetParam().name;
  if (name.starts_with("config_")) GTEST_SKIP() << "toml++ ends the process";
  if (name == "manifest" || name == "metrics" || name == "hf_config") {
    GTEST_SKIP() << "they copy variants";
  }
  const std::string seed = GetParam().seeds()[0];
  ASSERT_TRUE(GetParam().run(seed));
  int64_t num_failures = 0;
  for (bool failed = true; failed; ++num_failures) {
    test::HostAllocations allocations;
    allocations.fail_at(num_failures);
    try {
      GetParam().run(seed);
      failed = allocations.num_calls() > num_failures;  // taken for a refusal
    } catch (const std::bad_alloc&) {
    }
    ASSERT_LT(num_failures, 100'000);
  }
  EXPECT_TRUE(GetParam().run(seed));
  std::cout << GetParam().name << ": " << num_failures - 1 << " allocations failed\n";
}

INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, testing::ValuesIn(targets()),
                         [](const auto& row) { return std::string(row.param.name); });

}  // namespace
}  // namespace amoeba::fuzz
