// Small text helpers shared by error messages and tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace amoeba {

// The candidate with the smallest Levenshtein distance to `name`, or "" when none is within
// max(2, a third of the name's length). Ties: the first candidate.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

std::vector<std::string> split(std::string_view text, char separator);
std::string join(std::span<const std::string> parts, std::string_view separator);

// `text` fit for a one-line message: control characters as \xNN, cut after `max_size` bytes.
std::string printable(std::string_view text, size_t max_size = 200);

// 1536 -> "1.5 KiB"; up to TiB, one decimal.
std::string format_bytes(int64_t bytes);
// 1234567 -> "1,234,567".
std::string format_count(int64_t value);
// 75 -> "1m15s"; 3700 -> "1h01m"; 4.2 -> "4s"; negative or not finite -> "?".
std::string format_duration(double seconds);

}  // namespace amoeba
