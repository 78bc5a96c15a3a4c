#include "formats/token_files.h"

#include <charconv>
#include <cstring>
#include <limits>
#include <utility>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::formats {

namespace {

constexpr std::string_view kIndexMagic("MMIDIDX\0\0", 9);
constexpr uint64_t kIndexVersion = 1;
constexpr size_t kIndexHeader = 9 + 8 + 1 + 8 + 8;
constexpr std::string_view kNpyMagic("\x93NUMPY", 6);
constexpr size_t kLlmcHeader = 256 * sizeof(int32_t);
constexpr size_t kWriteBuffer = 1 << 20;

std::string_view text_of(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

// The number at data[at]; the caller has checked the size.
template <typename T>
T number_at(std::string_view data, size_t at) {
  T number;
  std::memcpy(&number, data.data() + at, sizeof number);
  return number;
}

template <typename T>
void append_number(std::string& out, T number) {
  char bytes[sizeof number];
  std::memcpy(bytes, &number, sizeof number);
  out.append(bytes, sizeof number);
}

// The tokens of a mapped file from byte `offset` to its end; `num_tokens` < 0: as many as fit.
TokenArray tokens_of(const std::string& path, std::unique_ptr<MappedFile> file, size_t offset,
                     TokenType type, int64_t num_tokens) {
  const std::span<const std::byte> data = file->data();
  const auto size = static_cast<int64_t>(data.size() - offset);
  const int64_t width = token_size(type);
  AMOEBA_CHECK_KIND(kData, size % width == 0 && (num_tokens < 0 || num_tokens == size / width),
                    "read tokens '", path, "': ", size, " bytes of ", token_type_name(type),
                    " tokens, want ",
                    num_tokens < 0 ? cat("a multiple of ", width)
                                   : cat(num_tokens, " tokens of ", width, " bytes"));
  AMOEBA_CHECK_KIND(kData, size > 0, "read tokens '", path, "': no tokens, want at least one");
  const std::byte* first = data.data() + offset;
  return {path, std::shared_ptr<const MappedFile>(std::move(file)), first, type, size / width};
}

TokenType index_type(uint8_t code, const std::string& path) {
  static constexpr std::pair<uint8_t, TokenType> kCodes[] = {{1, TokenType::kUint8},
                                                             {3, TokenType::kInt16},
                                                             {4, TokenType::kInt32},
                                                             {5, TokenType::kInt64},
                                                             {8, TokenType::kUint16}};
  for (const auto& [known, type] : kCodes) {
    if (code == known) return type;
  }
  fail(ErrorKind::kData, cat("read index '", path, "': type is ", int{code},
                             ", want 1 (uint8), 3 (int16), 4 (int32), 5 (int64) or 8 (uint16)"));
}

// ---- .npy ---------------------------------------------------------------------------------------

constexpr uint64_t kMaxNpyHeader = 10'000;  // as numpy.load

struct NpyHeader {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// The Python literal in a .npy header: a dict of exactly those three keys.
class NpyHeaderReader {
 public:
  NpyHeaderReader(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  NpyHeader run() {
    NpyHeader header;
    bool seen[3] = {};
    expect('{');
    while (!take('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr") {
        seen[0] = true;
        header.descr = quoted();
      } else if (key == "fortran_order") {
        seen[1] = true;
        header.fortran_order = boolean();
      } else if (key == "shape") {
        seen[2] = true;
        header.shape = tuple();
      } else {
        refuse(cat("key '", printable(key), "'"));
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) refuse("text behind the dict");
    if (!seen[0] || !seen[1] || !seen[2]) refuse("a missing key");
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorKind::kData, cat("read .npy '", path_, "': header '", printable(text_, 80), "' has ",
                               what, ", want a dict of descr, fortran_order and shape"));
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool take(char c) {
    skip_spaces();
    const bool there = at_ < text_.size() && text_[at_] == c;
    if (there) ++at_;
    return there;
  }
  void expect(char c) {
    if (!take(c)) refuse(cat("no '", c, "' at ", at_));
  }
  std::string quoted() {
    expect('\'');
    const size_t end = text_.find('\'', at_);
    if (end == text_.npos) refuse("an open quote");
    std::string text(text_.substr(at_, end - at_));
    at_ = end + 1;
    return text;
  }
  bool boolean() {
    skip_spaces();
    for (const auto& [word, value] :
         {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      return value;
    }
    refuse("no True or False");
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> numbers;
    expect('(');
    while (!take(')')) {
      skip_spaces();
      int64_t number = 0;
      const auto [end, status] =
          std::from_chars(text_.data() + at_, text_.data() + text_.size(), number);
      if (status != std::errc() || number < 0) refuse("a bad shape");
      at_ = static_cast<size_t>(end - text_.data());
      numbers.push_back(number);
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return numbers;
  }

  std::string_view text_;
  const std::string& path_;
  size_t at_ = 0;
};

TokenType npy_type(const std::string& descr, const std::string& path) {
  static constexpr std::pair<std::string_view, TokenType> kTypes[] = {
      {"|u1", TokenType::kUint8},  {"<u2", TokenType::kUint16}, {"<i2", TokenType::kInt16},
      {"<u4", TokenType::kUint32}, {"<i4", TokenType::kInt32},  {"<i8", TokenType::kInt64}};
  for (const auto& [name, type] : kTypes) {
    if (descr == name) return type;
  }
  fail(ErrorKind::kData, cat("read .npy '", path, "': descr is '", printable(descr),
                             "', want one of |u1, <u2, <i2, <u4, <i4, <i8"));
}

}  // namespace

bool is_npy(std::span<const std::byte> data) { return text_of(data).starts_with(kNpyMagic); }

TokenArray read_npy_tokens(FileSystem& files, const std::string& path) {
  std::unique_ptr<MappedFile> file = files.map(path);
  const std::string_view data = text_of(file->data());
  AMOEBA_CHECK_KIND(kData, data.starts_with(kNpyMagic) && data.size() >= 12, "read .npy '", path,
                    "': the file of ", data.size(),
                    " bytes does not begin as a .npy does, want "
                    "\\x93NUMPY and a header");
  const int major = static_cast<unsigned char>(data[6]);
  AMOEBA_CHECK_KIND(kData, major >= 1 && major <= 3, "read .npy '", path, "': version is ", major,
                    ", want 1 to 3");
  const size_t start = major == 1 ? 10 : 12;
  const uint64_t length =
      major == 1 ? uint64_t{number_at<uint16_t>(data, 8)} : uint64_t{number_at<uint32_t>(data, 8)};
  AMOEBA_CHECK_KIND(kData, length <= data.size() - start, "read .npy '", path, "': header of ",
                    length, " bytes in a file of ", data.size());
  AMOEBA_CHECK_KIND(kData, length <= kMaxNpyHeader, "read .npy '", path, "': header of ", length,
                    " bytes, want at most ", kMaxNpyHeader);
  const NpyHeader header = NpyHeaderReader(data.substr(start, length), path).run();
  AMOEBA_CHECK_KIND(kData, header.shape.size() == 1, "read .npy '", path, "': the array has ",
                    header.shape.size(), " dimensions, want 1");
  const TokenType type = npy_type(header.descr, path);
  return tokens_of(path, std::move(file), start + length, type, header.shape[0]);
}

// ---- llm.c and bare -----------------------------------------------------------------------------

namespace {

struct LlmcKind {
  int32_t magic;
  int32_t version;
  TokenType type;
};
constexpr LlmcKind kLlmcKinds[] = {{20240520, 1, TokenType::kUint16},
                                   {20240801, 7, TokenType::kUint32}};

const LlmcKind* llmc_kind(std::string_view data) {
  for (const LlmcKind& kind : kLlmcKinds) {
    if (data.size() >= sizeof(int32_t) && number_at<int32_t>(data, 0) == kind.magic) return &kind;
  }
  return nullptr;
}

}  // namespace

bool is_llmc(std::span<const std::byte> data) { return llmc_kind(text_of(data)) != nullptr; }

TokenArray read_llmc_tokens(FileSystem& files, const std::string& path) {
  std::unique_ptr<MappedFile> file = files.map(path);
  const std::string_view data = text_of(file->data());
  const LlmcKind* kind = llmc_kind(data);
  AMOEBA_CHECK_KIND(kData, kind != nullptr, "read llm.c shard '", path,
                    "': the magic number is not there, want 20240520 or 20240801");
  AMOEBA_CHECK_KIND(kData, data.size() >= kLlmcHeader, "read llm.c shard '", path,
                    "': ", data.size(), " bytes, want a header of ", kLlmcHeader);
  const auto version = number_at<int32_t>(data, 4);
  AMOEBA_CHECK_KIND(kData, version == kind->version, "read llm.c shard '", path, "': version is ",
                    version, ", want ", kind->version, " with magic ", kind->magic);
  const auto num_tokens = number_at<int32_t>(data, 8);
  AMOEBA_CHECK_KIND(kData, num_tokens > 0, "read llm.c shard '", path, "': number of tokens is ",
                    num_tokens, ", want at least 1");
  return tokens_of(path, std::move(file), kLlmcHeader, kind->type, num_tokens);
}

TokenArray read_bare_tokens(FileSystem& files, const std::string& path, TokenType type) {
  return tokens_of(path, files.map(path), 0, type, -1);
}

// ---- Megatron -----------------------------------------------------------------------------------

TokenArray read_indexed_tokens(FileSystem& files, const std::string& prefix) {
  const std::string path = prefix + ".idx";
  const auto index = files.map(path);
  const std::string_view data = text_of(index->data());
  AMOEBA_CHECK_KIND(kData, data.size() >= kIndexHeader && data.starts_with(kIndexMagic),
                    "read index '", path, "': the file of ", data.size(),
                    " bytes does not begin with MMIDIDX and a header of ", kIndexHeader, " bytes");
  const auto version = number_at<uint64_t>(data, 9);
  AMOEBA_CHECK_KIND(kData, version == kIndexVersion, "read index '", path, "': version is ",
                    version, ", want ", kIndexVersion);
  const TokenType type = index_type(number_at<uint8_t>(data, 17), path);
  const auto num_sequences = number_at<uint64_t>(data, 18);
  const auto num_bounds = number_at<uint64_t>(data, 26);
  const uint64_t body = data.size() - kIndexHeader;
  // Compared with the file's size first, so that the sums below cannot overflow.
  const bool fits = num_sequences <= body / 12 && num_bounds <= body / 8 &&
                    12 * num_sequences + 8 * num_bounds == body;
  AMOEBA_CHECK_KIND(kData, fits, "read index '", path, "': ", num_sequences, " sequences and ",
                    num_bounds, " document bounds in a file of ", data.size(),
                    " bytes, want 34 + 12 * sequences + 8 * bounds (indexes with sequence modes "
                    "are not supported)");
  TokenArray array = tokens_of(prefix + ".bin", files.map(prefix + ".bin"), 0, type, -1);

  const size_t lengths = kIndexHeader, pointers = lengths + 4 * num_sequences;
  const size_t bounds = pointers + 8 * num_sequences;
  std::vector<int64_t> first_tokens;  // of the sequences, and the end
  int64_t total = 0;
  for (uint64_t i = 0; i < num_sequences; ++i) {
    const auto length = number_at<int32_t>(data, lengths + 4 * i);
    const auto pointer = number_at<int64_t>(data, pointers + 8 * i);
    AMOEBA_CHECK_KIND(kData, length >= 0 && length <= array.num_tokens - total, "read index '",
                      path, "': sequence ", i, " has ", length, " tokens, want 0 to the ",
                      array.num_tokens - total, " that are left in the .bin");
    AMOEBA_CHECK_KIND(kData, pointer == total * token_size(type), "read index '", path,
                      "': sequence ", i, " is at byte ", pointer, ", want ",
                      total * token_size(type));
    first_tokens.push_back(total);
    total += length;
  }
  AMOEBA_CHECK_KIND(kData, total == array.num_tokens, "read index '", path,
                    "': the sequences have ", total, " tokens, want the ", array.num_tokens,
                    " of the .bin");
  first_tokens.push_back(total);
  int64_t previous = 0;
  for (uint64_t i = 0; i < num_bounds; ++i) {
    const auto bound = number_at<int64_t>(data, bounds + 8 * i);
    const auto last = static_cast<int64_t>(num_sequences);
    AMOEBA_CHECK_KIND(kData,
                      bound >= previous && bound <= last && (i > 0 || bound == 0) &&
                          (i + 1 < num_bounds || bound == last),
                      "read index '", path, "': document bound ", i, " is ", bound, ", want from ",
                      previous, " to ", last, ", the first 0 and the last ", last);
    previous = bound;
    const int64_t token = first_tokens[static_cast<size_t>(bound)];
    const bool is_new = array.documents.empty() || token > array.documents.back();
    if (is_new && token < array.num_tokens) array.documents.push_back(token);
  }
  return array;
}

IndexedTokenWriter::IndexedTokenWriter(FileSystem& files, const std::string& prefix,
                                       int64_t vocab_size)
    : files_(files),
      prefix_(prefix),
      type_(vocab_size <= std::numeric_limits<uint16_t>::max() + 1 ? TokenType::kUint16
                                                                   : TokenType::kInt32),
      bin_(files.create(prefix + ".bin")) {}

void IndexedTokenWriter::add_document(std::span<const int32_t> tokens) {
  constexpr size_t kMost = std::numeric_limits<int32_t>::max();
  AMOEBA_CHECK_KIND(kData, tokens.size() <= kMost, "write tokens '", prefix_, "': document ",
                    num_documents(), " has ", tokens.size(), " tokens, want at most ", kMost);
  for (const int32_t token : tokens) {
    if (type_ == TokenType::kUint16) {
      append_number(buffer_, static_cast<uint16_t>(token));
    } else {
      append_number(buffer_, token);
    }
    if (buffer_.size() >= kWriteBuffer) {
      bin_->write(buffer_);
      buffer_.clear();
    }
  }
  lengths_.push_back(static_cast<int32_t>(tokens.size()));
  num_tokens_ += static_cast<int64_t>(tokens.size());
}

void IndexedTokenWriter::finish() {
  bin_->write(buffer_);
  bin_->sync();
  bin_->close();
  std::string index(kIndexMagic);
  append_number(index, kIndexVersion);
  append_number(index, type_ == TokenType::kUint16 ? uint8_t{8} : uint8_t{4});
  append_number(index, uint64_t{lengths_.size()});
  append_number(index, uint64_t{lengths_.size() + 1});
  for (const int32_t length : lengths_) append_number(index, length);
  int64_t pointer = 0;
  for (const int32_t length : lengths_) {
    append_number(index, pointer);
    pointer += length * token_size(type_);
  }
  for (int64_t i = 0; i <= num_documents(); ++i) append_number(index, i);
  const auto file = files_.create(prefix_ + ".idx");
  file->write(index);
  file->sync();
  file->close();
}

}  // namespace amoeba::formats
