#include "nn/rope.h"

#include <ATen/Context.h>
#include <ATen/ops/randint.h>

#include "amoeba/error.h"
#include "nn/plain.h"
#include "nn/plain_attention.h"
#include "support/errors.h"

namespace amoeba::test {
namespace {

struct TableCase {
  const char* name;
  nn::RopeConfig config;
  int64_t num_positions;
};

class RopeTables : public testing::TestWithParam<TableCase> {};

// Each entry is the fp64 value rounded once.
TEST_P(RopeTables, AgreeWithScalarFp64) {
  const auto& [name, config, num_positions] = GetParam();
  const nn::RopeTable table = nn::make_rope_table(config, num_positions, at::kCPU);
  const std::vector<double> frequencies = plain_frequencies(config);
  const auto pairs = static_cast<int64_t>(frequencies.size());
  ASSERT_EQ(table.cos.sizes(), (at::IntArrayRef{num_positions, pairs}));
  ASSERT_EQ(table.sin.sizes(), (at::IntArrayRef{num_positions, pairs}));
  const double factor = plain_attention_factor(config);
  double worst = 0;  // relative to the factor
  for (int64_t position = 0; position < num_positions; ++position) {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const double angle = static_cast<double>(position) * frequencies[static_cast<size_t>(pair)];
      const float cos = table.cos.const_data_ptr<float>()[position * pairs + pair];
      const float sin = table.sin.const_data_ptr<float>()[position * pairs + pair];
      worst = std::max({worst, std::abs(cos / factor - std::cos(angle)),
                        std::abs(sin / factor - std::sin(angle))});
    }
  }
  // Half an ulp below one, and the last bits of the angle; of a product above one half of the next.
  EXPECT_LE(worst, factor == 1.0 ? 3.1e-8 : 6.1e-8);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RopeTables,
    testing::Values(TableCase{"plain", {.head_dim = 10}, 300},
                    TableCase{"other_theta", {.head_dim = 16, .theta = 50000.0}, 300},
                    TableCase{
                        "deepseek", {.head_dim = 64, .factor = 40.0, .max_seq_len = 16384}, 16384},
                    TableCase{"original_length",  // as long as trained: not stretched
                              {.head_dim = 64, .factor = 40.0, .max_seq_len = 4096},
                              100},
                    TableCase{"step",  // ramp of no length
                              {.head_dim = 2,
                               .factor = 4.0,
                               .beta_fast = 1.0,
                               .original_seq_len = 8,
                               .max_seq_len = 32},
                              32},
                    TableCase{"short",
                              {.head_dim = 6,
                               .theta = 100.0,
                               .factor = 8.0,
                               .beta_fast = 4.0,
                               .original_seq_len = 16,
                               .max_seq_len = 64},
                              64},
                    TableCase{"fractional",  // its ramp from 2.36 to 5.43, not 2 to 6
                              {.head_dim = 24,
                               .theta = 500.0,
                               .factor = 4.0,
                               .beta_fast = 6.0,
                               .beta_slow = 1.5,
                               .original_seq_len = 128,
                               .max_seq_len = 512,
                               .attention_factor = 1.1386,
                               .truncate = false},
                              512},
                    TableCase{"attention_factor",
                              {.head_dim = 14,
                               .factor = 4.0,
                               .original_seq_len = 32,
                               .max_seq_len = 128,
                               .attention_factor = 0.7},
                              128},
                    TableCase{"attention_factor_unstretched",
                              {.head_dim = 14,
                               .factor = 4.0,
                               .original_seq_len = 128,
                               .max_seq_len = 128,
                               .attention_factor = 0.7},
                              128},
                    TableCase{"linear",  // whatever the lengths
                              {.head_dim = 10, .type = nn::RopeType::kLinear, .factor = 2.5},
                              300},
                    TableCase{"llama3",  // as Llama 3.1: pairs of all three kinds
                              {.head_dim = 128,
                               .theta = 500000.0,
                               .type = nn::RopeType::kLlama3,
                               .factor = 8.0,
                               .beta_fast = 4.0,
                               .beta_slow = 1.0,
                               .original_seq_len = 8192},
                              9000}),
    [](const auto& row) { return row.param.name; });

// The ends of the ramp of DeepSeek-V2's shape, worked out by hand: pairs up to 10 keep their
// frequency, pairs from 23 on are divided by the factor.
TEST(Rope, YarnKeepsFastPairsAndStretchesSlowOnes) {
  const nn::RopeConfig config{.head_dim = 64, .factor = 40.0, .max_seq_len = 16384};
  const nn::RopeTable table = nn::make_rope_table(config, 2, at::kCPU);
  const float* sin = table.sin.const_data_ptr<float>() + 32;  // at position 1
  const auto plain = [](int pair) { return std::pow(10000.0, -pair / 32.0); };
  EXPECT_NEAR(sin[10], std::sin(plain(10)), 1e-8);
  EXPECT_NEAR(sin[23] / plain(23), 1.0 / 40, 1e-7);
  EXPECT_LT(sin[11], std::sin(plain(11)));
  EXPECT_GT(sin[22] / plain(22), 1.0 / 40 + 1e-3);
}

// Of Llama 3.1's shape: waves shorter than 2048 positions stay, those longer than 8192 are 8 times
// as long.
TEST(Rope, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const nn::RopeTable table = nn::make_rope_table({.head_dim = 128,
                                                   .theta = 500000.0,
                                                   .type = nn::RopeType::kLlama3,
                                                   .factor = 8.0,
                                                   .beta_fast = 4.0,
                                                   .beta_slow = 1.0,
                                                   .original_seq_len = 8192},
                                                  2, at::kCPU);
  const float* sin = table.sin.const_data_ptr<float>() + 64;  // at position 1
  const auto plain = [](int pair) { return std::pow(500000.0, -pair / 64.0); };
  for (int pair = 0; pair < 64; ++pair) {
    const double wave = 2 * M_PI / plain(pair), ratio = std::asin(sin[pair]) / plain(pair);
    if (wave < 2048) {
      EXPECT_NEAR(ratio, 1.0, 1e-6) << pair;
    } else if (wave > 8192) {
      EXPECT_NEAR(ratio, 1.0 / 8, 1e-6) << pair;
    } else {
      EXPECT_LT(ratio, 1.0) << pair;
      EXPECT_GT(ratio, 1.0 / 8) << pair;
    }
  }
}

TEST(Rope, YarnScaleFactorIsOneUnlessStretched) {
  nn::RopeConfig config{.head_dim = 64, .factor = 40.0, .max_seq_len = 16384};
  // (0.1 * 0.7 * ln 40 + 1)^2 and with 1 in place of 0.7.
  EXPECT_NEAR(nn::yarn_scale_factor(config, 0.7), 1.583122, 1e-6);
  EXPECT_NEAR(nn::yarn_scale_factor(config, 1.0), 1.873854, 1e-6);
  config.max_seq_len = 4096;
  EXPECT_EQ(nn::yarn_scale_factor(config, 0.7), 1.0);
  config = {.head_dim = 64, .max_seq_len = 16384};
  EXPECT_EQ(nn::yarn_scale_factor(config, 0.7), 1.0);
  config = {.head_dim = 64, .type = nn::RopeType::kLinear, .factor = 40.0, .max_seq_len = 16384};
  EXPECT_EQ(nn::yarn_scale_factor(config, 0.7), 1.0);
}

class RopeTypes : public testing::TestWithParam<at::ScalarType> {};

TEST_P(RopeTypes, TurnsTheLastColumnsOnly) {
  at::manual_seed(12);
  const nn::RopeConfig config{.head_dim = 6,
                              .factor = 4.0,
                              .original_seq_len = 8,
                              .max_seq_len = 32,
                              .attention_factor = 1.3};
  const nn::RopeTable table = nn::make_rope_table(config, 32, at::kCPU);
  const at::Tensor positions = at::randint(32, {11}, at::kLong);
  const at::Tensor x = random({11, 3, 13}), dy = random({11, 3, 13});
  const Tensors actual = run_with_gradients(
      [&](const Tensors& in) { return nn::rope(in[0], table, positions); }, {x}, dy, GetParam());
  expect_agrees(
      actual, [&](const Tensors& in) { return plain_rotate(in[0], config, positions); }, {x}, dy,
      GetParam());
  const at::Tensor fixed = x.to(GetParam()).narrow(2, 0, 7);
  const Comparison same = compare_exact(actual[0].narrow(2, 0, 7), fixed);
  EXPECT_TRUE(same) << same.message;
}

INSTANTIATE_TEST_SUITE_P(Types, RopeTypes, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& row) { return std::string(c10::toString(row.param)); });

TEST(Rope, RefusesHeadsNarrowerThanTheTable) {
  const nn::RopeTable table = nn::make_rope_table({.head_dim = 8}, 4, at::kCPU);
  EXPECT_EQ(error_message(ErrorKind::kUsage,
                          [&] {
                            nn::rope(at::zeros({1, 1, 6}), table, at::zeros({1}, at::kLong));
                          }),
            "rope: heads are 6 wide, want at least the table's 8");
  EXPECT_EQ(
      error_message(ErrorKind::kUsage, [&] { nn::make_rope_table({.head_dim = 7}, 4, at::kCPU); }),
      "rope: head_dim is 7, want it even and > 0");
}

}  // namespace
}  // namespace amoeba::test
