// Text that is safe to write out: model output is bytes, JSON and HTML are UTF-8, and numbers are
// to look the same in every locale.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace amoeba::train {

// Bytes of the well-formed UTF-8 sequence at the start of `text`, 0 when there is none
// (Unicode 15, table 3-7: no overlong forms, surrogates or values above U+10FFFF).
std::size_t utf8_sequence_length(std::string_view text);

// Each byte that belongs to no well-formed sequence becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

// `value` with so many decimals: fixed(1.5, 2) == "1.50"; "nan", "inf" and "-inf" as such.
std::string fixed(double value, int decimals);

}  // namespace amoeba::train
