// Whatever the tokens' borders: the same text, valid UTF-8 at every step, nothing of a stop string.
#include "train/plain/text_stream.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/errors.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {
namespace {

using test::error_message;

struct Streamed {
  std::string text;
  std::vector<std::string> pieces;
  std::string stop_string;
};

// Feeds `bytes` cut behind every position whose bit is set in `cuts`.
Streamed stream(const std::string& bytes, const std::vector<std::string>& stops, uint64_t cuts) {
  TextStream text(stops);
  Streamed out;
  size_t begin = 0;
  for (size_t i = 0; i < bytes.size() && !text.stopped(); ++i) {
    if ((cuts >> i & 1) == 0 && i + 1 < bytes.size()) continue;
    out.pieces.push_back(text.push(bytes.substr(begin, i + 1 - begin)));
    begin = i + 1;
  }
  out.pieces.push_back(text.finish());
  for (const std::string& piece : out.pieces) out.text += piece;
  out.stop_string = text.stop_string();
  return out;
}

struct Case {
  const char* name;
  std::string bytes;
  std::vector<std::string> stops;
  std::string want;
  std::string stop_string;
};

const std::string kBad = "\xEF\xBF\xBD";
const Case kCases[] = {
    {"no_stop", "plain text", {}, "plain text", ""},
    {"in_the_middle", "one. two", {"."}, "one", "."},
    {"at_once", "stop", {"stop"}, "", "stop"},
    {"at_the_end", "a stop", {" stop"}, "a", " stop"},
    {"begun_only", "a sto", {"stop"}, "a sto", ""},
    {"begun_twice", "a stostop!", {"stop"}, "a sto", "stop"},
    {"overlaps_itself", "aaab", {"aab"}, "a", "aab"},
    {"first_to_end", "abcdef", {"bcde", "cd"}, "ab", "cd"},
    {"longest_of_equal_ends", "abcd", {"cd", "bcd"}, "a", "bcd"},
    {"newlines", "x\n\ny", {"\n\n"}, "x", "\n\n"},
    {"characters",
     "\xC3\xA9\xE2\x82\xAC\xF0\x9F\xA6\xA0",
     {},
     "\xC3\xA9\xE2\x82\xAC\xF0\x9F\xA6\xA0",
     ""},
    {"stop_of_characters",
     "a\xE2\x82\xAC\xC3\xA9z",
     {"\xE2\x82\xAC\xC3\xA9"},
     "a",
     "\xE2\x82\xAC\xC3\xA9"},
    {"same_first_byte",
     "\xE2\x82\xAB\xE2\x82\xAC",
     {"\xE2\x82\xAC"},
     "\xE2\x82\xAB",
     "\xE2\x82\xAC"},
    {"ill_formed", "a\xFF\x80z\xE2\x82", {"q"}, "a" + kBad + kBad + "z" + kBad + kBad, ""},
    {"cut_by_a_stop", "a\xE2\x82.b", {"."}, "a" + kBad + kBad, "."},
};

TEST(TextStream, TextDoesNotDependOnTheBorders) {
  for (const Case& c : kCases) {
    ASSERT_LT(c.bytes.size(), 12u);
    for (uint64_t cuts = 0; cuts < uint64_t{1} << c.bytes.size(); ++cuts) {
      const Streamed got = stream(c.bytes, c.stops, cuts);
      ASSERT_EQ(got.text, c.want) << c.name << " " << cuts;
      ASSERT_EQ(got.stop_string, c.stop_string) << c.name << " " << cuts;
      for (const std::string& piece : got.pieces) {
        ASSERT_EQ(piece, replace_invalid_utf8(piece)) << c.name << " " << cuts;
      }
    }
  }
}

// Without stop strings the whole is what replacing in the whole gives.
TEST(TextStream, RandomBytesGiveTheReplacedWhole) {
  constexpr char kBytes[] = {'a',    '\x80', '\xBF', '\xC3', '\xE0',
                             '\xE2', '\x82', '\xF0', '\x9F', '\xFF'};
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::string bytes;
    for (uint64_t i = 0; i < 14; ++i) bytes += kBytes[random_bits(seed, 1, i) % sizeof kBytes];
    EXPECT_EQ(stream(bytes, {}, random_bits(seed, 2, 0)).text, replace_invalid_utf8(bytes)) << seed;
  }
}

TEST(TextStream, ShowsEachCharacterAsSoonAsItIsWhole) {
  TextStream text({"stop"});
  EXPECT_EQ(text.push("a"), "a");
  EXPECT_EQ(text.push("\xE2"), "");
  EXPECT_EQ(text.push("\x82"), "");
  EXPECT_EQ(text.push("\xAC"), "\xE2\x82\xAC");
  EXPECT_EQ(text.push("bs"), "b");
  EXPECT_EQ(text.push("t"), "");
  EXPECT_EQ(text.push("a"), "sta");
  EXPECT_EQ(text.push("sto"), "");
  EXPECT_EQ(text.push("psomething"), "");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.push("more"), "");
  EXPECT_EQ(text.finish(), "");
}

TEST(TextStream, RefusesAnEmptyStop) {
  EXPECT_EQ(error_message(ErrorKind::kUsage,
                          [] {
                            TextStream({"a", ""});
                          }),
            "stop: the string is empty, want at least one character");
}

}  // namespace
}  // namespace amoeba::train
