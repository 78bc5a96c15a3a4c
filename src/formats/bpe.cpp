// Merging is by a heap of candidate pairs, lowest rank first, leftmost first among equals: n log n
// in the length of the word. Two facts keep words short and most of them out of the heap: where no
// merge has the symbols at both sides of a boundary at its seam, no merge can ever cross, so the
// word is cut there; and a piece whose text is a token that the merges do reach needs no merging.
#include "formats/bpe.h"

#include <algorithm>
#include <bit>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/unicode.h"

namespace amoeba::formats {

namespace {

constexpr size_t kJoinBits = 1 << 20;

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {  // the finalizer of MurmurHash3
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

char32_t read_symbol(std::string_view word, size_t& at, bool byte_symbols) {
  if (byte_symbols) return static_cast<unsigned char>(word[at++]);
  return read_character(word, at);
}

bool worse(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.symbol > b.symbol;
}

}  // namespace

Bpe::Bpe(const BpeModel& model, const std::string& what)
    : low_symbols_(model.byte_symbols ? 256 : 1 << 16, -1),
      joins_(kJoinBits),
      byte_symbols_(model.byte_symbols),
      fuse_unknown_(model.fuse_unknown),
      unknown_(model.unknown) {
  std::unordered_map<std::string_view, int32_t> ids;
  std::unordered_map<int32_t, std::string_view> texts;
  texts_.reserve(model.vocabulary.size());
  for (const auto& [text, id] : model.vocabulary) {
    AMOEBA_CHECK_KIND(kData, id >= 0, what, ": token '", printable(text), "' has id ", id,
                      ", want at least 0");
    texts_.push_back(text);
    ids.emplace(texts_.back(), id);
    texts.emplace(id, texts_.back());
    size_t at = 0;
    const char32_t first = text.empty() ? 0 : read_symbol(text, at, byte_symbols_);
    if (text.empty() || at != text.size()) continue;
    (first < low_symbols_.size() ? low_symbols_[first] : high_symbols_[first]) = id;
  }
  if (model.byte_fallback) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    for (size_t byte = 0; byte < 256; ++byte) {
      const auto found = ids.find(cat("<0x", kDigits[byte / 16], kDigits[byte % 16], ">"));
      byte_tokens_.push_back(found == ids.end() ? -1 : found->second);
    }
  }

  merges_.resize(std::bit_ceil(model.merges.size() * 2 + 1));
  for (size_t rank = 0; rank < model.merges.size(); ++rank) {
    const auto [left, right] = model.merges[rank];
    const auto left_text = texts.find(left), right_text = texts.find(right);
    AMOEBA_CHECK_KIND(kData, left_text != texts.end() && right_text != texts.end(), what,
                      ": merge ", rank, " is of ids ", left, " and ", right,
                      ", want ids of the vocabulary");
    const std::string together = cat(left_text->second, right_text->second);
    const auto merged = ids.find(together);
    AMOEBA_CHECK_KIND(kData, merged != ids.end(), what, ": merge ", rank, " gives '",
                      printable(together), "', want a token of the vocabulary");
    add_merge(pair_of(left, right), static_cast<int32_t>(rank), merged->second);
  }
  find_joins(model);

  if (model.ignore_merges) tokens_ = std::move(ids);
  Scratch scratch;
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < texts_.size(); ++i) {
    // "<0x41>" and the like are reached by bytes, not by their text; invalid UTF-8 by nothing.
    if (texts_[i].empty() || (!byte_symbols_ && !is_utf8(texts_[i]))) continue;
    tokens.clear();
    split(texts_[i], scratch);
    merge(scratch, 0, static_cast<int32_t>(scratch.symbols.size()), tokens);
    const int32_t id = model.vocabulary[i].second;
    if (tokens.size() == 1 && tokens[0] == id && id != unknown_) whole_.emplace(texts_[i], id);
  }
}

void Bpe::add_merge(uint64_t pair, int32_t rank, int32_t merged) {
  size_t slot = mix(pair) & (merges_.size() - 1);
  while (merges_[slot].pair != UINT64_MAX && merges_[slot].pair != pair) {
    slot = (slot + 1) & (merges_.size() - 1);
  }
  merges_[slot] = {pair, rank, merged};  // of equal pairs the last one counts
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t slot = mix(pair) & (merges_.size() - 1); merges_[slot].pair != UINT64_MAX;
       slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
  }
  return nullptr;
}

void Bpe::find_joins(const BpeModel& model) {
  std::unordered_map<int32_t, std::pair<int32_t, int32_t>> ends;  // first, last symbol of a token
  for (const auto& [text, id] : model.vocabulary) {
    if (text.empty()) continue;
    size_t first = 0, last = text.size() - 1;
    while (!byte_symbols_ && last > 0 && (text[last] & 0xC0) == 0x80) --last;
    ends[id] = {symbol_of(read_symbol(text, first, byte_symbols_)),
                symbol_of(read_symbol(text, last, byte_symbols_))};
  }
  for (const auto& [left, right] : model.merges) {
    const int32_t last = ends[left].second, first = ends[right].first;
    const auto is_byte = [&](int32_t id) {
      return std::find(byte_tokens_.begin(), byte_tokens_.end(), id) != byte_tokens_.end();
    };
    // Then tokens do not begin and end with the symbols of their texts.
    if (last < 0 || first < 0 || left == unknown_ || right == unknown_ || is_byte(left) ||
        is_byte(right)) {
      joins_.assign(kJoinBits, true);
      return;
    }
    joins_[mix(pair_of(last, first)) & (kJoinBits - 1)] = true;
  }
}

