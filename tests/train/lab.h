// Runs of the training loop on a small text in memory.
#pragma once

#include <map>
#include <string>

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

struct Lab {
  Lab() { files.create("/text.txt")->write(some_text()); }

  train::RunSummary run(train::RunConfig config, FileSystem* through = nullptr) {
    const formats::Schema schema = train::make_schema(config);
    train::Progress progress([&](std::string_view text) { painted += text; },
                             {.terminal = true, .columns = 80, .min_interval = 0});
    int64_t polls = 0;
    train::RunContext context{
        through != nullptr ? *through : files, progress,
        [&](LogLevel, std::string_view text) { log += std::string(text) + "\n"; },
        [&] { return stop_after >= 0 && ++polls > stop_after; }, "amoeba train"};
    return train::train(config, schema, context);
  }

  // Every tensor's bytes of a checkpoint, and its state.
  std::map<std::string, std::string> contents(const std::string& folder) {
    const train::Checkpoint checkpoint = train::load_checkpoint(files, folder);
    std::map<std::string, std::string> bytes;
    for (const auto* group : {&checkpoint.weights, &checkpoint.optimizer}) {
      for (const formats::TensorEntry& entry : *group) {
        bytes[entry.name].assign(reinterpret_cast<const char*>(entry.data.data()),
                                 entry.data.size());
      }
    }
    bytes["state"] = formats::write_json(checkpoint.state);
    return bytes;
  }

  MemoryFileSystem files;
  std::string log;
  std::string painted;      // what the terminal got
  int64_t stop_after = -1;  // polls of stop_requested before it says yes; -1: never
};

}  // namespace amoeba::test
