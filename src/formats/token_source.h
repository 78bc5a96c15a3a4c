// A long row of tokens with document boundaries: what training reads, whatever the file format.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/file_system.h"
#include "formats/tokenizer.h"

namespace amoeba::formats {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual const std::string& name() const = 0;  // the path, for messages
  virtual int64_t num_tokens() const = 0;
  // Bytes of original text that tokens [begin, end) stand for (end-of-document tokens: 0).
  virtual int64_t num_bytes(int64_t begin, int64_t end) const = 0;
  // Copies tokens [begin, begin + out.size()).
  virtual void read(int64_t begin, std::span<int32_t> out) const = 0;
  // The first index in (begin, end) at which a document begins; `end` when there is none.
  virtual int64_t next_document(int64_t begin, int64_t end) const = 0;
  virtual int64_t num_documents() const = 0;  // may read all tokens
};

// Opens a UTF-8 or binary text file as byte tokens, memory-mapped; any other tokenizer is refused.
// `document_separator` (may be empty: the file is one document) cuts the text; the separator itself
// is dropped, empty documents are skipped. With two or more documents each is followed by the
// end-of-document token; a file that is one document has no such token, so its tokens are exactly
// its bytes. Error(kData) for a missing, empty or unreadable file, a folder, or nothing but
// separators.
std::unique_ptr<TokenSource> open_text(FileSystem& files, const std::string& path,
                                       const Tokenizer& tokenizer,
                                       const std::string& document_separator);

// Opens whatever `path` holds, known by its content, then by its name:
//   a folder made by prepare_tokens()             its tokens; the tokenizer must be the same
//   NAME.bin or NAME.idx or NAME, with NAME.idx   Megatron's indexed dataset
//   a .npy header                                 one row of integers
//   llm.c's magic number                          a shard of llm.c
//   NAME.u16, NAME.u32, NAME.bin                  bare uint16, uint32, uint16 tokens
//   NAME.jsonl                                    text: the key "text" of every line
//   anything else                                 text: documents between separators
// Text with another tokenizer than bytes is encoded here, in memory, by `num_threads` (0: all
// cores), each document as prefix, text, end of document. In the other formats a document ends at
// an end-of-document token or where Megatron's index says. The tokenizer must outlive the source.
// Error(kData) that names file, got and want for what does not fit, also later for a token outside
// the vocabulary.
std::unique_ptr<TokenSource> open_tokens(FileSystem& files, const std::string& path,
                                         const Tokenizer& tokenizer,
                                         const std::string& document_separator,
                                         int64_t num_threads = 0);

}  // namespace amoeba::formats
