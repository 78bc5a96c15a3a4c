// A mapped text file as byte tokens. Only the documents' places are kept in memory, so opening a
// file costs one search for the separator and reading costs a copy.
#include <algorithm>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "formats/text_documents.h"
#include "formats/token_source.h"

namespace amoeba::formats {

namespace {

struct Document {
  int64_t first_token = 0;
  int64_t first_byte = 0;
  int64_t num_bytes = 0;
};

class TextSource final : public TokenSource {
 public:
  TextSource(std::string name, TextDocuments documents, int32_t end_of_document)
      : name_(std::move(name)),
        end_of_document_(end_of_document),
        marks_per_document_(documents.size() > 1 ? 1 : 0) {
    for (int64_t i = 0; i < documents.size(); ++i) {
      documents_.push_back({num_tokens_, documents.file_offset(i), documents.file_bytes(i)});
      num_tokens_ += documents.file_bytes(i) + marks_per_document_;
    }
    file_ = documents.take_file();
  }

  const std::string& name() const override { return name_; }
  int64_t num_tokens() const override { return num_tokens_; }
  int64_t num_documents() const override { return static_cast<int64_t>(documents_.size()); }

  int64_t num_bytes(int64_t begin, int64_t end) const override {
    check_range("num_bytes", begin, end);
    return bytes_before(end) - bytes_before(begin);
  }

  void read(int64_t begin, std::span<int32_t> out) const override {
    const int64_t end = begin + static_cast<int64_t>(out.size());
    check_range("read", begin, end);
    if (out.empty()) return;
    const std::byte* data = file_->data().data();
    auto document = documents_.begin() + document_of(begin);
    for (int64_t token = begin; token < end; ++document) {
      const int64_t text_end = document->first_token + document->num_bytes;
      int32_t* to = out.data() + (token - begin);
      if (token < text_end) {
        const std::byte* from = data + document->first_byte + (token - document->first_token);
        const int64_t count = std::min(text_end, end) - token;
        std::transform(from, from + count, to, [](std::byte b) { return static_cast<int32_t>(b); });
        token += count;
        to += count;
      }
      if (token < end && marks_per_document_ == 1) {
        *to = end_of_document_;
        ++token;
      }
    }
  }

  int64_t next_document(int64_t begin, int64_t end) const override {
    check_range("next_document", begin, end);
    if (begin == end) return end;
    const auto next = documents_.begin() + document_of(begin) + 1;
    return next == documents_.end() ? end : std::min(next->first_token, end);
  }

 private:
  void check_range(const char* operation, int64_t begin, int64_t end) const {
    AMOEBA_CHECK(0 <= begin && begin <= end && end <= num_tokens_, operation, " '", name_,
                 "': tokens [", begin, ", ", end, "), want a range inside [0, ", num_tokens_, ")");
  }

  // The document that holds token `index`; the last one for index == num_tokens_.
  int64_t document_of(int64_t index) const {
    const auto after = std::upper_bound(
        documents_.begin(), documents_.end(), index,
        [](int64_t token, const Document& document) { return token < document.first_token; });
    return after - documents_.begin() - 1;
  }

  int64_t bytes_before(int64_t index) const {
    const int64_t document = document_of(index);
    const Document& last = documents_[static_cast<size_t>(document)];
    return last.first_token - document * marks_per_document_ +
           std::min(index - last.first_token, last.num_bytes);
  }

  std::string name_;
  std::unique_ptr<MappedFile> file_;
  std::vector<Document> documents_;
  int32_t end_of_document_;
  int64_t marks_per_document_;
  int64_t num_tokens_ = 0;
};

}  // namespace

std::unique_ptr<TokenSource> open_text(FileSystem& files, const std::string& path,
                                       const Tokenizer& tokenizer,
                                       const std::string& document_separator) {
  AMOEBA_CHECK(tokenizer.name() == "bytes", "open text '", path, "': tokenizer is '",
               tokenizer.name(), "', want bytes");
  return std::make_unique<TextSource>(path, TextDocuments(files, path, document_separator),
                                      tokenizer.end_of_document());
}

}  // namespace amoeba::formats
