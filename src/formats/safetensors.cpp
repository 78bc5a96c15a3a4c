// The reader takes the JSON events as they come instead of building a document: duplicate keys stay
// visible, nesting is limited by what an event may follow, and memory stays near the header's size.
#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::formats {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kLengthBytes = 8;
// A dimension takes 8 bytes where "1," takes two, an entry of the metadata 64 where "a":"", takes
// seven: files have a handful.
constexpr size_t kMaxDimensions = 64;
constexpr size_t kMaxMetadata = 4096;
// What the shortest tensor takes of a header: "a":{"dtype":"U8","shape":[],"data_offsets":[0,0]},
constexpr size_t kMinTensorBytes = 50;

struct DtypeSize {
  std::string_view name;
  int64_t bytes;
};
// The format's types that fill whole bytes; its packed F4 and F6 types are not taken.
constexpr DtypeSize kDtypeSizes[] = {
    {"BOOL", 1},    {"U8", 1},          {"I8", 1},          {"F8_E5M2", 1}, {"F8_E4M3", 1},
    {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"I16", 2},     {"U16", 2},
    {"F16", 2},     {"BF16", 2},        {"I32", 4},         {"U32", 4},     {"F32", 4},
    {"C64", 8},     {"F64", 8},         {"I64", 8},         {"U64", 8},
};

std::string shape_text(const std::vector<int64_t>& shape) {
  constexpr size_t kShown = 16;
  std::string text = "[";
  for (size_t i = 0; i < std::min(shape.size(), kShown); ++i) {
    text += cat(i == 0 ? "" : ", ", shape[i]);
  }
  return text + (shape.size() > kShown ? ", ...]" : "]");
}

// Bytes of a tensor, or -1 when they do not fit into int64.
int64_t tensor_bytes(const std::vector<int64_t>& shape, int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return -1;
  }
  return bytes;
}

// ---------------------------------------------------------------------------------------------------

struct HeaderTensor {
  TensorEntry entry;  // without data
  uint64_t begin = 0;
  uint64_t end = 0;
};

class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  std::vector<HeaderTensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;

  template <typename... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(ErrorKind::kData, cat("read safetensors '", path_, "': ", parts...));
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
    } else if (place_ == Place::kRoot) {
      place_ = name_ == "__metadata__" ? Place::kMetadata : Place::kTensor;
      if (place_ == Place::kTensor) tensors.emplace_back().entry.name = std::move(name_);
      seen_ = {};
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      for (size_t i = 0; i < kFields.size(); ++i) {
        if (!seen_[i]) refuse(where(), "key '", kFields[i], "' is missing");
      }
    }
    place_ = Place::kRoot;
    return true;
  }

  bool key(std::string& text) override {
    if (place_ == Place::kRoot) {
      name_ = std::move(text);
      if (name_ != "__metadata__") return true;
      if (has_metadata_) refuse("tensor '__metadata__' appears twice");
      has_metadata_ = true;
    } else if (place_ == Place::kMetadata) {
      if (!metadata_keys_.insert(text).second)
        refuse(where(), "key '", printable(text), "' appears twice");
      if (metadata.size() == kMaxMetadata) refuse(where(), "more than ", kMaxMetadata, " keys");
      metadata.emplace_back(std::move(text), "");
    } else {
      const auto found = std::find(kFields.begin(), kFields.end(), text);
      if (found == kFields.end()) refuse(where(), "unknown key '", printable(text), "'");
      field_ = static_cast<size_t>(found - kFields.begin());
      if (seen_[field_]) refuse(where(), "key '", text, "' appears twice");
      seen_[field_] = true;
    }
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadata) {
      metadata.back().second = std::move(text);
    } else if (place_ == Place::kTensor && field_ == kDtype) {
      if (dtype_size(text) == 0) refuse(where(), "dtype '", printable(text), "' is not supported");
      tensors.back().entry.dtype = text;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || field_ == kDtype) unexpected("an array");
    place_ = field_ == kShape ? Place::kShape : Place::kOffsets;
    num_offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) {
      refuse(where(), "data_offsets has ", num_offsets_, " numbers, want 2");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        refuse(where(), "shape holds ", value, ", too large");
      }
      std::vector<int64_t>& shape = tensors.back().entry.shape;
      if (shape.size() == kMaxDimensions) {
        refuse(where(), "shape has more than ", kMaxDimensions, " dimensions");
      }
      shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsets) {
      if (num_offsets_ == 0) tensors.back().begin = value;
      if (num_offsets_ == 1) tensors.back().end = value;
      ++num_offsets_;
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool number_integer(int64_t value) override {
    if (place_ == Place::kShape || place_ == Place::kOffsets) {
      refuse(where(), kFields[field_], " holds a negative number, ", value);
    }
    unexpected("a number");
  }
  bool number_float(double, const std::string& text) override {
    if (place_ == Place::kShape || place_ == Place::kOffsets) {
      refuse(where(), kFields[field_], " holds ", printable(text, 40),
             ", want an integer of 64 bits");
    }
    unexpected("a number");
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    refuse("header is not valid JSON at its byte ", position);
  }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets };
  enum Field : size_t { kDtype, kShape, kOffsets };
  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

  std::string where() const {
    if (place_ == Place::kMetadata) return "__metadata__: ";
    return cat("tensor '", printable(place_ == Place::kRoot ? name_ : tensors.back().entry.name),
               "': ");
  }
  [[noreturn]] void unexpected(const char* got) const {
    switch (place_) {
      case Place::kStart:
        refuse("header is ", got, ", want an object");
      case Place::kRoot:
        refuse(where(), "is ", got, ", want an object");
      case Place::kMetadata:
        refuse(where(), "key '", printable(metadata.back().first), "' is ", got, ", want a string");
      case Place::kTensor:
        refuse(where(), kFields[field_], " is ", got, ", want ",
               field_ == kDtype ? "a string" : "an array");
      default:
        refuse(where(), kFields[field_], " holds ", got, ", want integers");
    }
  }

  const std::string& path_;
  Place place_ = Place::kStart;
  size_t field_ = kDtype;
  std::array<bool, 3> seen_{};
  int64_t num_offsets_ = 0;
  std::string name_;  // of what comes next in the root
  bool has_metadata_ = false;
  std::set<std::string, std::less<>> metadata_keys_;
};

