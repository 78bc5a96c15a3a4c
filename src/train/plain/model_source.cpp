#include "train/plain/model_source.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/hf_folder.h"
#include "train/plain/hf_config.h"

namespace amoeba::train {

namespace {

using formats::Object;
using formats::Value;

// Keys of a run that say what its model computes.
constexpr std::string_view kModelKeys[] = {"vocab_size",
                                           "dim",
                                           "num_layers",
                                           "num_dense_layers",
                                           "dense_hidden_dim",
                                           "attention",
                                           "num_heads",
                                           "num_kv_heads",
                                           "head_dim",
                                           "qk_norm",
                                           "qk_norm_scope",
                                           "q_lora_rank",
                                           "kv_lora_rank",
                                           "qk_nope_head_dim",
                                           "qk_rope_head_dim",
                                           "v_head_dim",
                                           "rope_theta",
                                           "rope_type",
                                           "rope_factor",
                                           "rope_attention_factor",
                                           "rope_truncate",
                                           "rope_beta_fast",
                                           "rope_beta_slow",
                                           "rope_mscale",
                                           "rope_original_seq_len",
                                           "rope_max_seq_len",
                                           "norm_eps",
                                           "latent_norm_eps",
                                           "tie_embeddings",
                                           "sliding_window"};
constexpr std::string_view kMoeKeys[] = {
    "num_experts", "top_k",          "hidden_dim",    "num_shared_experts",
    "route_norm",  "route_scale",    "num_groups",    "num_limited_groups",
    "group_score", "score_function", "force_balance", "score_before_experts"};

struct Source {
  std::vector<HfSetting> settings;
  std::vector<HfSetting> defaults;
  std::string place;  // of the settings, for messages
};

template <typename T>
Value value_of(T data) {
  Value value;
  value.data = std::move(data);
  return value;
}

Value document_of(const HfSetting& setting) {
  const size_t dot = setting.path.find('.');
  Value section = value_of(Object{{setting.path.substr(dot + 1), setting.value}});
  return value_of(Object{{setting.path.substr(0, dot), std::move(section)}});
}

std::string json_at(const formats::Schema& schema, const std::string& path) {
  const size_t dot = path.find('.');
  const Value tree = schema.to_value();
  return formats::write_json(*tree.find(path.substr(0, dot))->find(path.substr(dot + 1)));
}

Source hugging_face_source(FileSystem& files, const std::string& folder) {
  Source source;
  source.place = folder + "/config.json";
  HfConfig config = read_hf_config(formats::read_hf_config_json(files, folder), source.place);
  source.settings = std::move(config.settings);
  source.defaults = std::move(config.defaults);
  if (files.exists(folder + "/tokenizer.json")) {
    source.defaults.push_back(
        {"tokenizer.json", "data.tokenizer", value_of(folder + "/tokenizer.json")});
  }
  return source;
}

Source checkpoint_source(FileSystem& files, const std::string& folder) {
  const Checkpoint checkpoint = open_checkpoint(files, folder, [](LogLevel, std::string_view) {});
  Source source;
  source.place = checkpoint.folder + "/manifest.json";
  const auto add = [&](const char* section, std::string_view key) {
    const Value* values = checkpoint.config.find(section);
    const Value* value = values == nullptr ? nullptr : values->find(key);
    if (value == nullptr) return;  // older than the key
    const std::string path = cat(section, ".", key);
    source.settings.push_back({path, path, *value});
  };
  for (std::string_view key : kModelKeys) add("model", key);
  for (std::string_view key : kMoeKeys) add("moe", key);
  if (std::ranges::count(checkpoint.attached, kTokenizerFile) > 0) {
    source.defaults.push_back({"data.tokenizer", "data.tokenizer",
                               value_of(cat(checkpoint.folder, "/", kTokenizerFile))});
    return source;
  }
  const Value* data = checkpoint.config.find("data");
  const Value* tokenizer = data == nullptr ? nullptr : data->find("tokenizer");
  if (tokenizer != nullptr) {
    source.defaults.push_back({"data.tokenizer", "data.tokenizer", *tokenizer});
  }
  return source;
}

int64_t integer_of(const Source& source, std::string_view path) {
  for (const HfSetting& setting : source.settings) {
    if (setting.path != path) continue;
    if (const auto* number = setting.value.get_if<int64_t>()) return *number;
  }
  return 0;
}

bool has_default(const Source& source, std::string_view path) {
  return std::any_of(source.defaults.begin(), source.defaults.end(),
                     [&](const HfSetting& setting) { return setting.path == path; });
}

// A dense model's networks become experts: what the experts are is the user's to say.
void make_sparse(Source& source, const std::string& upcycle) {
  const int64_t layers = integer_of(source, "model.num_layers");
  const int64_t dense = integer_of(source, "model.num_dense_layers");
  AMOEBA_CHECK(dense == layers, "configuration: model.upcycle is '", upcycle, "' and ",
               source.place, " has experts in ", layers - dense, " of ", layers,
               " layers, want a dense model");
  const int64_t width = integer_of(source, "model.dense_hidden_dim");
  std::erase_if(source.settings, [](const HfSetting& setting) {
    return setting.path == "model.num_dense_layers" || setting.path.starts_with("moe.");
  });
  const auto by_default = [&](const char* path, auto value) {
    source.defaults.push_back({"model.upcycle", path, value_of(value)});
  };
  by_default("model.num_dense_layers", int64_t{0});
  by_default("moe.num_shared_experts", int64_t{0});
  if (upcycle == "copy") by_default("moe.hidden_dim", width);
}

}  // namespace

Checkpoint open_checkpoint(FileSystem& files, const std::string& path, const LogSink& log) {
  AMOEBA_CHECK_KIND(kData, files.is_directory(path), "checkpoint: '", path,
                    "' is not a folder; want a run's folder, one of its checkpoints or a Hugging "
                    "Face folder");
  if (files.exists(path + "/manifest.json")) return load_checkpoint(files, path);
  LatestCheckpoint latest = load_latest_checkpoint(files, path);
  for (const std::string& reason : latest.skipped) {
    log(LogLevel::kWarning, cat("checkpoint: passed over ", reason));
  }
  AMOEBA_CHECK_KIND(kData, latest.checkpoint.has_value(), "checkpoint: none in '", path,
                    "'; want a run's folder, one of its checkpoints or a Hugging Face folder");
  return std::move(*latest.checkpoint);
}

void apply_model_source(FileSystem& files, LoadedConfig& loaded) {
  const ModelSection& model = loaded.config.model;
  AMOEBA_CHECK(!model.from.empty() || model.upcycle == "none", "configuration: model.upcycle is '",
               model.upcycle, "' and model.from is empty, want a dense model's folder");
  if (model.from.empty()) return;
  formats::Schema& schema = loaded.schema;
  Source source = formats::is_hf_folder(files, model.from) ? hugging_face_source(files, model.from)
                                                           : checkpoint_source(files, model.from);
  AMOEBA_CHECK(schema.is_set("data.tokenizer") || has_default(source, "data.tokenizer"),
               "configuration: model.from '", model.from,
               "' holds no tokenizer.json, want data.tokenizer set");
  if (model.upcycle != "none") make_sparse(source, model.upcycle);
  for (const HfSetting& setting : source.settings) {
    const std::string origin = schema.origin(setting.path);
    LoadedConfig theirs;
    theirs.schema.apply(document_of(setting), source.place);
    const std::string got = json_at(schema, setting.path),
                      want = json_at(theirs.schema, setting.path);
    AMOEBA_CHECK(!schema.is_set(setting.path) || got == want, "configuration: ", setting.path,
                 " is ", got, " (", origin, ") and ", setting.key, " of model.from makes it ", want,
                 " (", source.place, "), want the same, or the key left out");
    schema.apply(document_of(setting), source.place);
  }
  for (const HfSetting& setting : source.defaults) {
    if (!schema.is_set(setting.path)) schema.apply(document_of(setting), source.place);
  }
}

}  // namespace amoeba::train
