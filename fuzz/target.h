// What is fuzzed: for each kind of file one entry, bytes in, accepted or refused out. Whatever was
// accepted is written again and read again, and must be the same.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/memory_file_system.h"

namespace amoeba::fuzz {

struct Target {
  const char* name;
  // Whether the bytes were accepted. Refusing is throwing amoeba::Error, inside; what escapes is a
  // defect.
  bool (*run)(const std::string& data);
  std::vector<std::string> (*seeds)();  // small files that are accepted
};

const std::vector<Target>& targets();

// The second reading differs from the first.
struct RoundTripError : std::logic_error {
  using std::logic_error::logic_error;
};
inline void expect_same(bool same, const std::string& what) {
  if (!same) throw RoundTripError("round trip: " + what + " differs");
}

inline void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

inline std::string as_text(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

// The entries, each in targets/NAME.cpp.
extern const Target kConfigToml, kConfigJson, kSafetensors, kManifest, kTokenizer, kTokenIndex,
    kTokenNpy, kTokenLlmc, kJsonLines, kMetrics;

}  // namespace amoeba::fuzz
