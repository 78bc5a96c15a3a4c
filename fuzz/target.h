// What is fuzzed: for each kind of file one entry, bytes in, accepted or refused out. Whatever was
// accepted is written again and read again, and must be the same.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"
#include "fuzz/input_files.h"
#include "support/memory_file_system.h"

namespace amoeba::fuzz {

struct Target {
  const char* name;
  // Whether the bytes were accepted. Refusing is throwing amoeba::Error, inside; what escapes is a
  // defect.
  bool (*run)(std::string_view data);
  // Reads and no more: what reading costs.
  void (*read)(std::string_view data);
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

inline bool same_tensors(const std::vector<formats::TensorEntry>& a,
                         const std::vector<formats::TensorEntry>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
    return x.name == y.name && x.dtype == y.dtype && x.shape == y.shape &&
           std::ranges::equal(x.data, y.data);
  });
}

// A safetensors file with that header and any data.
inline std::string safetensors_text(const std::string& header, size_t num_data) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(header.size() >> (8 * i));
  return text + header + std::string(num_data, 'x');
}

// The entries, each in targets/NAME.cpp.
extern const Target kConfigToml, kConfigJson, kSafetensors, kManifest, kTokenizer, kTokenIndex,
    kTokenNpy, kTokenLlmc, kJsonLines, kMetrics, kHfConfig, kHfWeights;

}  // namespace amoeba::fuzz
