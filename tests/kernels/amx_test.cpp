// AMX-BF16: the emulated instructions against fp64 and by their rules, those of the CPU against the
// emulated ones, and the refusal where the CPU has none.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "amoeba/error.h"
#include "base/rng.h"
#include "kernels/numbers.h"
#include "support/errors.h"
#include "support/kernels/emulated_tiles.h"
#include "support/kernels/stored.h"
#if defined(__x86_64__)
#include "kernels/cpu/fused/cpu_features.h"
#endif

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::Variant;
using kernels::cpu::kFullTiles;
using kernels::cpu::TileShapes;

#if defined(__x86_64__)
#include "kernels/cpu/fused/tiles_amx.inc"

bool has_amx() { return kernels::cpu::cpu_features().amx_bf16; }
#else
using AmxTiles = EmulatedTiles;  // not run

bool has_amx() { return false; }
#endif

// The operands of one tdpbf16ps in memory: pairs (m, k) on the left, (k, n) on the right.
struct Operands {
  uint16_t left[16][32] = {}, right[16][32] = {};
  float sums[16][16] = {};

  float left_value(int m, int k, int half) const { return value(left[m][2 * k + half]); }
  float right_value(int k, int n, int half) const { return value(right[k][2 * n + half]); }
  static float value(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

uint16_t bf16_of(double value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16);
}

// Values of very different sizes, or any bits at all but NaN and infinity.
Operands random_operands(uint64_t draw, bool any_bits) {
  Operands operands;
  uint64_t counter = 0;
  const auto next = [&] { return random_bits(3, draw, counter++); };
  const auto make = [&]() -> uint16_t {
    const auto bits = static_cast<uint16_t>(next());
    if (any_bits) return (bits & 0x7f80) == 0x7f80 ? bits & 0x807f : bits;
    const double size = std::exp2(static_cast<double>(bits % 13) - 6);
    return bf16_of(size * (random_uniform(3, draw, counter++) - 0.5));
  };
  for (auto& row : operands.left) std::generate(std::begin(row), std::end(row), make);
  for (auto& row : operands.right) std::generate(std::begin(row), std::end(row), make);
  for (auto& row : operands.sums) {
    for (float& sum : row) sum = Operands::value(make());
  }
  return operands;
}

template <typename Tiles>
void multiply_add(Operands& operands, const TileShapes& shapes = kFullTiles) {
  Tiles::configure(shapes);
  Tiles::template load<0>(operands.sums, sizeof operands.sums[0]);
  Tiles::template load<1>(operands.left, sizeof operands.left[0]);
  Tiles::template load<2>(operands.right, sizeof operands.right[0]);
  Tiles::template multiply_add<0, 1, 2>();
  Tiles::template store<0>(operands.sums, sizeof operands.sums[0]);
  Tiles::release();
}

TEST(EmulatedTiles, MultiplyLikeFp64) {
  for (uint64_t draw = 0; draw < 50; ++draw) {
    const Operands before = random_operands(draw, false);
    Operands after = before;
    multiply_add<EmulatedTiles>(after);
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        double exact = before.sums[m][n], size = std::fabs(exact);
        for (int k = 0; k < 16; ++k) {
          for (const int half : {0, 1}) {
            const double product =
                double{before.left_value(m, k, half)} * double{before.right_value(k, n, half)};
            exact += product;
            size += std::fabs(product);
          }
        }
        // 16 additions a chain, two chains, the tile: each rounds by at most half an ulp.
        EXPECT_LE(std::fabs(after.sums[m][n] - exact), 18 * std::exp2(-24) * size)
            << m << " " << n << " of draw " << draw;
      }
    }
  }
}