void check_names(const HeaderReader& header) {
  std::vector<std::string_view> names;
  names.reserve(header.tensors.size());
  for (const HeaderTensor& tensor : header.tensors) names.push_back(tensor.entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) header.refuse("tensor '", printable(*twice), "' appears twice");
}

// Checks the tensors' ranges against each other and the data, and points the entries at it.
std::vector<TensorEntry> place_tensors(HeaderReader& header, std::span<const std::byte> data) {
  std::vector<HeaderTensor>& tensors = header.tensors;
  check_names(header);
  // Ties are broken by the end, so that an empty tensor comes before the one that starts there.
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::vector<TensorEntry> entries;
  entries.reserve(tensors.size());
  uint64_t expected = 0;
  for (HeaderTensor& tensor : tensors) {
    TensorEntry& entry = tensor.entry;
    const std::string where = cat("tensor '", printable(entry.name), "': ");
    const std::string range = cat("data_offsets [", tensor.begin, ", ", tensor.end, "]");
    if (tensor.begin > tensor.end) header.refuse(where, range, " run backwards");
    if (tensor.end > data.size()) {
      header.refuse(where, range, " pass the end of the data, ", data.size(), " bytes");
    }
    if (tensor.begin < expected)
      header.refuse(where, range, " overlap the tensor before, which ends at ", expected);
    if (tensor.begin > expected) header.refuse(where, range, " leave a hole after ", expected);
    const int64_t bytes = tensor_bytes(entry.shape, dtype_size(entry.dtype));
    const std::string type = cat(entry.dtype, " ", shape_text(entry.shape));
    if (bytes < 0) header.refuse(where, type, " has more bytes than 64 bits can count");
    if (tensor.end - tensor.begin != static_cast<uint64_t>(bytes)) {
      header.refuse(where, range, " hold ", tensor.end - tensor.begin, " bytes, want ", bytes,
                    " for ", type);
    }
    entry.data = data.subspan(tensor.begin, tensor.end - tensor.begin);
    expected = tensor.end;
    entries.push_back(std::move(entry));
  }
  if (expected != data.size()) {
    header.refuse(data.size() - expected, " bytes after the last tensor, want none");
  }
  return entries;
}

// ---------------------------------------------------------------------------------------------------

std::string json_string(const std::string& path, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::kUsage, cat("write safetensors '", path, "': the name or text '",
                                printable(text), "' is not valid UTF-8"));
  }
}

// Bytes of what an entry says it holds, or -1 when no data can be that.
int64_t entry_bytes(const TensorEntry& tensor) {
  const bool negative =
      std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t size) { return size < 0; });
  return negative ? -1 : tensor_bytes(tensor.shape, dtype_size(tensor.dtype));
}

void check_data(const std::string& path, const TensorEntry& tensor,
                std::span<const std::byte> data) {
  const int64_t bytes = entry_bytes(tensor);
  AMOEBA_CHECK(bytes >= 0 && static_cast<uint64_t>(bytes) == data.size(), "write safetensors '",
               path, "': tensor '", printable(tensor.name), "': data has ", data.size(), " bytes, ",
               tensor.dtype, " ", shape_text(tensor.shape), " does not");
}

