// GPT-2's way to write bytes as characters in a vocabulary: printable Latin-1 as itself, every
// other byte as one of U+0100 and up.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace amoeba::formats {

char32_t byte_character(unsigned char byte);

// The characters of each byte, as UTF-8.
std::string byte_level_token(std::string_view bytes);
// The bytes that a token stands for; none when it has a character outside the alphabet.
std::optional<std::string> byte_level_text(std::string_view token);

}  // namespace amoeba::formats
