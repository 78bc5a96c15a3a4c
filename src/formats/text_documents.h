// The documents of a text file: between separators, or the lines of a JSONL file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"

namespace amoeba::formats {

class TextDocuments {
 public:
  // NAME.jsonl is one JSON object a line with a "text"; empty lines are skipped, the separator is
  // not used. Other files are cut at `separator` (empty: one document), empty documents skipped.
  // Error(kData) for a missing or empty file, or one without documents.
  TextDocuments(FileSystem& files, const std::string& path, const std::string& separator);

  int64_t size() const { return static_cast<int64_t>(pieces_.size()); }
  // Bytes of document `index` in the file: text, or the whole JSON line.
  int64_t file_bytes(int64_t index) const { return piece(index).size; }
  // Where it begins in the file.
  int64_t file_offset(int64_t index) const { return piece(index).begin; }
  // Error(kData) with the number of the line for JSON that does not parse or has no text.
  std::string text(int64_t index) const;
  const std::byte* data() const { return file_->data().data(); }
  std::unique_ptr<MappedFile> take_file() { return std::move(file_); }

 private:
  struct Piece {
    int64_t begin = 0;
    int64_t size = 0;
    int64_t line = 0;  // JSONL: from 1
  };
  const Piece& piece(int64_t index) const { return pieces_[static_cast<size_t>(index)]; }

  std::string path_;
  bool is_json_;
  std::unique_ptr<MappedFile> file_;
  std::vector<Piece> pieces_;
};

}  // namespace amoeba::formats
