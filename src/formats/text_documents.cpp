#include "formats/text_documents.h"

#include <algorithm>

#include "amoeba/error.h"
#include "formats/value.h"

namespace amoeba::formats {

TextDocuments::TextDocuments(FileSystem& files, const std::string& path,
                             const std::string& separator)
    : path_(path), is_json_(path.ends_with(".jsonl")), file_(files.map(path)) {
  const std::string_view text(reinterpret_cast<const char*>(file_->data().data()),
                              file_->data().size());
  AMOEBA_CHECK_KIND(kData, !text.empty(), "open text '", path, "': the file is empty");
  const std::string_view cut = is_json_ ? std::string_view("\n") : std::string_view(separator);
  int64_t line = 1;
  for (size_t begin = 0; begin < text.size(); ++line) {
    const size_t end = cut.empty() ? text.size() : std::min(text.find(cut, begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    const bool is_blank = is_json_ ? part.find_first_not_of(" \t\r") == part.npos : part.empty();
    if (!is_blank) {
      pieces_.push_back({static_cast<int64_t>(begin), static_cast<int64_t>(part.size()), line});
    }
    begin = end + cut.size();
  }
  AMOEBA_CHECK_KIND(kData, !pieces_.empty(), "open text '", path, "': the file holds nothing but ",
                    is_json_ ? "empty lines" : "document separators");
}

std::string TextDocuments::text(int64_t index) const {
  const Piece& at = piece(index);
  const std::string_view part(reinterpret_cast<const char*>(data() + at.begin),
                              static_cast<size_t>(at.size));
  if (!is_json_) return std::string(part);
  const std::string where = cat(path_, " line ", at.line);
  return parse_json_member(part, where, "text").string_at("text", where);
}

}  // namespace amoeba::formats
