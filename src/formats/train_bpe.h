// Learns a byte-level BPE from text and writes it as a tokenizer.json that Hugging Face's
// `tokenizers` reads too.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace amoeba::formats {

struct TrainBpeOptions {
  std::vector<std::string> inputs;  // text or JSONL files
  std::string document_separator;
  int64_t vocab_size = 16384;  // special tokens and the 256 bytes among them
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  // Words by this pattern; merges do not cross them. The default is Qwen2's: digits one by one,
  // letters with at most one other character before them.
  std::string pattern =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
      "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  int64_t num_threads = 0;  // 0: all cores
  // Bytes of text counted, then tokens of the vocabulary; may be empty.
  std::function<void(const char* unit, int64_t done, int64_t total)> progress;
  std::function<bool()> stop;  // may be empty
};

// The text of a tokenizer.json without normalizer, so that decoding gives back the bytes. Merges
// are the most frequent pairs, of equal ones the pair with the lowest ids; the same text gives the
// same result for any number of threads. Ids: the special tokens, the bytes in the order of the
// byte alphabet's characters, the merges. The vocabulary is smaller when the text has no more
// pairs. Documents above 1 MiB are counted in pieces that are cut at line ends. Error(kData) for
// inputs that do not read, Error(kUsage) for options that make no sense or a stop.
std::string train_bpe(FileSystem& files, const TrainBpeOptions& options);

}  // namespace amoeba::formats
