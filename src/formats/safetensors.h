// The safetensors file format (huggingface/safetensors): 8-byte little-endian header length, a JSON
// header, then the tensors' bytes without holes. Strict reader: every rule of the format is checked
// before a byte of data is touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"

namespace amoeba::formats {

struct TensorEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", "F16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  // exactly product(shape) * size(dtype) bytes
};

// Bytes of one element, or 0 for an unknown dtype name.
int64_t dtype_size(const std::string& dtype);

// Writes `tensors` in the given order (names unique) and `metadata` (string to string) as one file,
// then syncs it. The header is padded with spaces so that data starts at a multiple of 8.
void write_safetensors(FileSystem& files, const std::string& path,
                       std::span<const TensorEntry> tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

// The same with bytes that exist one tensor at a time: the entries' data is not read, `data_of` is
// called once for each in order, and what it returns is written before the next call.
using TensorDataOf = std::function<std::span<const std::byte>(const TensorEntry& tensor)>;
void write_safetensors(FileSystem& files, const std::string& path,
                       std::span<const TensorEntry> tensors, const TensorDataOf& data_of,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

// A mapped file; the entries' data points into it and lives as long as it does.
struct SafetensorsFile {
  std::unique_ptr<MappedFile> mapping;
  std::vector<TensorEntry> tensors;  // sorted by offset
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Throws Error(kData) naming the file and the broken rule: header over 100 MB or past the end, not
// an object, duplicate or missing key, unknown dtype, negative or overflowing shape, offsets that
// overlap, leave holes or trailing bytes, length that disagrees with shape and dtype.
SafetensorsFile read_safetensors(FileSystem& files, const std::string& path);

}  // namespace amoeba::formats