// One row and column of a product with two pairs.
float sum_of(float sum, std::vector<float> left, std::vector<float> right) {
  Operands operands;
  operands.sums[0][0] = sum;
  for (size_t i = 0; i < left.size(); ++i) {
    operands.left[0][i] = bf16_of(left[i]);
    operands.right[i / 2][i % 2] = bf16_of(right[i]);
  }
  multiply_add<EmulatedTiles>(operands);
  return operands.sums[0][0];
}

TEST(EmulatedTiles, AddFirstAndSecondValuesApartBeforeTheTile) {
  const float big = 0x1p24f;
  // In one chain the 1 would be lost in 2^24: the sum of the pair's halves comes last.
  EXPECT_EQ(sum_of(0, {big, 1, -big, 1}, {1, 1, 1, 1}), 2);
  // Within a chain the order is that of k.
  EXPECT_EQ(sum_of(0, {big, 0, 1, 0, -big, 0}, {1, 1, 1, 1, 1, 1}), 0);
  EXPECT_EQ(sum_of(0, {big, 0, -big, 0, 1, 0}, {1, 1, 1, 1, 1, 1}), 1);
  // The tile's own value is added to the finished sum.
  EXPECT_EQ(sum_of(-big, {big, 1, 0, 1}, {1, 1, 1, 1}), 2);
  EXPECT_EQ(sum_of(1, {big, -big}, {1, 1}), 1);
}

TEST(EmulatedTiles, TakeSubnormalNumbersForZero) {
  const float tiny = 0x1p-127f, smallest = 0x1p-126f;
  EXPECT_EQ(sum_of(0, {tiny}, {0x1p60f}), 0);
  EXPECT_EQ(sum_of(0, {0x1p60f}, {tiny}), 0);
  EXPECT_EQ(sum_of(tiny, {0}, {0}), 0);
  EXPECT_EQ(sum_of(0, {0x1p-64f}, {0x1p-63f}), 0);  // a product that is subnormal
  EXPECT_EQ(sum_of(0, {0x1p-63f}, {0x1p-63f}), smallest);
  EXPECT_EQ(sum_of(-1.5f * smallest, {0x1p-63f}, {0x1p-63f}), 0);  // a sum that is
  EXPECT_TRUE(std::isnan(sum_of(0, {INFINITY}, {0})));
}

TEST(EmulatedTiles, KeepToTheirShapes) {
  TileShapes shapes = {.row_bytes = {20, 12, 20}, .num_rows = {4, 4, 3}};
  const Operands before = random_operands(99, false);
  Operands after = before, cut = before;
  multiply_add<EmulatedTiles>(after, shapes);
  for (int i = 0; i < 16; ++i) {  // what lies outside is as good as zero
    std::fill(cut.left[i] + (i < 4 ? 6 : 0), std::end(cut.left[i]), uint16_t{0});
    std::fill(cut.right[i] + (i < 3 ? 10 : 0), std::end(cut.right[i]), uint16_t{0});
  }
  multiply_add<EmulatedTiles>(cut);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      EXPECT_EQ(after.sums[m][n], m < 4 && n < 5 ? cut.sums[m][n] : before.sums[m][n]);
    }
  }
}

TEST(EmulatedTiles, RefuseWhatTheCpuFaultsOn) {
  const auto message = [](const auto& call) { return error_message(ErrorKind::kUsage, call); };
  EXPECT_EQ(message([] { EmulatedTiles::zero<0>(); }),
            "tilezero: no shapes are configured on this thread");
  EXPECT_EQ(message([] { EmulatedTiles::configure({.palette = 2}); }),
            "ldtilecfg: palette is 2, want 1");
  EXPECT_EQ(message([] { EmulatedTiles::configure({.row_bytes = {65}, .num_rows = {1}}); }),
            "ldtilecfg: register 0 is 1 rows of 65 bytes");
  Operands operands;
  const TileShapes shapes = {.row_bytes = {64, 64, 64}, .num_rows = {16, 16, 15}};
  EXPECT_EQ(message([&] { multiply_add<EmulatedTiles>(operands, shapes); }),
            "tdpbf16ps: [16, 64] += [16, 64] * [15, 64]");
  EXPECT_TRUE(EmulatedTiles::is_configured());
  EmulatedTiles::release();
}

