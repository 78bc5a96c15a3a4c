#include "formats/tokenizer.h"

#include <array>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/tokenizer_json.h"

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

std::string_view ByteTokenizer::token_text(int32_t id) const {
  static const auto bytes = [] {
    std::array<char, 256> all{};
    for (size_t byte = 0; byte < all.size(); ++byte) all[byte] = static_cast<char>(byte);
    return all;
  }();
  if (id < 0 || id >= kEndOfDocument) return {};
  return {&bytes[static_cast<size_t>(id)], 1};
}

std::unique_ptr<Tokenizer> make_tokenizer(FileSystem& files, const std::string& name) {
  if (name == "bytes") return std::make_unique<ByteTokenizer>();
  AMOEBA_CHECK(!name.empty() && files.exists(name), "tokenizer '", printable(name),
               "' is unknown, want bytes or the path of a tokenizer.json");
  return load_tokenizer_json(files, files.is_directory(name) ? name + "/tokenizer.json" : name);
}

}  // namespace amoeba::formats
