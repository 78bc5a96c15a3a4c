// Tokens as one array of integers, in a mapped file or in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/token_source.h"

namespace amoeba::formats {

enum class TokenType { kUint8, kUint16, kInt16, kUint32, kInt32, kInt64 };

int64_t token_size(TokenType type);  // bytes
std::string_view token_type_name(TokenType type);

struct TokenArray {
  std::string name;                   // the path
  std::shared_ptr<const void> owner;  // of the memory
  const std::byte* data = nullptr;    // little-endian, of any alignment
  TokenType type = TokenType::kInt32;
  int64_t num_tokens = 0;
  // First tokens of the documents, rising, the first 0; empty: only end-of-document tokens part
  // them.
  std::vector<int64_t> documents = {};
};

// A document ends at an end-of-document token and where `documents` says. read() throws
// Error(kData) for a token outside the tokenizer's vocabulary. The tokenizer must outlive the
// source.
std::unique_ptr<TokenSource> make_token_source(TokenArray array, const Tokenizer& tokenizer);

}  // namespace amoeba::formats
