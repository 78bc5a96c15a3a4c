#include "train/plain/config_layers.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "base/text.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "train/plain/flavors.h"

namespace amoeba::train {
namespace {

using test::error_message;

void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

TEST(PresetFiles, AreTheFilesOfConfigs) {
  PosixFileSystem files;
  std::vector<std::string> names, embedded;
  for (const std::string& file : files.list(AMOEBA_SOURCE_DIR "/configs")) {
    if (file.ends_with(".toml")) names.push_back(file.substr(0, file.size() - 5));
  }
  for (const PresetFile& preset : preset_files()) {
    embedded.emplace_back(preset.name);
    const std::string path = cat(AMOEBA_SOURCE_DIR "/configs/", preset.name, ".toml");
    EXPECT_EQ(preset.toml, files.read(path)) << path;
  }
  EXPECT_EQ(embedded, names);
}

// Names that users have in their scripts: one may be added, none may go.
TEST(Presets, NamesStay) {
  const std::vector<std::string> want = {
      "agpt_2b_50k_moe_sdpa",
      "demo",
      "kjv",
      "moe_10b_2b",
      "moe_10b_2b_50k_sdpa",
      "moe_10b_2b_50k_sdpa_1layer",
      "moe_10b_2b_50k_sdpa_batched_mm_padded",
      "moe_10b_2b_50k_sdpa_for_loop",
      "moe_10b_2b_50k_sdpa_scattermoe",
      "moe_10b_2b_sdpa",
      "moe_10b_2b_sdpa_1layer",
      "moe_10b_2b_sdpa_batched_mm_padded",
      "moe_10b_2b_sdpa_for_loop",
      "moe_10b_2b_sdpa_scattermoe",
      "moe_16b",
      "moe_236b",
      "moe_2b",
      "moe_4b",
      "moe_500m",
      "moe_671b",
      "moe_7b",
      "moe_debugmodel",
      "moe_debugmodel_flex_attn",
      "moe_debugmodel_flex_attn_hf",
      "moe_debugmodel_hf",
      "moe_small",
      "moe_small_hf",
      "smoke_moe_500m_50steps",
  };
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  EXPECT_EQ(names, want);
}

TEST(Presets, AreLegal) {
  test::MemoryFileSystem files;
  for (const Preset& preset : presets()) {
    const auto loaded = load_config(files, {preset.name}, {});
    EXPECT_NO_THROW(check_config(loaded->config)) << preset.name;
    EXPECT_TRUE(loaded->config.data.path.empty()) << preset.name << " names files of one machine";
    EXPECT_EQ(loaded->config.run.folder, "runs/" + preset.name);
    EXPECT_FALSE(preset.summary.empty()) << preset.name;
    EXPECT_EQ(preset.summary.find('\n'), std::string::npos) << preset.name;
  }
}

TEST(Presets, SayWhatTheyAre) {
  std::map<std::string, std::string> summaries;
  for (const Preset& preset : presets()) summaries[preset.name] = preset.summary;
  EXPECT_EQ(summaries["demo"],
            "A small Mixture-of-Experts model that reads bytes and learns the look of its text in "
            "minutes on a few CPU cores");
  EXPECT_EQ(summaries["moe_10b_2b_sdpa"], "Flavor 10B_2B_sdpa, 1000 steps of 2 x 8192 tokens");
}

TEST(Presets, AreTheSourceOfTheirValues) {
  test::MemoryFileSystem files;
  const std::string name = "moe_10b_2b_sdpa_batched_mm_padded";
  const auto loaded = load_config(files, {name}, {{"model.dim", "64"}});
  const formats::Schema& schema = loaded->schema;
  for (const std::string path : {"model.num_layers", "moe.num_experts", "moe.compute_backend",
                                 "training.seq_len", "optimizer.lr", "run.folder"}) {
    EXPECT_EQ(schema.origin(path), "preset " + name) << path;
  }
  EXPECT_EQ(schema.origin("model.dim"), "command line");
  EXPECT_EQ(schema.origin("data.path"), "default");
}

// A flavor is the architecture alone.
TEST(Flavors, AreLayersOfModelAndMoe) {
  test::MemoryFileSystem files;
  for (const Flavor& flavor : flavors()) {
    const std::string name(flavor.name);
    const auto loaded = load_config(files, {"demo", name}, {});
    for (const formats::Key& key : loaded->schema.keys()) {
      const bool of_flavor = loaded->schema.origin(key.path) == "flavor " + name;
      EXPECT_FALSE(of_flavor && !key.path.starts_with("model.") && !key.path.starts_with("moe."))
          << name << " sets " << key.path;
      EXPECT_TRUE(of_flavor || key.path != "model.num_layers") << name;
    }
  }
}

TEST(ConfigLayers, NoLayerGivesTheDefaults) {
  test::MemoryFileSystem files;
  const auto loaded = load_config(files, {}, {});
  EXPECT_EQ(loaded->config.training.steps, RunConfig().training.steps);
  for (const formats::Key& key : loaded->schema.keys()) {
    EXPECT_EQ(loaded->schema.origin(key.path), "default");
  }
}

TEST(ConfigLayers, LaterLayersWin) {
  test::MemoryFileSystem files;
  put(files, "mine.toml", "[training]\nsteps = 20\nseq_len = 64\n[moe]\ntop_k = 4\n");
  files.create_directories("over");
  put(files, "over/lay.json", R"({"training": {"steps": 30}, "moe": {"route_scale": 2}})");
  const auto loaded =
      load_config(files, {"demo", "mine.toml", "over/lay.json"}, {{"moe.top_k", "1"}});
  EXPECT_EQ(loaded->config.training.steps, 30);
  EXPECT_EQ(loaded->config.training.seq_len, 64);
  EXPECT_EQ(loaded->config.moe.top_k, 1);
  EXPECT_EQ(loaded->config.moe.route_scale, 2.0);

  const formats::Schema& schema = loaded->schema;
  EXPECT_EQ(schema.origin("training.steps"), "over/lay.json");
  EXPECT_EQ(schema.origin("training.seq_len"), "mine.toml:3");
  EXPECT_EQ(schema.origin("moe.top_k"), "command line");
  EXPECT_EQ(schema.origin("moe.hidden_dim").find("demo.toml:"), 0u);
  EXPECT_EQ(schema.origin("training.seed"), "default");

  const auto reversed = load_config(files, {"over/lay.json", "mine.toml"}, {});
  EXPECT_EQ(reversed->config.training.steps, 20);
}

TEST(ConfigLayers, RefusesWhatCannotBeRead) {
  test::MemoryFileSystem files;
  files.create_directories("folder.toml");
  put(files, "array.json", "[1]");
  put(files, "empty.json", "");
  put(files, "broken.json", "{\n\"training\": }");
  put(files, "broken.toml", "[training]\nsteps = \n");
  put(files, "twice.toml", "[training]\nsteps = 1\nsteps = 2\n");
  put(files, "twice.json", R"({"training": {"steps": 1, "steps": 2}})");
  put(files, "unknown.json", R"({"training": {"stps": 1}})");
  put(files, "unknown.toml", "[training]\nstps = 1\n");
  put(files, "object.json", R"({"training": {"steps": {"value": 1}}})");
  put(files, "scalar.json", R"({"training": 5})");
  put(files, "type.json", R"({"training": {"steps": "5"}})");
  put(files, "renamed.json", R"({"model": {"use_grouped_mm": true}})");
  const std::string want_name =
      ", want a name of `amoeba config presets` or `amoeba config flavors`, or a .toml or .json "
      "file";
  struct Case {
    std::string layer;
    std::string want;
  };
  const std::vector<Case> cases = {
      {"dmo", "--config: unknown preset 'dmo'" + want_name + "; did you mean 'demo'?"},
      {"zzzzzzzz", "--config: unknown preset 'zzzzzzzz'" + want_name},
      {"", "--config: the name is empty, want a preset, a flavor or a file"},
      {"moe_10b_2b_spda", "--config: unknown preset 'moe_10b_2b_spda'" + want_name +
                              "; did you mean 'moe_10b_2b_sdpa'?"},
      {"10b_2b", "--config: unknown preset '10b_2b'" + want_name + "; did you mean '10B_2B'?"},
      {"moe_small_from_json",
       "--config: 'moe_small_from_json' needs no preset of its own, want --config moe_small "
       "--config FILE.json"},
      {"missing.toml", "--config: file 'missing.toml' does not exist"},
      {"missing/file.json", "--config: file 'missing/file.json' does not exist"},
      {"configs/demo", "--config: 'configs/demo' is no .toml or .json file"},
      {"folder.toml", "--config: 'folder.toml' is a folder, want a file"},
      {"array.json", "array.json: the top level is array, want an object of sections"},
      {"empty.json",
       "empty.json:1:1: syntax error while parsing value - unexpected end of input; expected '[', "
       "'{', or a literal"},
      {"broken.json",
       "broken.json:2:13: syntax error while parsing value - unexpected '}'; expected '[', '{', or "
       "a literal"},
      {"twice.toml",
       "twice.toml:3:9: Error while parsing key-value pair: cannot redefine existing integer "
       "'steps'"},
      {"twice.json", "twice.json:1:33: duplicate key 'steps'"},
      {"unknown.json", "unknown.json: unknown key 'training.stps', did you mean 'training.steps'?"},
      {"unknown.toml",
       "unknown.toml:2:8: unknown key 'training.stps', did you mean 'training.steps'?"},
      {"object.json", "object.json: 'training.steps' got object, want integer"},
      {"scalar.json", "scalar.json: 'training' got integer '5', want a section (an object)"},
      {"type.json", "type.json: 'training.steps' got string '5', want integer"},
      {"renamed.json",
       "renamed.json: 'model.use_grouped_mm' is no longer taken: use moe.compute_backend (auto, "
       "grouped_mm, for_loop, batched_mm_padded, ...)"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { load_config(files, {c.layer}, {}); }), c.want);
  }
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { load_config(files, {"broken.toml"}, {}); })
                .find("broken.toml:2:"),
            0u);
}

TEST(ConfigLayers, AFailingReadIsAUsageErrorWithItsPath) {
  test::MemoryFileSystem inner;
  put(inner, "a.toml", "");
  test::FaultyFileSystem files(inner);
  files.fail_at(0, "input/output error");
  const std::string message =
      error_message(ErrorKind::kUsage, [&] { load_config(files, {"a.toml"}, {}); });
  EXPECT_NE(message.find("'a.toml': input/output error"), message.npos) << message;
}

}  // namespace
}  // namespace amoeba::train
