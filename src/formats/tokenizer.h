// Text to token ids and back: bytes, or a tokenizer.json of Hugging Face's `tokenizers`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"

namespace amoeba::formats {

// All functions may be called from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;         // "bytes" or the path
  virtual std::string fingerprint() const = 0;  // equal for tokenizers that give equal ids
  virtual int64_t vocab_size() const = 0;       // ids are in [0, vocab_size)
  virtual int32_t end_of_document() const = 0;  // never produced by encode()
  // What the tokenizer puts before a text of its own, such as a begin-of-text token.
  virtual std::vector<int32_t> prefix() const { return {}; }
  // Text as data: what looks like a special token is ordinary text. No prefix.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Text from a user: special tokens are taken as such, and the prefix is put before.
  virtual std::vector<int32_t> encode_prompt(std::string_view text) const { return encode(text); }
  // Ids that stand for no text (special ones, padding of a model's vocabulary) give nothing; a
  // negative id is Error(kUsage).
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
  // What id adds to a text that has begun: decode() without what it does at a text's start.
  virtual std::string_view token_text(int32_t id) const = 0;
  // Bytes that decode() drops of a text that begins with id: a space put there by encode().
  virtual int64_t added_bytes(int32_t) const { return 0; }
};

// Ids 0..255 are the bytes themselves, 256 ends a document; vocab_size 257.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEndOfDocument = 256;
  std::string name() const override { return "bytes"; }
  std::string fingerprint() const override { return "bytes"; }
  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return kEndOfDocument; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  std::string_view token_text(int32_t id) const override;
};

// "bytes", or the path of a tokenizer.json or of the folder that holds it. Anything else:
// Error(kUsage).
std::unique_ptr<Tokenizer> make_tokenizer(FileSystem& files, const std::string& name);

}  // namespace amoeba::formats
