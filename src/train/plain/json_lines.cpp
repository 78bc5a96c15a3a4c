#include "train/plain/json_lines.h"

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::train {

std::vector<JsonLine> read_json_lines(FileSystem& files, const std::string& path) {
  std::vector<JsonLine> lines;
  int64_t number = 0;
  for (const std::string& line : split(files.read(path), '\n')) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = cat(path, ":", number);
    lines.push_back({where, formats::parse_json(line, where)});
    const formats::Value& value = lines.back().value;
    AMOEBA_CHECK_KIND(kData, value.get_if<formats::Object>() != nullptr, where, ": is of type ",
                      value.type_name(), ", want an object");
  }
  AMOEBA_CHECK_KIND(kData, !lines.empty(), path, ": has no lines, want a JSON object on each");
  return lines;
}

}  // namespace amoeba::train
