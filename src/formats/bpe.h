// Byte pair encoding: one word to token ids by ranked merges (Sennrich et al. 2016), with the
// options of Hugging Face's BPE model that language models use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace amoeba::formats {

struct BpeModel {
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // text of a token, id; both unique
  std::vector<std::pair<int32_t, int32_t>> merges;          // ids, best first
  bool byte_symbols = false;   // a word starts as its bytes; else as its UTF-8 characters
  bool byte_fallback = false;  // a character without token becomes "<0xXX>" tokens
  bool fuse_unknown = false;   // a run of unknown characters is one unknown token
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  int32_t unknown = -1;        // id; -1: unknown characters give nothing
};

class Bpe {
 public:
  // Error(kData) that begins with `what`: a merge whose result is no token, ids below 0.
  Bpe(const BpeModel& model, const std::string& what);

  Bpe(const Bpe&) = delete;  // its maps point into it
  Bpe& operator=(const Bpe&) = delete;

  // Memory that encoding reuses; one a thread.
  struct Scratch {
    struct Symbol {
      int32_t id;
      uint32_t begin;          // byte in the word
      int32_t previous, next;  // symbols, -1: none
    };
    struct Candidate {
      int32_t rank, symbol, left, right;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // Appends the tokens of `word`, valid UTF-8 unless byte_symbols; at most 2^30 bytes.
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    uint64_t pair = UINT64_MAX;
    int32_t rank = 0;
    int32_t merged = 0;
  };

  void add_merge(uint64_t pair, int32_t rank, int32_t merged);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void find_joins(const BpeModel& model);
  bool may_join(int32_t left, int32_t right) const;
  int32_t symbol_of(char32_t character) const;  // -1: none
  void split(std::string_view word, Scratch& scratch) const;
  void push_candidate(Scratch& scratch, int32_t symbol) const;
  void merge(Scratch& scratch, int32_t begin, int32_t end, std::vector<int32_t>& out) const;

  std::vector<int32_t> low_symbols_;  // of characters below 2^16
  std::unordered_map<char32_t, int32_t> high_symbols_;
  std::vector<Merge> merges_;         // open addressing, a power of two
  std::vector<bool> joins_;           // bloom filter of (last symbol, first symbol) of all merges
  std::vector<int32_t> byte_tokens_;  // [256] or empty
  std::vector<std::string> texts_;    // keys of whole_ and tokens_ point here
  std::unordered_map<std::string_view, int32_t> tokens_;  // with ignore_merges
  std::unordered_map<std::string_view, int32_t> whole_;   // texts that encode to one token
  bool byte_symbols_;
  bool fuse_unknown_;
  int32_t unknown_;
};

}  // namespace amoeba::formats
