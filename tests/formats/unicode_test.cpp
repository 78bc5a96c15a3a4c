#include "formats/unicode.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace amoeba::formats {
namespace {

std::string utf8(std::u32string_view characters) {
  std::string text;
  for (const char32_t c : characters) append_character(text, c);
  return text;
}

TEST(Unicode, EveryCharacterReadsBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const std::string text = utf8({&c, 1});
    size_t at = 0;
    bool ill_formed = false;
    ASSERT_EQ(read_character(text, at, &ill_formed), c);
    ASSERT_EQ(at, text.size());
    ASSERT_FALSE(ill_formed) << static_cast<uint32_t>(c);
  }
}

// The parts of the Unicode standard's table 3-8 and its neighbours; '?' is one U+FFFD.
TEST(Unicode, ReplacesMaximalIllFormedParts) {
  const std::pair<const char*, const char*> cases[] = {
      {"abc", "abc"},
      {"\x80", "?"},
      {"\xFF", "?"},
      {"\xC0\x80", "??"},
      {"\xC3", "?"},
      {"\xC3(", "?("},
      {"\xE0\x80\x80", "???"},
      {"\xE4\xB8", "?"},
      {"\xE4\xB8 x", "? x"},
      {"\xED\xA0\x80", "???"},
      {"\xF0\x80\x80\x80", "????"},
      {"\xF0\x9F\x98", "?"},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "?\xF0\x9F\x98\x80"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF5\x80", "??"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
       "A",
       "????A"},
  };
  for (const auto& [text, want] : cases) {
    std::string replaced = want;
    for (size_t at; (at = replaced.find('?')) != replaced.npos;) replaced.replace(at, 1, "\uFFFD");
    EXPECT_EQ(to_utf8(text), replaced) << want;
    EXPECT_EQ(is_utf8(text), std::string_view(want) == text) << want;
  }
}

TEST(Unicode, NormalizationFormC) {
  const std::pair<std::u32string, std::u32string> cases[] = {
      {U"", U""},
      {U"plain text", U"plain text"},
      {U"e\u0301", U"\u00E9"},
      {U"xe\u0301y", U"x\u00E9y"},
      {U"\u0301a", U"\u0301a"},             // a mark with nothing before it
      {U"a\u0323\u0302", U"\u1EAD"},        // through two compositions
      {U"a\u0302\u0323", U"\u1EAD"},        // in either order
      {U"\u00E2\u0323", U"\u1EAD"},         // from a composed character
      {U"a\u0301\u0301", U"\u00E1\u0301"},  // the second is blocked
      {U"a\u0345\u0301", U"\u00E1\u0345"},
      {U"\u212B\u2126", U"\u00C5\u03A9"},  // singletons
      {U"\u0958", U"\u0915\u093C"},        // excluded from composition
      {U"\u0344", U"\u0308\u0301"},
      {U"\u1100\u1161\u11A8", U"\uAC01"},  // Hangul L V T
      {U"\uAC00\u11A8\u11A8", U"\uAC01\u11A8"},
      {U"\uAC01\u11A8", U"\uAC01\u11A8"},  // has its tail already
      {U"\u1161\u1100", U"\u1161\u1100"},
      {U"\u0B47\u0B3E\u0B47\u0B57", U"\u0B4B\u0B4C"},  // seconds that are no marks by class
      {U"\u1E9B\u0323", U"\u1E9B\u0323"},
      {U"a\u0315\u0300\u05AE\u0300b", U"\u00E0\u05AE\u0300\u0315b"},  // NormalizationTest.txt
  };
  for (const auto& [text, want] : cases) EXPECT_EQ(nfc(utf8(text)), utf8(want));
}

TEST(Unicode, NormalizingAgainChangesNothing) {
  std::mt19937 random(1);
  std::vector<char32_t> characters = {'a', 'e', ' ', 0x300, 0x301, 0x323, 0x345, 0x1100, 0x1161};
  for (const Decomposition& d : decompositions()) characters.push_back(d.character);
  for (const CombiningClass& run : combining_classes()) characters.push_back(run.first);
  for (int i = 0; i < 3000; ++i) {
    std::u32string text;
    for (int j = 0; j < 12; ++j) text += characters[random() % characters.size()];
    const std::string once = nfc(utf8(text));
    EXPECT_EQ(nfc(once), once);
    // Canonically equal texts become equal ones.
    std::u32string apart;
    for (const char32_t c : text) {
      const Decomposition* found = nullptr;
      for (const Decomposition& d : decompositions()) {
        if (d.character == c) found = &d;
      }
      if (found == nullptr) {
        apart += c;
      } else {
        apart += found->first;
        if (found->second != 0) apart += found->second;
      }
    }
    EXPECT_EQ(nfc(utf8(apart)), once);
  }
}

TEST(Unicode, LowerCase) {
  EXPECT_EQ(lower_case("HeLLo 1\u00C4"), "hello 1\u00E4");
  EXPECT_EQ(lower_case("\u0130"), "i\u0307");
  EXPECT_EQ(lower_case("\u03A3"), "\u03C3");
}

}  // namespace
}  // namespace amoeba::formats
