// The files that make a tokenizer, to be kept with a model.
#pragma once

#include <string>
#include <vector>

#include "base/file_system.h"
#include "train/plain/checkpoint.h"

namespace amoeba::train {

// tokenizer.json of `name` (see data.tokenizer) and what transformers keeps beside it: the token
// that ends a document, chat templates. None for "bytes".
std::vector<AttachedFile> read_tokenizer_files(FileSystem& files, const std::string& name);

}  // namespace amoeba::train
