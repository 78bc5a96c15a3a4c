// Counts the words of the text, then merges the most frequent pair of symbols again and again; only
// the words that hold the pair are touched, and a heap with entries corrected when they come up
// finds the next pair (as the trainer of `tokenizers` does, whose results this reproduces).
#include "formats/train_bpe.h"

#include <algorithm>
#include <queue>
#include <set>
#include <unordered_map>

#include "amoeba/error.h"
#include "base/text.h"
#include "base/threads.h"
#include "formats/byte_alphabet.h"
#include "formats/regex.h"
#include "formats/text_documents.h"
#include "formats/unicode.h"
#include "formats/value.h"

namespace amoeba::formats {

namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr int64_t kBatchBytes = 32 << 20;
constexpr int64_t kTasksPerBatch = 64;  // independent of the threads

using WordCounts = std::unordered_map<std::string, int64_t>;

// ---- Words --------------------------------------------------------------------------------------

void count_piece(const Regex& regex, std::string_view text, WordCounts& counts) {
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) ++counts[std::string(text.substr(begin, end - begin))];
  };
  size_t done = 0;
  while (done < text.size()) {
    const auto match = regex.find(text, done);
    if (!match || match->begin == match->end) break;  // an empty match parts nothing here
    add(done, match->begin);
    add(match->begin, match->end);
    done = match->end;
  }
  add(done, text.size());
}

void count_document(const Regex& regex, const std::string& document, WordCounts& counts) {
  const std::string text = is_utf8(document) ? document : to_utf8(document);
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.size();
    if (end - begin > kPieceBytes) {
      const size_t line = text.rfind('\n', begin + kPieceBytes);
      if (line != text.npos && line > begin) end = line + 1;
    }
    count_piece(regex, std::string_view(text).substr(begin, end - begin), counts);
    begin = end;
  }
}

WordCounts count_words(FileSystem& files, const TrainBpeOptions& options) {
  const Regex regex(options.pattern, "tokenizer train");
  std::vector<TextDocuments> inputs;
  int64_t total = 0, done = 0;
  for (const std::string& path : options.inputs) {
    inputs.emplace_back(files, path, options.document_separator);
    for (int64_t i = 0; i < inputs.back().size(); ++i) total += inputs.back().file_bytes(i);
  }
  WordCounts counts;
  for (const TextDocuments& documents : inputs) {
    for (int64_t begin = 0, end = 0; begin < documents.size(); begin = end) {
      AMOEBA_CHECK(!options.stop || !options.stop(), "tokenizer train: stopped");
      int64_t bytes = 0;
      while (end < documents.size() && bytes < kBatchBytes) bytes += documents.file_bytes(end++);
      std::vector<WordCounts> parts(kTasksPerBatch);
      const int64_t size = end - begin;
      run_in_parallel(options.num_threads, kTasksPerBatch, [&](int64_t task) {
        for (int64_t i = size * task / kTasksPerBatch; i < size * (task + 1) / kTasksPerBatch;
             ++i) {
          count_document(regex, documents.text(begin + i), parts[static_cast<size_t>(task)]);
        }
      });
      for (const WordCounts& part : parts) {
        for (const auto& [word, count] : part) counts[word] += count;
      }
      done += bytes;
      if (options.progress) options.progress("bytes", done, total);
    }
  }
  return counts;
}

// ---- Merges -------------------------------------------------------------------------------------

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    return (static_cast<uint64_t>(pair.first) * 0x9e3779b97f4a7c15u) ^
           (static_cast<uint64_t>(pair.second) * 0xc2b2ae3d27d4eb4fu);
  }
};

