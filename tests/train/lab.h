// A small run in memory: its text, its configuration and what it leaves behind.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "amoeba/train.h"
#include "support/memory_file_system.h"
#include "train/plain/checkpoint.h"

namespace amoeba::test {

// About 12 KB with structure worth learning.
inline std::string some_text() {
  std::string text;
  for (int i = 0; i < 240; ++i) {
    text += "the " + std::string(i % 3 == 0 ? "quick" : "slow") + " fox number " +
            std::to_string(i * 7 % 100) + " jumps over the lazy dog\n";
  }
  return text;
}

inline train::RunConfig small_config() {
  train::RunConfig config;
  config.run.folder = "/run";
  config.model.dim = 32;
  config.model.num_layers = 2;
  config.model.num_heads = 4;
  config.model.num_kv_heads = 2;
  config.model.init_std = 0.08;
  config.moe.num_experts = 4;
  config.moe.hidden_dim = 24;
  config.training.steps = 12;
  config.training.seq_len = 32;
  config.training.local_batch_size = 4;
  config.training.global_batch_size = 8;  // two micro-batches a step
  config.training.num_threads = 2;
  config.lr_scheduler.warmup_steps = 3;
  config.data.path = {"/text.txt"};
  config.validation.interval = 0;
  config.checkpoint.interval = 0;
  config.metrics.log_interval = 1;
  config.metrics.report = false;
  return config;
}

// Every tensor's bytes of a checkpoint, and its state.
inline std::map<std::string, std::string> checkpoint_contents(FileSystem& files,
                                                              const std::string& folder) {
  const train::Checkpoint checkpoint = train::load_checkpoint(files, folder);
  std::map<std::string, std::string> bytes;
  for (const auto* group : {&checkpoint.weights, &checkpoint.optimizer}) {
    for (const formats::TensorEntry& entry : *group) {
      bytes[entry.name].assign(reinterpret_cast<const char*>(entry.data.data()), entry.data.size());
    }
  }
  bytes["state"] = formats::write_json(checkpoint.state);
  return bytes;
}

struct Lab {
  Lab() { files.create("/text.txt")->write(some_text()); }

  // Calls `verb`, train() or one like it, with the lab's terminal, log and stop button.
  template <typename Verb>
  auto call(train::RunConfig config, FileSystem* through, Verb&& verb) {
    const formats::Schema schema = train::make_schema(config);
    train::Progress progress([&](std::string_view text) { painted += text; },
                             {.terminal = true, .columns = 80, .min_interval = 0});
    int64_t polls = 0;
    train::RunContext context{
        through != nullptr ? *through : files, progress,
        [&](LogLevel, std::string_view text) { log += std::string(text) + "\n"; },
        [&] { return stop_after >= 0 && ++polls > stop_after; }, "amoeba train"};
    return verb(config, schema, context);
  }

  train::RunSummary run(train::RunConfig config, FileSystem* through = nullptr) {
    return call(config, through, train::train);
  }

  std::map<std::string, std::string> contents(const std::string& folder) {
    return checkpoint_contents(files, folder);
  }

  MemoryFileSystem files;
  std::string log;
  std::string painted;      // what the terminal got
  int64_t stop_after = -1;  // polls of stop_requested before it says yes; -1: never
};

// Writes a checkpoint of `step` to /run whose tensor `name` has NaN from element `begin` to `end`.
inline void spoil(Lab& lab, const std::string& folder, int64_t step, const std::string& name,
                  size_t begin, size_t end) {
  const train::Checkpoint good = train::load_checkpoint(lab.files, folder);
  train::CheckpointContent content{.step = step,
                                   .weights = good.weights,
                                   .optimizer = good.optimizer,
                                   .files = {},
                                   .state = good.state,
                                   .config = good.config};
  std::vector<float> values;
  for (formats::TensorEntry& entry : content.weights) {
    if (entry.name != name) continue;
    values.resize(entry.data.size() / sizeof(float));
    std::memcpy(values.data(), entry.data.data(), entry.data.size());
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(begin),
              values.begin() + static_cast<std::ptrdiff_t>(end),
              std::numeric_limits<float>::quiet_NaN());
    entry.data = std::as_bytes(std::span(values));
  }
  ASSERT_FALSE(values.empty()) << name;
  train::save_checkpoint(lab.files, "/run", content);
}

}  // namespace amoeba::test
