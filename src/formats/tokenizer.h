// Text to token ids and back. Bytes are the only tokenizer so far; others join behind this
// interface.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace amoeba::formats {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;
  virtual int64_t vocab_size() const = 0;       // ids are in [0, vocab_size)
  virtual int32_t end_of_document() const = 0;  // never produced by encode()
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Ids that stand for no text (special ones, padding of a model's vocabulary) give nothing; a
  // negative id is Error(kUsage).
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
};

// Ids 0..255 are the bytes themselves, 256 ends a document; vocab_size 257.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEndOfDocument = 256;
  std::string name() const override { return "bytes"; }
  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return kEndOfDocument; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
};

// Unknown name: Error(kUsage) that lists the names.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace amoeba::formats
