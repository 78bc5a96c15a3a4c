#include "train/plain/plain_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace amoeba::train {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

TEST(PlainText, InvalidUtf8IsReplacedByteByByte) {
  struct Case {
    std::string text, want;
  };
  const Case cases[] = {
      {"", ""},
      {"plain", "plain"},
      {"\xC3\xA9", "\xC3\xA9"},                         // U+00E9
      {"\xF0\x9F\xA6\xA0", "\xF0\x9F\xA6\xA0"},         // U+1F9A0
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},         // U+10FFFF
      {"a\xFFz", "a" + kBad + "z"},                     // never a lead
      {"\x80", kBad},                                   // continuation alone
      {"\xC3", kBad},                                   // cut short
      {"\xE2\x82", kBad + kBad},                        // cut short
      {"\xC0\x80", kBad + kBad},                        // overlong
      {"\xE0\x80\x80", kBad + kBad + kBad},             // overlong
      {"\xED\xA0\x80", kBad + kBad + kBad},             // surrogate
      {"\xF4\x90\x80\x80", kBad + kBad + kBad + kBad},  // above U+10FFFF
      {"\xE2\x82z", kBad + kBad + "z"},                 // the letter survives
  };
  for (const Case& c : cases) EXPECT_EQ(replace_invalid_utf8(c.text), c.want) << c.text;
}

TEST(PlainText, FixedDecimals) {
  EXPECT_EQ(fixed(1.5, 2), "1.50");
  EXPECT_EQ(fixed(-0.125, 3), "-0.125");
  EXPECT_EQ(fixed(2.0, 0), "2");
  EXPECT_EQ(fixed(std::nan(""), 4), "nan");
  EXPECT_EQ(fixed(-std::nan(""), 4), "nan");
  EXPECT_EQ(fixed(std::numeric_limits<double>::infinity(), 4), "inf");
  EXPECT_EQ(fixed(-std::numeric_limits<double>::infinity(), 4), "-inf");
  EXPECT_EQ(fixed(std::numeric_limits<double>::max(), 2).size(), 309u + 3u);
}

}  // namespace
}  // namespace amoeba::train