// Multiply-adds of tiles in forward and backward of one expert; none stays configured after.
int64_t num_multiplied(std::string_view variant, int64_t num_rows, bool transposed) {
  KernelCase c;
  c.name = "whole_tiles";
  c.model_dim = 64;
  c.hidden_dim = 32;
  c.counts = {num_rows};
  c.options.transposed = transposed;
  const int64_t before = EmulatedTiles::num_multiplied();
  run_cpu(variant, c, DType::kBF16, make_values(c, DType::kBF16), make_previous(c, DType::kBF16));
  EXPECT_FALSE(EmulatedTiles::is_configured());
  return EmulatedTiles::num_multiplied() - before;
}

TEST(AmxVariant, MultipliesAllButFewRowsByTiles) {
  for (const auto* implementation : unlisted_implementations()) {
    for (const bool transposed : {false, true}) {
      const std::string_view name = implementation->variant.name;
      SCOPED_TRACE(name);
      // 18 R D H operations of 2 * 16 * 16 * 32 each.
      EXPECT_EQ(num_multiplied(name, 32, transposed), 18 * 32 * 64 * 32 / 16384);
      // Dots and columns take few rows, but for backward of transposed weights: 6 R D H.
      EXPECT_EQ(num_multiplied(name, 8, transposed), transposed ? 6 * 16 * 64 * 32 / 16384 : 0);
    }
  }
}

TEST(AmxTiles, GiveTheBitsOfEmulatedOnes) {
  if (!has_amx()) GTEST_SKIP() << "this CPU or operating system does not offer AMX-BF16";
  for (const bool any_bits : {false, true}) {
    for (uint64_t draw = 0; draw < 200; ++draw) {
      const Operands before = random_operands(draw, any_bits);
      Operands emulated = before, native = before;
      multiply_add<EmulatedTiles>(emulated);
      multiply_add<AmxTiles>(native);
      for (int i = 0; i < 256; ++i) {
        const float want = emulated.sums[i / 16][i % 16], got = native.sums[i / 16][i % 16];
        EXPECT_TRUE(std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(want) ||
                    (std::isnan(got) && std::isnan(want)))
            << got << ", want " << want << " at " << i << " of draw " << draw;
      }
    }
  }
}

TEST(AmxVariant, IsListedFirstAndRefusesWhereTheCpuHasNone) {
  const KernelCase& c = kernel_cases().front();
  StoredExperts stored(c, DType::kBF16, make_values(c, DType::kBF16),
                       make_previous(c, c.gradient_dtype(DType::kBF16)));
  const Variant& first = kernels::cpu::variants().front();
#if !defined(__x86_64__)
  GTEST_SKIP() << "not x86-64";
#endif
  ASSERT_EQ(first.name, "amx_bf16");
  const auto choose = [&](std::string_view name) {
    return std::string(kernels::cpu::choose_variant(stored.arguments(), c.options, name).name);
  };
  if (has_amx()) {
    EXPECT_EQ(choose("auto"), "amx_bf16");
  } else {
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { choose("amx_bf16"); }),
              "experts: amx_bf16 refuses: needs AMX-BF16: this CPU or operating system does not "
              "offer it");
    EXPECT_NE(choose("auto"), "amx_bf16");
  }
}

TEST(AmxVariant, IsEmulatedInTestsOnly) {
  for (const Variant& variant : kernels::cpu::variants()) {
    for (const auto* implementation : unlisted_implementations()) {
      EXPECT_NE(variant.name, implementation->variant.name);
    }
  }
  EXPECT_EQ(tested_variants().size(),
            kernels::cpu::variants().size() + unlisted_implementations().size());
}

}  // namespace
}  // namespace amoeba::test