bool Bpe::may_join(int32_t left, int32_t right) const {
  return joins_[mix(pair_of(left, right)) & (kJoinBits - 1)];
}

int32_t Bpe::symbol_of(char32_t character) const {
  if (character < low_symbols_.size()) return low_symbols_[character];
  const auto found = high_symbols_.find(character);
  return found == high_symbols_.end() ? -1 : found->second;
}

// Fills scratch.symbols with the symbols that `word` starts as.
void Bpe::split(std::string_view word, Scratch& scratch) const {
  scratch.symbols.clear();
  const auto add = [&](int32_t id, size_t begin) {
    scratch.symbols.push_back({id, static_cast<uint32_t>(begin), -1, -1});
  };
  bool unknown = false;  // one is waiting, so that a run of them can become one
  size_t unknown_begin = 0;
  for (size_t at = 0; at < word.size();) {
    const size_t begin = at;
    const int32_t id = symbol_of(read_symbol(word, at, byte_symbols_));
    if (id >= 0) {
      if (unknown) add(unknown_, unknown_begin);
      unknown = false;
      add(id, begin);
      continue;
    }
    const std::string_view bytes = word.substr(begin, at - begin);
    const auto byte_token = [&](char byte) {
      return byte_tokens_[static_cast<unsigned char>(byte)];
    };
    if (!byte_tokens_.empty() &&
        std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte_token(byte) >= 0; })) {
      for (size_t i = begin; i < at; ++i) add(byte_token(word[i]), i);
    } else if (unknown_ >= 0) {
      if (unknown && fuse_unknown_) continue;
      if (unknown) add(unknown_, unknown_begin);
      unknown = true;
      unknown_begin = begin;
    }
  }
  if (unknown) add(unknown_, unknown_begin);
}

void Bpe::push_candidate(Scratch& scratch, int32_t symbol) const {
  const Scratch::Symbol& left = scratch.symbols[static_cast<size_t>(symbol)];
  if (left.next < 0) return;
  const int32_t right_id = scratch.symbols[static_cast<size_t>(left.next)].id;
  const Merge* merge = find_merge(left.id, right_id);
  if (merge == nullptr) return;
  scratch.heap.push_back({merge->rank, symbol, left.id, right_id});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), worse);
}

// Merges symbols [begin, end) and appends what is left of them.
void Bpe::merge(Scratch& scratch, int32_t begin, int32_t end, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  const auto at = [&](int32_t index) -> Scratch::Symbol& {
    return symbols[static_cast<size_t>(index)];
  };
  for (int32_t i = begin; i < end; ++i) {
    at(i).previous = i == begin ? -1 : i - 1;
    at(i).next = i + 1 == end ? -1 : i + 1;
  }
  scratch.heap.clear();
  for (int32_t i = begin; i + 1 < end; ++i) push_candidate(scratch, i);
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), worse);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = at(best.symbol);
    // Out of date when either side was merged since; a merged-away symbol has id -1.
    if (left.id != best.left || left.next < 0 || at(left.next).id != best.right) continue;
    Scratch::Symbol& right = at(left.next);
    left.id = find_merge(best.left, best.right)->merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).previous = best.symbol;
    if (left.previous >= 0) push_candidate(scratch, left.previous);
    push_candidate(scratch, best.symbol);
  }
  for (int32_t i = begin; i >= 0 && i < end; i = at(i).next) out.push_back(at(i).id);
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  if (const auto found = tokens_.find(word); found != tokens_.end()) {
    out.push_back(found->second);
    return;
  }
  const auto take_whole = [&](std::string_view text) {
    const auto found = whole_.find(text);
    if (found != whole_.end()) out.push_back(found->second);
    return found != whole_.end();
  };
  if (word.empty() || (byte_symbols_ && take_whole(word))) return;
  AMOEBA_CHECK_KIND(kData, word.size() <= 1 << 30, "encode: a word has ", word.size(),
                    " bytes, want at most ", 1 << 30);
  split(word, scratch);
  const auto& symbols = scratch.symbols;
  for (size_t begin = 0, end; begin < symbols.size(); begin = end) {
    for (end = begin + 1; end < symbols.size(); ++end) {
      if (!may_join(symbols[end - 1].id, symbols[end].id)) break;
    }
    if (end - begin == 1) {
      out.push_back(symbols[begin].id);
      continue;
    }
    const size_t first = symbols[begin].begin;
    const size_t last = end < symbols.size() ? symbols[end].begin : word.size();
    if (take_whole(word.substr(first, last - first))) continue;
    merge(scratch, static_cast<int32_t>(begin), static_cast<int32_t>(end), out);
  }
}

}  // namespace amoeba::formats