struct Candidate {
  int64_t count;
  Pair pair;
  // The largest count comes first, of equal ones the lowest pair.
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class Merger {
 public:
  // `texts`: of the ids there are, in bytes, each byte among them behind `num_special` others,
  // which no merge may make.
  Merger(const WordCounts& counts, std::vector<std::string> texts, int64_t num_special)
      : texts_(std::move(texts)) {
    for (int64_t id = 0; id < num_special; ++id) {
      const auto bytes = byte_level_text(texts_[static_cast<size_t>(id)]);
      if (bytes) special_.insert(*bytes);
    }
    int32_t byte_ids[256] = {};
    for (size_t id = static_cast<size_t>(num_special); id < texts_.size(); ++id) {
      byte_ids[static_cast<unsigned char>(texts_[id][0])] = static_cast<int32_t>(id);
      ids_.emplace(texts_[id], static_cast<int32_t>(id));
    }
    for (const auto& [text, count] : counts) {
      const auto index = static_cast<uint32_t>(words_.size());
      Word& word = words_.emplace_back(Word{{}, count});
      for (const char c : text) word.symbols.push_back(byte_ids[static_cast<unsigned char>(c)]);
      for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
        change({word.symbols[i], word.symbols[i + 1]}, count, index);
      }
    }
    push_changed();
  }

  // Merges the most frequent pair. False when there is none.
  bool step() {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const int64_t count = counts_[top.pair];
      if (count != top.count) {  // it was larger when it was put there
        if (count > 0) queue_.push({count, top.pair});
        continue;
      }
      const std::string together = text_of(top.pair.first) + text_of(top.pair.second);
      if (special_.contains(together)) continue;
      merge(top.pair, together);
      return true;
    }
    return false;
  }

  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  const std::vector<std::string>& texts() const { return texts_; }
  const std::vector<Pair>& merges() const { return merges_; }

 private:
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };

  void change(Pair pair, int64_t count, uint32_t word) {
    counts_[pair] += count;
    if (count <= 0) return;
    std::vector<uint32_t>& places = places_[pair];
    if (places.empty() || places.back() != word) places.push_back(word);
    changed_.insert(pair);
  }

  void push_changed() {
    for (const Pair& pair : changed_) {
      const int64_t count = counts_[pair];
      if (count > 0) queue_.push({count, pair});
    }
    changed_.clear();
  }

  const std::string& text_of(int32_t id) const { return texts_[static_cast<size_t>(id)]; }

  void merge(Pair pair, const std::string& together) {
    // Two pairs can make the same text.
    const auto [found, is_new] = ids_.emplace(together, static_cast<int32_t>(texts_.size()));
    const int32_t merged = found->second;
    if (is_new) texts_.push_back(together);
    merges_.push_back(pair);
    const std::vector<uint32_t> places = std::move(places_[pair]);
    places_.erase(pair);
    for (const uint32_t index : places) {
      Word& word = words_[index];
      std::vector<int32_t>& symbols = word.symbols;
      size_t kept = 0;
      for (size_t i = 0; i < symbols.size(); ++i) {
        if (symbols[i] != pair.first || i + 1 == symbols.size() || symbols[i + 1] != pair.second) {
          symbols[kept++] = symbols[i];
          continue;
        }
        if (kept > 0) {
          change({symbols[kept - 1], pair.first}, -word.count, index);
          change({symbols[kept - 1], merged}, word.count, index);
        }
        ++i;
        if (i + 1 < symbols.size()) {
          change({pair.second, symbols[i + 1]}, -word.count, index);
          change({merged, symbols[i + 1]}, word.count, index);
        }
        symbols[kept++] = merged;
      }
      symbols.resize(kept);
    }
    counts_.erase(pair);
    push_changed();
  }

  std::vector<std::string> texts_;  // by id
  std::unordered_map<std::string, int32_t> ids_;
  std::set<std::string> special_;
  std::vector<Word> words_;
  std::unordered_map<Pair, int64_t, PairHash> counts_;
  std::unordered_map<Pair, std::vector<uint32_t>, PairHash> places_;  // words that hold it, or did
  std::set<Pair> changed_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> merges_;
};

// ---- The file -----------------------------------------------------------------------------------

Value byte_level_part() {
  return {Object{{"type", {"ByteLevel"}},
                 {"add_prefix_space", {false}},
                 {"trim_offsets", {true}},
                 {"use_regex", {false}}}};
}

