#include <algorithm>

#include "amoeba/error.h"
#include "base/text.h"
#include "base/threads.h"
#include "formats/prepare_tokens.h"
#include "formats/text_documents.h"
#include "formats/token_files.h"
#include "formats/token_source.h"
#include "formats/value.h"

namespace amoeba::formats {

namespace {

TokenArray read_prepared(FileSystem& files, const std::string& path, const Tokenizer& tokenizer) {
  const std::string info_path = path + kPreparedInfo;
  AMOEBA_CHECK_KIND(kData, files.exists(info_path), "open data '", path,
                    "': is a folder without dataset.json, want one made by amoeba data prepare");
  const Value info = parse_json(files.read(info_path), info_path);
  const std::string& made_with = info.string_at("tokenizer_fingerprint", info_path);
  AMOEBA_CHECK_KIND(kData, made_with == tokenizer.fingerprint(), "open data '", path,
                    "': it was made with the tokenizer '",
                    printable(info.string_at("tokenizer", info_path)), "' (", printable(made_with),
                    "), data.tokenizer is '", tokenizer.name(), "' (", tokenizer.fingerprint(),
                    ")");
  return read_indexed_tokens(files, path + kPreparedTokens);
}

// "NAME.bin" -> "NAME" when NAME.idx is there; the same for NAME.idx and NAME. "" when it is not.
std::string indexed_prefix(FileSystem& files, const std::string& path) {
  std::string prefix = path;
  if (path.ends_with(".bin") || path.ends_with(".idx")) prefix.resize(path.size() - 4);
  const bool is_other_file = prefix == path && files.exists(path);
  return !is_other_file && files.exists(prefix + ".idx") ? prefix : "";
}

TokenArray encode_all(FileSystem& files, const std::string& path, const Tokenizer& tokenizer,
                      const std::string& document_separator, int64_t num_threads) {
  const TextDocuments documents(files, path, document_separator);
  std::vector<std::vector<int32_t>> parts(static_cast<size_t>(documents.size()));
  run_in_parallel(num_threads, documents.size(), [&](int64_t i) {
    const std::string text = documents.text(i);
    if (!text.empty()) parts[static_cast<size_t>(i)] = encode_document(tokenizer, text);
  });
  const auto tokens = std::make_shared<std::vector<int32_t>>();
  for (std::vector<int32_t>& part : parts) {
    tokens->insert(tokens->end(), part.begin(), part.end());
    part = {};
  }
  AMOEBA_CHECK_KIND(kData, !tokens->empty(), "open text '", path, "': the file holds no text");
  const auto* data = reinterpret_cast<const std::byte*>(tokens->data());
  return {path, tokens, data, TokenType::kInt32, static_cast<int64_t>(tokens->size())};
}

}  // namespace

std::unique_ptr<TokenSource> open_tokens(FileSystem& files, const std::string& path,
                                         const Tokenizer& tokenizer,
                                         const std::string& document_separator,
                                         int64_t num_threads) {
  const auto source = [&](TokenArray array) {
    return make_token_source(std::move(array), tokenizer);
  };
  if (files.exists(path) && files.is_directory(path)) {
    return source(read_prepared(files, path, tokenizer));
  }
  if (const std::string prefix = indexed_prefix(files, path); !prefix.empty()) {
    return source(read_indexed_tokens(files, prefix));
  }
  const auto file = files.map(path);
  if (is_npy(file->data()) || path.ends_with(".npy")) return source(read_npy_tokens(files, path));
  if (is_llmc(file->data())) return source(read_llmc_tokens(files, path));
  static constexpr std::pair<std::string_view, TokenType> kBare[] = {
      {".u16", TokenType::kUint16}, {".u32", TokenType::kUint32}, {".bin", TokenType::kUint16}};
  for (const auto& [ending, type] : kBare) {
    if (path.ends_with(ending)) return source(read_bare_tokens(files, path, type));
  }
  if (tokenizer.name() == "bytes" && !path.ends_with(".jsonl")) {
    return open_text(files, path, tokenizer, document_separator);
  }
  return source(encode_all(files, path, tokenizer, document_separator, num_threads));
}

}  // namespace amoeba::formats
