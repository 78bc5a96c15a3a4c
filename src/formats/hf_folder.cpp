#include "formats/hf_folder.h"

#include <set>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::formats {

namespace {

constexpr const char* kConfig = "/config.json";
constexpr const char* kSingle = "/model.safetensors";
constexpr const char* kIndex = "/model.safetensors.index.json";

// A tensor's shard by the index: a plain file name, so that no index reaches out of its folder.
std::map<std::string, std::string> read_index(FileSystem& files, const std::string& path) {
  const std::string text = files.read(path);
  // A tensor has one value in twenty bytes and more: "a":"a.safetensors",
  const Value index = parse_json(text, path, static_cast<int64_t>(4096 + text.size() / 16));
  const Value& map = index.at("weight_map", path);
  const auto* members = map.get_if<Object>();
  AMOEBA_CHECK_KIND(kData, members != nullptr, path, ": weight_map is ", map.type_name(),
                    ", want an object");
  std::map<std::string, std::string> shards;
  for (const auto& [name, value] : *members) {
    const auto* shard = value.get_if<std::string>();
    AMOEBA_CHECK_KIND(kData, shard != nullptr, path, ": weight_map['", printable(name), "'] is ",
                      value.type_name(), ", want the name of a file");
    AMOEBA_CHECK_KIND(kData, shard->ends_with(".safetensors") && shard->find('/') == shard->npos,
                      path, ": weight_map['", printable(name), "'] is '", printable(*shard),
                      "', want the name of a .safetensors file beside it");
    shards[name] = *shard;
  }
  return shards;
}

}  // namespace

bool is_hf_folder(FileSystem& files, const std::string& path) {
  return files.is_directory(path) && files.exists(path + kConfig);
}

Value read_hf_config_json(FileSystem& files, const std::string& folder) {
  const std::string path = folder + kConfig;
  AMOEBA_CHECK_KIND(kData, is_hf_folder(files, folder), "'", folder,
                    "' holds no config.json, want a Hugging Face folder");
  Value config = parse_json(files.read(path), path);
  AMOEBA_CHECK_KIND(kData, config.get_if<Object>() != nullptr, path, ": is ", config.type_name(),
                    ", want an object");
  return config;
}

HfWeights open_hf_weights(FileSystem& files, const std::string& folder) {
  HfWeights weights;
  const bool single = files.exists(folder + kSingle), indexed = files.exists(folder + kIndex);
  AMOEBA_CHECK_KIND(kData, single || indexed, "'", folder,
                    "' holds neither model.safetensors nor model.safetensors.index.json");
  AMOEBA_CHECK_KIND(kData, !single || !indexed, "'", folder,
                    "' holds both model.safetensors and model.safetensors.index.json, want one");
  if (single) {
    weights.files.push_back(read_safetensors(files, folder + kSingle));
    for (TensorEntry& tensor : weights.files[0].tensors) weights.tensors[tensor.name] = tensor;
    return weights;
  }
  const std::string index_path = folder + kIndex;
  const auto index = read_index(files, index_path);
  std::set<std::string> shards;
  for (const auto& [name, shard] : index) shards.insert(shard);
  for (const std::string& shard : shards) {
    const std::string path = folder + "/" + shard;
    AMOEBA_CHECK_KIND(kData, files.exists(path), index_path, ": shard '", printable(shard),
                      "' does not exist");
    weights.files.push_back(read_safetensors(files, path));
    for (const TensorEntry& tensor : weights.files.back().tensors) {
      const auto listed = index.find(tensor.name);
      AMOEBA_CHECK_KIND(kData, listed != index.end(), path, ": tensor '", printable(tensor.name),
                        "' is not in the index");
      AMOEBA_CHECK_KIND(kData, listed->second == shard, path, ": tensor '", printable(tensor.name),
                        "' belongs to '", printable(listed->second), "' by the index");
      weights.tensors[tensor.name] = tensor;
    }
  }
  for (const auto& [name, shard] : index) {
    AMOEBA_CHECK_KIND(kData, weights.tensors.count(name) == 1, index_path, ": shard '",
                      printable(shard), "' does not hold tensor '", printable(name), "'");
  }
  return weights;
}

}  // namespace amoeba::formats
