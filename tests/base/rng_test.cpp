#include "base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/errors.h"

namespace amoeba {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

// Upper bound of a chi-square statistic: mean + 5 standard deviations. The seeds are fixed, so a
// failure is a changed or broken generator, never chance.
double chi_square_bound(int64_t cells) {
  const auto degrees = static_cast<double>(cells - 1);
  return degrees + 5.0 * std::sqrt(2.0 * degrees);
}

double chi_square(const std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (const int64_t count : counts) total += count;
  const double expected = static_cast<double>(total) / static_cast<double>(counts.size());
  double sum = 0;
  for (const int64_t count : counts) {
    sum += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected);
  }
  return sum / expected;
}

// Computed with integers of any length in Python from the formula in rng.h, whose inner function
// gives SplitMix64's published first output 6457827717110365317 for the state 1234567.
TEST(RandomBits, EqualsTheFormula) {
  const struct {
    uint64_t seed, stream, counter, bits;
  } cases[] = {
      {0, 0, 0, 0x238275bc38fcbe91},        {1, 0, 0, 0xb18a02f46d8d86c3},
      {0, 1, 0, 0x2f101fe21496ea20},        {0, 0, 1, 0xf89a2566b5822c54},
      {42, 7, 1000000, 0x901c12e1a8da8a47}, {kMax, kMax, kMax, 0x179f01f0d2fba97a},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(random_bits(c.seed, c.stream, c.counter), c.bits)
        << c.seed << ", " << c.stream << ", " << c.counter;
  }
  EXPECT_EQ(random_uniform(42, 7, 1000000), 0.5629283715178223);
}

TEST(RandomUniform, IsUniformInEveryArgument) {
  constexpr int64_t kCells = 64, kDraws = 64000;
  for (const int argument : {0, 1, 2}) {
    std::vector<int64_t> counts(kCells);
    for (int64_t i = 0; i < kDraws; ++i) {
      uint64_t arguments[3] = {11, 22, 33};
      arguments[argument] = static_cast<uint64_t>(i);
      const double value = random_uniform(arguments[0], arguments[1], arguments[2]);
      ASSERT_GE(value, 0.0);
      ASSERT_LT(value, 1.0);
      ++counts[static_cast<size_t>(value * kCells)];
    }
    EXPECT_LT(chi_square(counts), chi_square_bound(kCells)) << "argument " << argument;
  }
}

TEST(RandomBits, EveryInputBitFlipsHalfOfTheOutputBits) {
  for (int bit = 0; bit < 64; ++bit) {
    for (const int argument : {0, 1, 2}) {
      int64_t flipped = 0;
      for (uint64_t i = 0; i < 256; ++i) {
        uint64_t arguments[3] = {i, 2 * i, 3 * i};
        const uint64_t before = random_bits(arguments[0], arguments[1], arguments[2]);
        arguments[argument] ^= uint64_t{1} << bit;
        flipped +=
            __builtin_popcountll(before ^ random_bits(arguments[0], arguments[1], arguments[2]));
      }
      // 256 * 64 coin flips: mean 8192, standard deviation 64.
      EXPECT_NEAR(static_cast<double>(flipped), 8192.0, 5 * 64.0)
          << "argument " << argument << ", bit " << bit;
    }
  }
}

TEST(Permutation, IsABijectionOfEverySize) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= 300; ++size) sizes.push_back(size);
  for (int64_t power = 512; power <= 65536; power *= 2) {
    for (const int64_t size : {power - 1, power, power + 1}) sizes.push_back(size);
  }
  for (const int64_t prime : {997, 7919, 104729}) sizes.push_back(prime);
  for (const int64_t size : sizes) {
    const Permutation permutation(size, 3, static_cast<uint64_t>(size));
    EXPECT_EQ(permutation.size(), size);
    std::vector<bool> seen(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      const int64_t image = permutation(i);
      ASSERT_TRUE(image >= 0 && image < size) << "size " << size << ", " << i << " -> " << image;
      ASSERT_FALSE(seen[static_cast<size_t>(image)]) << "size " << size << ", twice " << image;
      seen[static_cast<size_t>(image)] = true;
    }
  }
}

TEST(Permutation, TakesTheLargestSizes) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  const Permutation permutation(kLargest, 1, 2);
  EXPECT_NE(permutation(0), permutation(kLargest - 1));
  EXPECT_LT(permutation(12345), kLargest);
}

TEST(Permutation, SendsEveryIndexEverywhereEquallyOften) {
  constexpr int64_t kStreams = 6000;
  for (const int64_t size : {2, 3, 5, 16, 17, 30}) {
    for (const int64_t index : {int64_t{0}, size / 2, size - 1}) {
      std::vector<int64_t> counts(static_cast<size_t>(size));
      for (int64_t stream = 0; stream < kStreams; ++stream) {
        ++counts[static_cast<size_t>(Permutation(size, 9, static_cast<uint64_t>(stream))(index))];
      }
      EXPECT_LT(chi_square(counts), chi_square_bound(size))
          << "size " << size << ", index " << index;
    }
  }
}

TEST(Permutation, PairsOfImagesAreEquallyFrequent) {
  constexpr int64_t kSize = 12, kStreams = 40000;
  std::vector<int64_t> counts;
  std::vector<std::vector<int64_t>> table(kSize, std::vector<int64_t>(kSize));
  for (int64_t stream = 0; stream < kStreams; ++stream) {
    const Permutation permutation(kSize, 5, static_cast<uint64_t>(stream));
    ++table[static_cast<size_t>(permutation(3))][static_cast<size_t>(permutation(4))];
  }
  for (size_t a = 0; a < kSize; ++a) {
    EXPECT_EQ(table[a][a], 0);
    for (size_t b = 0; b < kSize; ++b) {
      if (a != b) counts.push_back(table[a][b]);
    }
  }
  EXPECT_LT(chi_square(counts), chi_square_bound(static_cast<int64_t>(counts.size())));
}

TEST(Permutation, DependsOnSeedAndStream) {
  const Permutation base(1000, 1, 1), seed(1000, 2, 1), stream(1000, 1, 2), same(1000, 1, 1);
  int64_t equal_seed = 0, equal_stream = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    EXPECT_EQ(base(i), same(i));
    equal_seed += base(i) == seed(i);
    equal_stream += base(i) == stream(i);
  }
  EXPECT_LT(equal_seed, 10);  // one is expected
  EXPECT_LT(equal_stream, 10);
}

TEST(Permutation, RefusesSizesAndIndicesOutOfRange) {
  const auto message = [](int64_t size, int64_t index) {
    return test::error_message(ErrorKind::kUsage, [&] { Permutation(size, 0, 0)(index); });
  };
  EXPECT_EQ(message(0, 0), "Permutation: size is 0, want at least 1");
  EXPECT_EQ(message(-1, 0), "Permutation: size is -1, want at least 1");
  EXPECT_EQ(message(5, 5), "Permutation: index is 5, want 0 to 4");
  EXPECT_EQ(message(5, -1), "Permutation: index is -1, want 0 to 4");
}

}  // namespace
}  // namespace amoeba
