// Deterministic damage for robustness tests of parsers.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace amoeba::test {

// `seed` with one to four random edits: a byte changed, a piece removed, repeated, or moved, or
// punctuation that parsers care about put in. The same (seed, index) gives the same text.
inline std::string mutated(std::string_view seed, uint64_t index) {
  static constexpr std::string_view kPunctuation = "{}[]\",:=.'#\\\n\0\x80\xC3\xFF-+e09tfn_ ";
  std::mt19937_64 random(index);
  const auto below = [&](size_t bound) { return bound == 0 ? 0 : random() % bound; };

  std::string text(seed);
  const size_t num_edits = 1 + below(4);
  for (size_t edit = 0; edit < num_edits && !text.empty(); ++edit) {
    const size_t at = below(text.size());
    const size_t length = 1 + below(8);
    const std::string piece = text.substr(at, length);
    switch (below(6)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, piece);
        break;
      case 3:
        text.erase(at, length).insert(below(text.size() + 1), piece);
        break;
      case 4:
        text.insert(at, 1, kPunctuation[below(kPunctuation.size())]);
        break;
      default:
        text.resize(at);
        break;
    }
  }
  return text;
}

}  // namespace amoeba::test
