#include "formats/added_tokens.h"

#include <algorithm>

#include "formats/unicode.h"

namespace amoeba::formats {

namespace {

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)),
      token_of_(1, -1),
      word_("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]", "added tokens"),
      spaces_("\\s+", "added tokens") {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (const char c : tokens_[i].text) {
      const uint64_t edge = uint64_t{node} << 8 | static_cast<unsigned char>(c);
      const auto [found, is_new] = next_.emplace(edge, static_cast<uint32_t>(token_of_.size()));
      if (is_new) token_of_.push_back(-1);
      node = found->second;
    }
    if (node == 0) continue;  // an empty token is found nowhere
    can_begin_[static_cast<unsigned char>(tokens_[i].text[0])] = true;
    if (token_of_[node] < 0) token_of_[node] = static_cast<int32_t>(i);
  }
}

// Length of the longest token at text[at], or 0.
size_t AddedTokens::longest_at(std::string_view text, size_t at, const AddedToken*& token) const {
  size_t length = 0;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto found = next_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (found == next_.end()) break;
    node = found->second;
    if (token_of_[node] >= 0) {
      token = &tokens_[static_cast<size_t>(token_of_[node])];
      length = i + 1 - at;
    }
  }
  return length;
}

std::vector<AddedTokens::Piece> AddedTokens::cut(std::string_view text,
                                                 bool special_as_text) const {
  std::vector<Piece> pieces;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = nullptr;
    const size_t length =
        can_begin_[static_cast<unsigned char>(text[at])] ? longest_at(text, at, token) : 0;
    if (length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;  // whether it counts or not, the next one is looked for behind it
    if (special_as_text && token->special) continue;
    if (token->single_word) {
      const auto touches = [&](size_t character) {
        const auto match = word_.find(text, character);
        return match && match->begin == character;
      };
      if ((begin > 0 && touches(last_character(text.substr(0, begin)))) ||
          (end < text.size() && touches(end))) {
        continue;
      }
    }
    if (token->lstrip) {
      while (begin > done) {
        const size_t before = last_character(text.substr(0, begin));
        const auto match = spaces_.find(text, before);
        if (!match || match->begin != before) break;
        begin = before;
      }
    }
    if (token->rstrip) {
      const auto match = spaces_.find(text, end);
      if (match && match->begin == end) end = match->end;
    }
    if (begin > done) pieces.push_back({done, begin, -1});
    pieces.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), -1});
  return pieces;
}

}  // namespace amoeba::formats