Value model_part(const Merger& merger, const std::vector<std::string>& special_tokens) {
  Object vocabulary;
  std::vector<std::string> texts = special_tokens;
  for (size_t id = texts.size(); id < merger.texts().size(); ++id) {
    texts.push_back(byte_level_token(merger.texts()[id]));
  }
  for (size_t id = 0; id < texts.size(); ++id) {
    vocabulary.emplace_back(texts[id], Value{static_cast<int64_t>(id)});
  }
  Array merges;
  for (const auto& [left, right] : merger.merges()) {
    merges.push_back(
        {Array{{texts[static_cast<size_t>(left)]}, {texts[static_cast<size_t>(right)]}}});
  }
  return {Object{{"type", {"BPE"}},
                 {"dropout", {}},
                 {"unk_token", {}},
                 {"continuing_subword_prefix", {}},
                 {"end_of_word_suffix", {}},
                 {"fuse_unk", {false}},
                 {"byte_fallback", {false}},
                 {"ignore_merges", {false}},
                 {"vocab", {std::move(vocabulary)}},
                 {"merges", {std::move(merges)}}}};
}

std::string write_tokenizer(const Merger& merger, const TrainBpeOptions& options) {
  Array added;
  for (size_t id = 0; id < options.special_tokens.size(); ++id) {
    added.push_back({Object{{"id", {static_cast<int64_t>(id)}},
                            {"content", {options.special_tokens[id]}},
                            {"single_word", {false}},
                            {"lstrip", {false}},
                            {"rstrip", {false}},
                            {"normalized", {false}},
                            {"special", {true}}}});
  }
  const Value split{Object{{"type", {"Split"}},
                           {"pattern", {Object{{"Regex", {options.pattern}}}}},
                           {"behavior", {"Isolated"}},
                           {"invert", {false}}}};
  return write_json({Object{{"version", {"1.0"}},
                            {"truncation", {}},
                            {"padding", {}},
                            {"added_tokens", {std::move(added)}},
                            {"normalizer", {}},
                            {"pre_tokenizer",
                             {Object{{"type", {"Sequence"}},
                                     {"pretokenizers", {Array{split, byte_level_part()}}}}}},
                            {"post_processor", {}},
                            {"decoder", byte_level_part()},
                            {"model", model_part(merger, options.special_tokens)}}},
                    1) +
         "\n";
}

}  // namespace

std::string train_bpe(FileSystem& files, const TrainBpeOptions& options) {
  AMOEBA_CHECK(!options.inputs.empty(), "tokenizer train: inputs are missing, want text files");
  AMOEBA_CHECK(!options.special_tokens.empty(),
               "tokenizer train: special tokens are missing, want one that ends a document");
  const auto num_special = static_cast<int64_t>(options.special_tokens.size());
  const int64_t smallest = num_special + 256;
  AMOEBA_CHECK(options.vocab_size >= smallest && options.vocab_size <= 1 << 24,
               "tokenizer train: vocabulary size is ", options.vocab_size, ", want ", smallest,
               " (special tokens and bytes) to ", 1 << 24);
  std::set<std::string> distinct;
  for (const std::string& token : options.special_tokens) {
    const bool good = !token.empty() && is_utf8(token) && distinct.insert(token).second;
    AMOEBA_CHECK(good, "tokenizer train: special token '", printable(token),
                 "' is empty, not UTF-8 or there twice");
  }

  std::vector<std::string> texts = options.special_tokens;
  std::vector<std::pair<char32_t, char>> alphabet;
  for (int b = 0; b < 256; ++b) {
    alphabet.emplace_back(byte_character(static_cast<unsigned char>(b)), static_cast<char>(b));
  }
  std::sort(alphabet.begin(), alphabet.end());
  for (const auto& [character, byte] : alphabet) texts.emplace_back(1, byte);

  Merger merger(count_words(files, options), std::move(texts), num_special);
  while (merger.size() < options.vocab_size && merger.step()) {
    if (merger.merges().size() % 64 != 0) continue;
    AMOEBA_CHECK(!options.stop || !options.stop(), "tokenizer train: stopped");
    if (options.progress) options.progress("tokens", merger.size(), options.vocab_size);
  }
  return write_tokenizer(merger, options);
}

}  // namespace amoeba::formats
