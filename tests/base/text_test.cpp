#include "base/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace amoeba {
namespace {

using Strings = std::vector<std::string>;

TEST(TextTest, NearestName) {
  const Strings names = {"steps", "seq_len", "local_batch_size", "seed", "seek"};
  const std::pair<const char*, const char*> cases[] = {
      {"step", "steps"},
      {"seq_length", "seq_len"},  // distance 3 = a third of 10
      {"local_batchsize", "local_batch_size"},
      {"seeX", "seed"},  // a tie: the first
      {"sXXXs", ""},     // distance 3 > 2
      {"gradient_accumulation", ""},
      {"", ""},
  };
  for (const auto& [name, want] : cases) EXPECT_EQ(nearest_name(name, names), want) << name;
  EXPECT_EQ(nearest_name("steps", {}), "");
}

TEST(TextTest, SplitKeepsEmptyParts) {
  EXPECT_EQ(split("a,b", ','), (Strings{"a", "b"}));
  EXPECT_EQ(split(",a,,", ','), (Strings{"", "a", "", ""}));
  EXPECT_EQ(split("", ','), (Strings{""}));
}

TEST(TextTest, Join) {
  EXPECT_EQ(join(Strings{"a", "", "b"}, ", "), "a, , b");
  EXPECT_EQ(join(Strings{}, ", "), "");
}

TEST(TextTest, Printable) {
  EXPECT_EQ(printable("a\nb\x7f\x01"), "a\\x0ab\\x7f\\x01");
  EXPECT_EQ(printable("\xc3\xa9"), "\xc3\xa9");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
  EXPECT_EQ(printable("abc", 3), "abc");
}

TEST(TextTest, FormatBytes) {
  constexpr int64_t kKiB = 1024, kMiB = kKiB * 1024, kGiB = kMiB * 1024, kTiB = kGiB * 1024;
  const std::pair<int64_t, const char*> cases[] = {
      {0, "0 B"},
      {1023, "1023 B"},
      {kKiB, "1.0 KiB"},
      {1536, "1.5 KiB"},
      {kMiB - 1, "1.0 MiB"},
      {5 * kMiB, "5.0 MiB"},
      {3 * kGiB / 2, "1.5 GiB"},
      {2048 * kTiB, "2048.0 TiB"},
      {-1536, "-1.5 KiB"},
  };
  for (const auto& [bytes, want] : cases) EXPECT_EQ(format_bytes(bytes), want) << bytes;
}

TEST(TextTest, FormatCount) {
  const std::pair<int64_t, const char*> cases[] = {
      {0, "0"},
      {999, "999"},
      {1000, "1,000"},
      {1234567, "1,234,567"},
      {-999, "-999"},
      {-123456, "-123,456"},
      {std::numeric_limits<int64_t>::min(), "-9,223,372,036,854,775,808"},
  };
  for (const auto& [value, want] : cases) EXPECT_EQ(format_count(value), want);
}

TEST(TextTest, FormatDuration) {
  const std::pair<double, const char*> cases[] = {
      {0, "0s"},     {4.2, "4s"},      {59.4, "59s"},   {59.6, "1m00s"},
      {75, "1m15s"}, {3599, "59m59s"}, {3700, "1h01m"}, {360000, "100h00m"},
      {-1, "?"},     {INFINITY, "?"},  {NAN, "?"},
  };
  for (const auto& [seconds, want] : cases) EXPECT_EQ(format_duration(seconds), want) << seconds;
}

}  // namespace
}  // namespace amoeba
