#include "train/plain/axis.h"

#include <gtest/gtest.h>

#include <limits>

namespace amoeba::train {
namespace {

using Ticks = std::vector<double>;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string text_of(const Ticks& ticks) {
  std::string text;
  for (const double tick : ticks) text += short_number(tick, 6) + " ";
  return text;
}

TEST(Axis, LinearAxesEndAtNiceTicks) {
  struct Case {
    double low, high;
    int max_ticks;
    std::string want;
  };
  const Case cases[] = {
      {0, 1, 5, "0 0.2 0.4 0.6 0.8 1 "},
      {1.37, 5.52, 6, "1 2 3 4 5 6 "},
      {0, 18374, 4, "0 5k 10k 15k 20k "},
      {0, 0.003, 4, "0 0.001 0.002 0.003 "},
      {-3, 7, 4, "-5 0 5 10 "},
      {2, 2, 4, "1.8 1.9 2 2.1 2.2 "},  // one value gets room around it
      {0, 0, 4, "-1 -0.5 0 0.5 1 "},
      {-5e-8, -1e-8, 4, "-5e-8 -4e-8 -3e-8 -2e-8 -1e-8 "},
  };
  for (const Case& c : cases) {
    const Axis axis = linear_axis(c.low, c.high, c.max_ticks);
    EXPECT_EQ(text_of(axis.ticks), c.want);
    EXPECT_LE(axis.low, c.low);
    EXPECT_GE(axis.high, c.high);
    EXPECT_FALSE(axis.logarithmic);
  }
}

TEST(Axis, LogarithmicAxesHaveTicksAtPowersOfTen) {
  struct Case {
    double low, high;
    int max_ticks;
    std::string want;
    double want_low, want_high;
  };
  const Case cases[] = {
      {0.03, 45, 5, "0.1 1 10 ", 0.03, 50},
      {1, 1000, 5, "1 10 100 1k ", 1, 1000},
      {2e-9, 3e9, 4, "1e-8 0.001 100 10M ", 2e-9, 3e9},
  };
  for (const Case& c : cases) {
    const Axis axis = log_axis(c.low, c.high, c.max_ticks);
    EXPECT_EQ(text_of(axis.ticks), c.want);
    EXPECT_DOUBLE_EQ(axis.low, c.want_low);
    EXPECT_DOUBLE_EQ(axis.high, c.want_high);
    EXPECT_TRUE(axis.logarithmic);
  }
}

TEST(Axis, StepAxesHaveWholeTicksInsideTheData) {
  EXPECT_EQ(step_axis(0, 520, 6).ticks, (Ticks{0, 100, 200, 300, 400, 500}));
  EXPECT_EQ(step_axis(0, 2, 10).ticks, (Ticks{0, 1, 2}));
  EXPECT_EQ(step_axis(7, 7, 10).ticks, (Ticks{7, 8}));
  EXPECT_EQ(step_axis(199, 470, 3).ticks, (Ticks{200, 300, 400}));
}

TEST(Axis, ShortNumbers) {
  struct Case {
    double value;
    int digits;
    std::string want;
  };
  const Case cases[] = {
      {0, 3, "0"},           {950, 3, "950"},       {1000, 3, "1k"},      {18374, 3, "18.4k"},
      {1234567, 3, "1.23M"}, {2.5e9, 3, "2.5G"},    {6.71e11, 3, "671G"}, {1.5e12, 3, "1.5T"},
      {-2000, 3, "-2k"},     {0.0005, 3, "0.0005"}, {5e-5, 3, "5e-5"},    {1e-10, 3, "1e-10"},
      {1e20, 3, "1e20"},     {1.4181, 4, "1.418"},  {kNan, 3, "nan"},     {1250, 6, "1.25k"},
  };
  for (const Case& c : cases) EXPECT_EQ(short_number(c.value, c.digits), c.want);
}

}  // namespace
}  // namespace amoeba::train
