// UTF-8, NFC and lower case: what the normalizers of tokenizers need.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace amoeba::formats {

inline constexpr char32_t kReplacement = 0xFFFD;

// Reads the character at text[at] and moves `at` behind it. An ill-formed sequence gives
// kReplacement for each maximal part of it (Unicode standard, section 3.9, as Python and WHATWG
// do), and sets `*ill_formed` when that is given. at < text.size().
char32_t read_character(std::string_view text, size_t& at, bool* ill_formed = nullptr);

void append_character(std::string& text, char32_t character);

bool is_utf8(std::string_view text);
// `text` with each maximal ill-formed part replaced by U+FFFD.
std::string to_utf8(std::string_view text);

// Both want valid UTF-8. Normalization form C (Unicode annex 15); lower case of each character on
// its own, without regard to its neighbours.
std::string nfc(std::string_view text);
std::string lower_case(std::string_view text);

// ---- Tables, generated: sorted by code point ----------------------------------------------------

struct Decomposition {
  uint32_t character;
  uint32_t first;
  uint32_t second;  // 0: none
  bool composes;    // NFC puts first and second together again
};
struct CombiningClass {
  uint32_t first;
  uint32_t last;
  uint32_t number;  // not 0
};
struct LowerCase {
  uint32_t character;
  uint32_t first;
  uint32_t second;  // 0: none
};
std::span<const Decomposition> decompositions();  // canonical, without Hangul
std::span<const CombiningClass> combining_classes();
std::span<const LowerCase> lower_cases();

}  // namespace amoeba::formats
