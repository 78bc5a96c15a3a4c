#include "train/plain/config_layers.h"

#include <algorithm>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/value.h"

namespace amoeba::train {
namespace {

struct Layer {
  std::string source;  // as messages and origins name it
  std::string text;
};

bool is_file(const std::string& name) {
  return name.find('/') != name.npos || name.ends_with(".toml") || name.ends_with(".json");
}

Layer find_preset(const std::string& name) {
  for (const Preset& preset : presets()) {
    if (preset.name == name) return {name + ".toml", std::string(preset.toml)};
  }
  const std::vector<std::string> names = preset_names();
  const std::string nearest = nearest_name(name, names);
  fail(ErrorKind::kUsage, cat("--config: unknown preset '", name, "', want one of ",
                              join(names, ", "), ", or a .toml or .json file",
                              nearest.empty() ? "" : cat("; did you mean '", nearest, "'?")));
}

Layer read_layer(FileSystem& files, const std::string& path) {
  AMOEBA_CHECK(path.ends_with(".toml") || path.ends_with(".json"), "--config: '", path,
               "' is no .toml or .json file");
  AMOEBA_CHECK(files.exists(path), "--config: file '", path, "' does not exist");
  AMOEBA_CHECK(!files.is_directory(path), "--config: '", path, "' is a folder, want a file");
  return {path, files.read(path)};
}

formats::Value parse_layer(const Layer& layer) {
  return layer.source.ends_with(".json") ? formats::parse_json(layer.text, layer.source)
                                         : formats::parse_toml(layer.text, layer.source);
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.emplace_back(preset.name);
  return names;
}

std::unique_ptr<LoadedConfig> load_config(
    FileSystem& files, const std::vector<std::string>& layers,
    const std::vector<std::pair<std::string, std::string>>& overrides) {
  auto loaded = std::make_unique<LoadedConfig>();
  for (const std::string& name : layers) {
    try {
      const Layer layer = is_file(name) ? read_layer(files, name) : find_preset(name);
      loaded->schema.apply(parse_layer(layer), layer.source);
    } catch (const Error& error) {
      // A configuration that cannot be read is a mistake of usage, whatever the reader calls it.
      if (error.kind() == ErrorKind::kData) fail(ErrorKind::kUsage, error.what());
      throw;
    }
  }
  for (const auto& [path, text] : overrides) loaded->schema.apply_override(path, text);
  return loaded;
}

}  // namespace amoeba::train
