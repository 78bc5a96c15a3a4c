#include "train/plain/config_layers.h"

#include <algorithm>
#include <type_traits>
#include <variant>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/value.h"
#include "train/plain/flavors.h"
#include "train/plain/model_source.h"

namespace amoeba::train {
namespace {

constexpr std::string_view kFromJson = "_from_json";

bool is_file(const std::string& name) {
  return name.find('/') != name.npos || name.ends_with(".toml") || name.ends_with(".json");
}

formats::Value parse_text(std::string_view text, const std::string& source) {
  return source.ends_with(".json") ? formats::parse_json(text, source)
                                   : formats::parse_toml(text, source);
}

void apply_file(FileSystem& files, const std::string& path, formats::Schema& schema) {
  AMOEBA_CHECK(path.ends_with(".toml") || path.ends_with(".json"), "--config: '", path,
               "' is no .toml or .json file");
  AMOEBA_CHECK(files.exists(path), "--config: file '", path, "' does not exist");
  AMOEBA_CHECK(!files.is_directory(path), "--config: '", path, "' is a folder, want a file");
  schema.apply(parse_text(files.read(path), path), path);
}

void apply_settings(const std::vector<Setting>& settings, const std::string& source,
                    formats::Schema& schema) {
  for (const Setting& setting : settings) {
    formats::Value value, section, document;
    std::visit(
        [&]<typename T>(T scalar) {
          if constexpr (std::is_same_v<T, std::string_view>) {
            value.data = std::string(scalar);
          } else {
            value.data = scalar;
          }
        },
        setting.value);
    const size_t dot = setting.path.find('.');
    section.data = formats::Object{{std::string(setting.path.substr(dot + 1)), std::move(value)}};
    document.data = formats::Object{{std::string(setting.path.substr(0, dot)), std::move(section)}};
    schema.apply(document, source);
  }
}

[[noreturn]] void fail_unknown(const std::string& name) {
  AMOEBA_CHECK(!name.empty(), "--config: the name is empty, want a preset, a flavor or a file");
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  if (name.ends_with(kFromJson)) {
    const std::string preset = name.substr(0, name.size() - kFromJson.size());
    AMOEBA_CHECK(std::find(names.begin(), names.end(), preset) == names.end(), "--config: '", name,
                 "' needs no preset of its own, want --config ", preset, " --config FILE.json");
  }
  for (const Flavor& flavor : flavors()) names.emplace_back(flavor.name);
  const std::string nearest = nearest_name(name, names);
  fail(ErrorKind::kUsage,
       cat("--config: unknown preset '", name,
           "', want a name of `amoeba config presets` or `amoeba config flavors`, or a .toml or "
           ".json file",
           nearest.empty() ? "" : cat("; did you mean '", nearest, "'?")));
}

void apply_preset(const std::string& name, formats::Schema& schema) {
  for (const PresetFile& preset : preset_files()) {
    if (preset.name != name) continue;
    const std::string source = name + ".toml";
    return schema.apply(parse_text(preset.toml, source), source);
  }
  if (const TrainerPreset* preset = find_trainer_preset(name)) {
    const std::string folder = "runs/" + name;
    std::vector<Setting> settings = settings_of(*preset);
    settings.push_back({"run.folder", folder});
    return apply_settings(settings, "preset " + name, schema);
  }
  if (const Flavor* flavor = find_flavor(name)) {
    return apply_settings(settings_of(*flavor), "flavor " + name, schema);
  }
  fail_unknown(name);
}

// The first sentence of the comment that a preset file starts with.
std::string summary_of(const PresetFile& preset) {
  std::string summary;
  for (const std::string& line : split(preset.toml, '\n')) {
    if (!line.starts_with("# ")) break;
    summary += cat(summary.empty() ? "" : " ", line.substr(2));
  }
  return summary.substr(0, std::min(summary.find(". "), summary.find(':')));
}

std::string summary_of(const TrainerPreset& preset) {
  LoadedConfig loaded;
  apply_settings(settings_of(preset), "", loaded.schema);
  const TrainingSection& training = loaded.config.training;
  return cat("Flavor ", preset.flavor, ", ", training.steps, " steps of ",
             training.local_batch_size, " x ", training.seq_len, " tokens");
}

}  // namespace

std::vector<Preset> presets() {
  std::vector<Preset> all;
  for (const PresetFile& preset : preset_files()) {
    all.push_back({std::string(preset.name), summary_of(preset)});
  }
  for (const TrainerPreset& preset : trainer_presets()) {
    all.push_back({std::string(preset.name), summary_of(preset)});
  }
  std::sort(all.begin(), all.end(),
            [](const Preset& a, const Preset& b) { return a.name < b.name; });
  return all;
}

std::unique_ptr<LoadedConfig> load_config(
    FileSystem& files, const std::vector<std::string>& layers,
    const std::vector<std::pair<std::string, std::string>>& overrides) {
  auto loaded = std::make_unique<LoadedConfig>();
  for (const std::string& name : layers) {
    try {
      if (is_file(name)) {
        apply_file(files, name, loaded->schema);
      } else {
        apply_preset(name, loaded->schema);
      }
    } catch (const Error& error) {
      // A configuration that cannot be read is a mistake of usage, whatever the reader calls it.
      if (error.kind() == ErrorKind::kData) fail(ErrorKind::kUsage, error.what());
      throw;
    }
  }
  for (const auto& [path, text] : overrides) loaded->schema.apply_override(path, text);
  apply_model_source(files, *loaded);
  return loaded;
}

}  // namespace amoeba::train
