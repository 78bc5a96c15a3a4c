#include "formats/regex.h"

#include <gtest/gtest.h>

#include <vector>

#include "support/errors.h"

namespace amoeba::formats {
namespace {

std::vector<std::string> matches(const std::string& pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  std::vector<std::string> found;
  for (size_t start = 0; start < text.size();) {
    const auto match = regex.find(text, start);
    if (!match) break;
    found.emplace_back(text.substr(match->begin, match->end - match->begin));
    start = match->end;
  }
  return found;
}

TEST(Regex, Finds) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(matches("\\p{L}+", "ab \u00E9\u4E00 1"), (Texts{"ab", "\u00E9\u4E00"}));
  EXPECT_EQ(matches("\\p{N}{1,3}", "12345"), (Texts{"123", "45"}));
  EXPECT_EQ(matches("\\s+(?!\\S)|\\s+", "a   b"), (Texts{"  ", " "}));
  EXPECT_EQ(matches("\\s+$", "a \nb \n"), (Texts{" ", " \n"}));  // $: at every line
  EXPECT_EQ(matches("[^\\s]", "\u2003\u180E"), (Texts{"\u180E"}));
  EXPECT_EQ(matches("\\S", "\u00A0\u180E"), (Texts{"\u180E"}));
  EXPECT_EQ(matches("(?i:'s)", "'S'\u017F"), (Texts{"'S", "'\u017F"}));
}

TEST(Regex, ALongTextNeedsNoStack) {
  const std::string spaces(3'000'000, ' ');
  EXPECT_EQ(matches("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", spaces), std::vector<std::string>{spaces});
  const std::string letters(1'000'000, 'a');
  EXPECT_EQ(matches("(?:a|b)+", letters), std::vector<std::string>{letters});
}

TEST(Regex, RefusesWhatMeansSomethingElse) {
  const std::pair<const char*, const char*> cases[] = {
      {"\\h", "\\h"},     {"\\w+", "\\w"},        {"\\bx", "\\b"},   {"a\\v", "\\v"},
      {"[\\S]", "\\S"},   {"[a[b]]", "[b"},       {"[a&&b]", "&&"},  {"[[:alpha:]]", "[["},
      {"(?m:a)", "(?m:"}, {"(?<name>a)", "(?<n"}, {"a{1,2}+", "}+"}, {"a{2}?", "}?"},
      {"a\\", "\\"},
  };
  for (const auto& [pattern, syntax] : cases) {
    const std::string message = test::error_message(ErrorKind::kData, [&] { Regex(pattern, "f"); });
    EXPECT_EQ(message.find(std::string("f: pattern '") + pattern + "' "), 0u) << message;
    EXPECT_NE(message.find(syntax), message.npos) << message;
  }
  EXPECT_EQ(test::error_message(ErrorKind::kData, [] { Regex("(a", "f"); }),
            "f: pattern '(a' does not compile: missing closing parenthesis");
}

}  // namespace
}  // namespace amoeba::formats
