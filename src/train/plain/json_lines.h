// JSONL: one JSON object a line.
#pragma once

#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/value.h"

namespace amoeba::train {

struct JsonLine {
  std::string where;  // "FILE:LINE", for messages
  formats::Value value;
};

// Empty lines are skipped. Error(kData) with file and line for what is not a JSON object, or when
// there is none.
std::vector<JsonLine> read_json_lines(FileSystem& files, const std::string& path);

}  // namespace amoeba::train
