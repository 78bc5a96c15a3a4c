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
  // Index of the first token of the document that holds token `index`.
  virtual int64_t document_start(int64_t index) const = 0;
  virtual int64_t num_documents() const = 0;
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

}  // namespace amoeba::formats
