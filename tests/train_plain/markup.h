// A strict reader of the markup our code writes: finds what a forgiving browser would hide.
#pragma once

#include <string>
#include <string_view>

namespace amoeba::test {

// "" for well-formed markup: tags balanced, attributes double-quoted and unique, & only as an
// entity that is known, text without stray brackets, no control characters. Otherwise what is
// wrong, and where.
std::string markup_error(std::string_view markup);

// The value of `attribute` in the tag that holds the first `mark`; "" when there is none.
std::string attribute_after(std::string_view markup, std::string_view mark,
                            std::string_view attribute);

}  // namespace amoeba::test
