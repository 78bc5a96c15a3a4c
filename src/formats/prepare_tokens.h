// Text to a folder of tokens, once, so that training opens it at once.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/tokenizer.h"

namespace amoeba::formats {

// In a prepared folder: tokens.bin, tokens.idx (Megatron's indexed dataset) and dataset.json, which
// says what they were made of.
inline constexpr const char* kPreparedTokens = "/tokens";
inline constexpr const char* kPreparedInfo = "/dataset.json";

struct PrepareOptions {
  std::vector<std::string> inputs;  // text or JSONL files, one behind another
  std::string output;               // the folder; must not exist
  std::string document_separator;
  int64_t num_threads = 0;                                    // 0: all cores
  std::function<void(int64_t done, int64_t total)> progress;  // bytes of the inputs; may be empty
  std::function<bool()> stop;                                 // may be empty
};

struct PreparedTokens {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;  // of text
};

// Each document becomes prefix, text, end of document. The folder appears whole or not at all: it
// is written beside its place under a name of its own and then renamed, so of several writers one
// wins and the others get an error. Equal inputs give equal files, whatever the number of threads.
// Error(kData) when the output exists, or the inputs do not read; Error(kUsage) when stopped.
PreparedTokens prepare_tokens(FileSystem& files, const Tokenizer& tokenizer,
                              const PrepareOptions& options);

// One document as tokens.
std::vector<int32_t> encode_document(const Tokenizer& tokenizer, const std::string& text);

}  // namespace amoeba::formats
