// A model as a Hugging Face folder: config.json, weights in shards with their index, and the
// tokenizer.json that the run had.
#pragma once

#include <string>

#include "amoeba/model.h"
#include "base/file_system.h"
#include "formats/tokenizer.h"
#include "train/plain/hf_config.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

struct ExportOptions {
  HfFamily family = HfFamily::kMixtral;
  std::string dtype = "float32";  // float32 | bfloat16 | float16
  int64_t max_shard_bytes = int64_t{5} << 30;
};

// Writes `folder`, which must not exist; it gets its name when all of it is on disk. One tensor at
// a time is converted. Error(kUsage) naming the first setting that the family cannot express.
void export_hugging_face(FileSystem& files, nn::Model& model, const RunConfig& config,
                         const formats::Tokenizer& tokenizer, const ExportOptions& options,
                         const std::string& folder);

}  // namespace amoeba::train
