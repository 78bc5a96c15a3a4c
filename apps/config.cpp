#include <cstdio>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/cuda_driver.h"
#include "base/text.h"
#include "formats/tokenizer.h"
#include "train/device.h"
#include "train/memory_plan.h"
#include "train/model_config.h"
#include "train/plain/config_layers.h"
#include "train/plain/flavors.h"

namespace amoeba::apps {

namespace {

const std::vector<std::string> kActions = {"show", "check", "keys", "presets", "flavors"};

nn::ModelSize size_of(const nn::ModelConfig& model, int64_t seq_len) {
  return nn::Model(model, at::kMeta, at::kFloat, /*seed=*/0).size(seq_len);
}

void print_presets() {
  for (const train::Preset& preset : train::presets()) {
    std::printf("%-39s %s\n", preset.name.c_str(), preset.summary.c_str());
  }
}

// The table of docs/flavors.md.
void print_flavors() {
  std::printf(
      "| flavor | parameters | active | D | L | heads | H | shared | dense | E | K | vocabulary | "
      "notes |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  PosixFileSystem files;
  for (const train::Flavor& flavor : train::flavors()) {
    const std::string name(flavor.name);
    const train::RunConfig config = train::load_config(files, {name}, {})->config;
    const nn::ModelConfig model = train::make_model_config(config, /*tokenizer_vocab_size=*/0);
    const nn::ModelSize size = size_of(model, config.training.seq_len);
    const std::string dense = model.num_dense_layers == 0
                                  ? "-"
                                  : cat(model.num_dense_layers, " x ", model.dense_hidden_dim);
    std::string notes(flavor.note);
    if (!flavor.base.empty()) notes = cat(flavor.base, ": ", notes);
    if (config.moe.compute_backend != "auto") notes += cat(" ", config.moe.compute_backend);
    const std::string row =
        cat("| ", name, " | ", format_count(size.total), " | ", format_count(size.active), " | ",
            model.attention.dim, " | ", model.num_layers, " | ", model.attention.num_heads, " | ",
            model.moe.hidden_dim, " | ", model.moe.num_shared_experts, " | ", dense, " | ",
            model.moe.router.num_experts, " | ", model.moe.router.top_k, " | ", model.vocab_size,
            " | ", notes, " |\n");
    std::printf("%s", row.c_str());
  }
}

int64_t tokenizer_vocab_size(const train::RunConfig& config) {
  PosixFileSystem files;
  return formats::make_tokenizer(files, config.data.tokenizer)->vocab_size();
}

// Checks everything that needs neither data nor memory.
nn::ModelSize checked_size(const train::RunConfig& config) {
  train::check_config(config);
  return size_of(train::make_model_config(config, tokenizer_vocab_size(config)),
                 config.training.seq_len);
}

// Sizes, work and predicted memory as TOML comments: what is shown stays a configuration.
void print_size(train::RunConfig config) {
  const nn::ModelSize size = checked_size(config);
  std::printf("\n# %s parameters, %s active, %.4g GFLOP a token, forward and backward\n",
              format_count(size.total).c_str(), format_count(size.active).c_str(),
              size.flops_per_token * 1e-9);

  // A configuration for another machine is shown too.
  const bool absent = config.training.device == "cuda" && !query_cuda_device(0);
  const at::Device device = absent ? at::kCUDA : train::resolve_device(config.training.device);
  const int64_t capacity = absent ? 0 : train::memory_usage(device).capacity_bytes;
  std::printf("# Predicted memory of a step on %s%s:\n", device.str().c_str(),
              capacity > 0 ? cat(", which has ", format_bytes(capacity)).c_str() : "");
  const std::string chosen = config.training.activation_checkpoint;
  for (const std::string mode : {"none", "full", "selective"}) {
    config.training.activation_checkpoint = mode;
    const train::MemoryPlan plan =
        train::plan_memory(config, tokenizer_vocab_size(config), device.type());
    std::printf("# %s activation_checkpoint %-9s %10s%s: %s\n", mode == chosen ? "*" : " ",
                mode.c_str(), format_bytes(plan.total()).c_str(),
                capacity > 0 && plan.total() > capacity ? " (does not fit)" : "",
                train::describe(plan).c_str());
  }
}

void show(const train::LoadedConfig& loaded) {
  std::printf("%s", loaded.schema.write_toml(true).c_str());
  try {
    print_size(loaded.config);
  } catch (const Error& error) {
    std::printf("\n# Size and memory unknown: %s\n", error.what());
  }
}

}  // namespace

int run_config(const Arguments& arguments) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    std::printf(
        "Shows, checks and explains configurations\n\n"
        "usage: amoeba config show  [--config NAME|FILE]... [--section.key VALUE]...\n"
        "                           the resolved configuration, with where each value came from,\n"
        "                           parameters, work and predicted memory\n"
        "       amoeba config check [same]   errors as `train` would give them, or \"ok\"\n"
        "       amoeba config keys           every key with its type, default and meaning\n"
        "       amoeba config presets        names for --config: whole configurations\n"
        "       amoeba config flavors        names for --config: models alone\n");
    AMOEBA_CHECK(!arguments.empty(), "config: the action is missing, want one of ",
                 join(kActions, ", "));
    return 0;
  }
  const std::string action = arguments[0];
  const Arguments rest(arguments.begin() + 1, arguments.end());
  if (action == "presets" || action == "flavors") {
    const Command command{"config " + action,
                          action == "presets" ? "Prints the names of whole configurations."
                                              : "Prints the table of models.",
                          {}};
    if (parse(command, rest).help_shown) return 0;
    action == "presets" ? print_presets() : print_flavors();
    return 0;
  }
  std::vector<std::string> configs;
  const Command command{
      "config " + action,
      "Resolves configuration layers.",
      {{"--config", "preset or flavor name, TOML or JSON file; repeat for layers", &configs}},
      /*takes_overrides=*/true,
      {}};
  const Parsed parsed = parse(command, rest);
  if (parsed.help_shown) return 0;
  PosixFileSystem files;
  const auto loaded = train::load_config(files, configs, formats::parse_overrides(parsed.rest));
  if (action == "keys") {
    std::printf("%s", formats::help_text(loaded->schema).c_str());
  } else if (action == "show") {
    show(*loaded);
  } else if (action == "check") {
    checked_size(loaded->config);
    std::printf("ok\n");
  } else {
    const std::string near = nearest_name(action, kActions);
    fail(ErrorKind::kUsage,
         cat("config: unknown action '", action, "', want one of ", join(kActions, ", "),
             near.empty() ? "" : cat("; did you mean ", near, "?")));
  }
  return 0;
}

}  // namespace amoeba::apps
