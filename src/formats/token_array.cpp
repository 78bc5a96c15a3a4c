#include "formats/token_array.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "amoeba/error.h"

namespace amoeba::formats {

namespace {

template <typename T>
int64_t load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return static_cast<int64_t>(value);
}

struct TypeInfo {
  std::string_view name;
  int64_t size;
  int64_t (*load)(const std::byte* from);
};

const TypeInfo& info(TokenType type) {
  static constexpr TypeInfo kInfos[] = {{"uint8", 1, load<uint8_t>}, {"uint16", 2, load<uint16_t>},
                                        {"int16", 2, load<int16_t>}, {"uint32", 4, load<uint32_t>},
                                        {"int32", 4, load<int32_t>}, {"int64", 8, load<int64_t>}};
  return kInfos[static_cast<size_t>(type)];
}

class ArraySource final : public TokenSource {
 public:
  ArraySource(TokenArray array, const Tokenizer& tokenizer)
      : array_(std::move(array)), tokenizer_(tokenizer), info_(info(array_.type)) {}

  const std::string& name() const override { return array_.name; }
  int64_t num_tokens() const override { return array_.num_tokens; }

  int64_t num_bytes(int64_t begin, int64_t end) const override {
    check_range("num_bytes", begin, end);
    int64_t bytes = 0;
    bool after_text = begin > 0 && !tokenizer_.token_text(token(begin - 1)).empty();
    int64_t document = begin == 0 ? 0 : next_document(begin - 1, end);
    for (int64_t i = begin; i < end; ++i) {
      if (i == document) {
        after_text = false;
        document = next_document(i, end);
      }
      const int32_t id = token(i);
      const auto size = static_cast<int64_t>(tokenizer_.token_text(id).size());
      bytes += after_text || size == 0 ? size : size - tokenizer_.added_bytes(id);
      after_text = size > 0;
    }
    return bytes;
  }

  void read(int64_t begin, std::span<int32_t> out) const override {
    const int64_t end = begin + static_cast<int64_t>(out.size());
    check_range("read", begin, end);
    for (int64_t i = begin; i < end; ++i) out[static_cast<size_t>(i - begin)] = token(i);
  }

  int64_t next_document(int64_t begin, int64_t end) const override {
    check_range("next_document", begin, end);
    const auto listed = std::upper_bound(array_.documents.begin(), array_.documents.end(), begin);
    if (listed != array_.documents.end()) end = std::min(end, *listed);
    for (int64_t i = begin; i + 1 < end; ++i) {
      if (value(i) == tokenizer_.end_of_document()) return i + 1;
    }
    return end;
  }

  int64_t num_documents() const override {
    int64_t count = 1;
    for (int64_t i = 0; (i = next_document(i, num_tokens())) < num_tokens();) ++count;
    return count;
  }

 private:
  void check_range(std::string_view operation, int64_t begin, int64_t end) const {
    AMOEBA_CHECK(begin >= 0 && begin <= end && end <= num_tokens(), operation, " '", name(),
                 "': tokens [", begin, ", ", end, "), want a range inside [0, ", num_tokens(), ")");
  }

  int64_t value(int64_t index) const { return info_.load(array_.data + index * info_.size); }

  int32_t token(int64_t index) const {
    const int64_t id = value(index);
    AMOEBA_CHECK_KIND(kData, id >= 0 && id < tokenizer_.vocab_size(), "read '", name(), "': token ",
                      index, " is ", id, ", want 0 to ", tokenizer_.vocab_size() - 1,
                      ", the vocabulary of the tokenizer '", tokenizer_.name(), "'");
    return static_cast<int32_t>(id);
  }

  TokenArray array_;
  const Tokenizer& tokenizer_;
  const TypeInfo& info_;
};

}  // namespace

int64_t token_size(TokenType type) { return info(type).size; }
std::string_view token_type_name(TokenType type) { return info(type).name; }

std::unique_ptr<TokenSource> make_token_source(TokenArray array, const Tokenizer& tokenizer) {
  return std::make_unique<ArraySource>(std::move(array), tokenizer);
}

}  // namespace amoeba::formats
