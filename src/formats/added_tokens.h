// Tokens that are found in a text before it is split into words: special tokens and words that were
// added to a vocabulary, with the rules of `tokenizers`' AddedVocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "formats/regex.h"

namespace amoeba::formats {

struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool special = false;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the whitespace before it along
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for in the normalized text, itself normalized
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Piece {
    size_t begin = 0;
    size_t end = 0;
    int32_t id = -1;  // -1: text between tokens
  };
  // Cuts valid UTF-8 `text` at its tokens: at each place the longest one, from the left. With
  // `special_as_text` special tokens are found but not cut out.
  std::vector<Piece> cut(std::string_view text, bool special_as_text) const;

 private:
  size_t longest_at(std::string_view text, size_t at, const AddedToken*& token) const;

  std::vector<AddedToken> tokens_;
  // A trie: node << 8 | byte to node; the root is 0.
  std::unordered_map<uint64_t, uint32_t> next_;
  std::vector<int32_t> token_of_;  // of a node: index into tokens_ or -1
  bool can_begin_[256] = {};
  Regex word_;
  Regex spaces_;
};

}  // namespace amoeba::formats
