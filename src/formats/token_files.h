// Files of tokens, memory-mapped, every header checked against the file's size before use.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/token_array.h"

namespace amoeba::formats {

// All throw Error(kData) naming the file, got and want.

// Megatron's indexed dataset (NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py):
// PREFIX.bin holds the tokens, PREFIX.idx, little-endian: "MMIDIDX\0\0", version 1 (uint64), type
// (uint8: 1 uint8, 3 int16, 4 int32, 5 int64, 8 uint16), number of sequences and of document
// bounds (uint64), then the sequences' lengths (int32), their places in the .bin in bytes (int64)
// and the documents' bounds as sequence numbers (int64). Sequences lie one behind another.
TokenArray read_indexed_tokens(FileSystem& files, const std::string& prefix);

// numpy's .npy, versions 1 to 3 (numpy/lib/format.py): one dimension, C order, little-endian.
TokenArray read_npy_tokens(FileSystem& files, const std::string& path);

// A shard of llm.c (karpathy/llm.c, dev/data/data_common.py): 256 int32 of header, of which magic,
// version and number of tokens are used; magic 20240520, version 1: uint16 tokens; magic 20240801,
// version 7: uint32.
TokenArray read_llmc_tokens(FileSystem& files, const std::string& path);

// Tokens and nothing else.
TokenArray read_bare_tokens(FileSystem& files, const std::string& path, TokenType type);

// Whether a file begins as one of the above does.
bool is_npy(std::span<const std::byte> data);
bool is_llmc(std::span<const std::byte> data);

// Writes PREFIX.bin and PREFIX.idx, each synced. One sequence a document.
class IndexedTokenWriter {
 public:
  // uint16 where all of the vocabulary fits, else int32.
  IndexedTokenWriter(FileSystem& files, const std::string& prefix, int64_t vocab_size);

  void add_document(std::span<const int32_t> tokens);  // Error(kData) for 2^31 tokens and more
  void finish();

  TokenType type() const { return type_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return static_cast<int64_t>(lengths_.size()); }

 private:
  FileSystem& files_;
  std::string prefix_;
  TokenType type_;
  std::unique_ptr<WritableFile> bin_;
  std::string buffer_;
  std::vector<int32_t> lengths_;
  int64_t num_tokens_ = 0;
};

}  // namespace amoeba::formats
