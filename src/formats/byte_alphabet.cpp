#include "formats/byte_alphabet.h"

#include <unordered_map>

#include "formats/unicode.h"

namespace amoeba::formats {

char32_t byte_character(unsigned char byte) {
  const auto prints = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
  };
  if (prints(byte)) return byte;
  char32_t rank = 0;
  for (int b = 0; b < byte; ++b) rank += prints(b) ? 0 : 1;
  return 0x100 + rank;
}

std::string byte_level_token(std::string_view bytes) {
  std::string token;
  for (const char byte : bytes) {
    append_character(token, byte_character(static_cast<unsigned char>(byte)));
  }
  return token;
}

std::optional<std::string> byte_level_text(std::string_view token) {
  static const auto bytes = [] {
    std::unordered_map<char32_t, char> map;
    for (int b = 0; b < 256; ++b) {
      map[byte_character(static_cast<unsigned char>(b))] = static_cast<char>(b);
    }
    return map;
  }();
  std::string text;
  for (size_t at = 0; at < token.size();) {
    const auto found = bytes.find(read_character(token, at));
    if (found == bytes.end()) return std::nullopt;
    text += found->second;
  }
  return text;
}

}  // namespace amoeba::formats