// Checks the tensors and gives the padded JSON text.
std::string make_header(const std::string& path, std::span<const TensorEntry> tensors,
                        const std::vector<std::pair<std::string, std::string>>& metadata) {
  const std::string what = cat("write safetensors '", path, "': ");
  std::set<std::string, std::less<>> names = {"__metadata__"};
  std::set<std::string, std::less<>> metadata_keys;
  std::string members;
  for (const auto& [key, text] : metadata) {
    AMOEBA_CHECK(metadata_keys.insert(key).second, what, "metadata key '", printable(key),
                 "' appears twice");
    members +=
        cat(members.empty() ? "" : ",", json_string(path, key), ":", json_string(path, text));
  }
  std::string header = metadata.empty() ? "{" : cat("{\"__metadata__\":{", members, "}");
  int64_t offset = 0;
  for (const TensorEntry& tensor : tensors) {
    const std::string where = cat(what, "tensor '", printable(tensor.name), "': ");
    AMOEBA_CHECK(names.insert(tensor.name).second, where, "the name is reserved or appears twice");
    const int64_t element_bytes = dtype_size(tensor.dtype);
    AMOEBA_CHECK(element_bytes > 0, where, "dtype '", printable(tensor.dtype),
                 "' is not supported");
    const int64_t bytes = entry_bytes(tensor);
    AMOEBA_CHECK(bytes >= 0, where, "data has ", tensor.data.size(), " bytes, ", tensor.dtype, " ",
                 shape_text(tensor.shape), " does not");
    std::string shape;
    for (int64_t size : tensor.shape) shape += cat(shape.empty() ? "" : ",", size);
    header += cat(header.size() > 1 ? "," : "", json_string(path, tensor.name), ":{\"dtype\":\"",
                  tensor.dtype, "\",\"shape\":[", shape, "],\"data_offsets\":[", offset, ",",
                  offset + bytes, "]}");
    offset += bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  AMOEBA_CHECK(header.size() <= kMaxHeaderBytes, what, "header has ", header.size(),
               " bytes, the format allows ", kMaxHeaderBytes);
  return header;
}

void write_tensors(FileSystem& files, const std::string& path, const std::string& header,
                   std::span<const TensorEntry> tensors, const TensorDataOf& data_of) {
  std::string start(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i) start[i] = static_cast<char>(header.size() >> (8 * i));
  start += header;

  const std::unique_ptr<WritableFile> file = files.create(path);
  file->write(start);
  for (const TensorEntry& tensor : tensors) file->write(data_of(tensor));
  file->sync();
  file->close();
}

}  // namespace

int64_t dtype_size(const std::string& dtype) {
  for (const DtypeSize& known : kDtypeSizes) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

void write_safetensors(FileSystem& files, const std::string& path,
                       std::span<const TensorEntry> tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  const std::string header = make_header(path, tensors, metadata);
  for (const TensorEntry& tensor : tensors) check_data(path, tensor, tensor.data);
  write_tensors(files, path, header, tensors,
                [](const TensorEntry& tensor) { return tensor.data; });
}

void write_safetensors(FileSystem& files, const std::string& path,
                       std::span<const TensorEntry> tensors, const TensorDataOf& data_of,
                       const std::vector<std::pair<std::string, std::string>>& metadata) {
  const std::string header = make_header(path, tensors, metadata);
  write_tensors(files, path, header, tensors, [&](const TensorEntry& tensor) {
    const std::span<const std::byte> data = data_of(tensor);
    check_data(path, tensor, data);
    return data;
  });
}

SafetensorsFile read_safetensors(FileSystem& files, const std::string& path) {
  SafetensorsFile file;
  file.mapping = files.map(path);
  const std::span<const std::byte> bytes = file.mapping->data();
  HeaderReader header(path);
  if (bytes.size() < kLengthBytes) {
    header.refuse("file has ", bytes.size(), " bytes, want at least ", kLengthBytes);
  }
  uint64_t size = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) size |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  if (size > kMaxHeaderBytes) {
    header.refuse("header length ", size, ", the format allows ", kMaxHeaderBytes);
  }
  if (size > bytes.size() - kLengthBytes) {
    header.refuse("header length ", size, " passes the end of the file, ", bytes.size(), " bytes");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, size);
  if (!text.starts_with('{')) header.refuse("header does not begin with '{'");
  // The JSON parser takes a zero byte for the end of its input.
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    header.refuse("header is not valid JSON at its byte ", zero + 1);
  }
  const auto num_braces = static_cast<size_t>(std::count(text.begin(), text.end(), '{'));
  header.tensors.reserve(std::min(num_braces, text.size() / kMinTensorBytes));
  nlohmann::json::sax_parse(text, &header);
  file.tensors = place_tensors(header, bytes.subspan(kLengthBytes + size));
  file.metadata = std::move(header.metadata);
  return file;
}

}  // namespace amoeba::formats
