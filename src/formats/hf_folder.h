// A folder as Hugging Face's libraries write it: config.json, and either model.safetensors or
// model.safetensors.index.json with the shards that it names.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/safetensors.h"
#include "formats/value.h"

namespace amoeba::formats {

bool is_hf_folder(FileSystem& files, const std::string& path);

// config.json of the folder, an object.
Value read_hf_config_json(FileSystem& files, const std::string& folder);

struct HfWeights {
  std::vector<SafetensorsFile> files;
  std::map<std::string, TensorEntry> tensors;  // by name; the data points into the files
};

// Maps the folder's weights. Error(kData) names the file and the tensor: no weights, or both a
// single file and an index; an index that names a shard outside the folder, a shard that does not
// hold a tensor which the index says it does, or holds one that the index does not give it.
HfWeights open_hf_weights(FileSystem& files, const std::string& folder);

}  // namespace amoeba::formats
