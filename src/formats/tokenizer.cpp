#include "formats/tokenizer.h"

#include "amoeba/error.h"

namespace amoeba::formats {

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size());
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string ByteTokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  text.reserve(ids.size());
  for (const int32_t id : ids) {
    AMOEBA_CHECK(id >= 0, "decode: token id is ", id, ", want at least 0");
    if (id < kEndOfDocument) text.push_back(static_cast<char>(id));
  }
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  AMOEBA_CHECK(name == "bytes", "tokenizer '", name, "' is unknown, want one of: bytes");
  return std::make_unique<ByteTokenizer>();
}

}  // namespace amoeba::formats
