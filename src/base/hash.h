// 128-bit XXH3 content hash (xxHash library): finds corruption, not an adversary.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace amoeba {

// 32 lower-case hexadecimal digits of XXH3-128, most significant first (as `xxhsum -H2` prints).
std::string xxh3_128_hex(std::span<const std::byte> data);

}  // namespace amoeba
