// Random damage to the files of a checkpoint; each must be found and its file, and in a tensor's
// bytes the tensor, named.
#include <cstdio>
#include <random>

#include "amoeba/error.h"
#include "campaign/campaign.h"
#include "train/lab.h"

namespace amoeba::test {
namespace {

struct Files {
  MemoryFileSystem files;
  std::string folder;
  std::vector<std::string> names;   // of the checkpoint's files
  std::vector<std::string> intact;  // their content
  std::string other;                // the same files of another step
};

void make_files(Files& made) {
  Lab lab;
  train::RunConfig config = small_config();
  config.training.steps = 2;
  config.training.num_threads = 1;
  config.checkpoint.interval = 1;
  lab.run(config);
  std::string* const folders[] = {&made.other, &made.folder};
  for (int64_t step : {1, 2}) {
    const train::Checkpoint from =
        train::load_checkpoint(lab.files, "/run/checkpoints/" + train::step_name(step));
    train::CheckpointContent content;
    content.step = step;
    content.weights = from.weights;
    content.optimizer = from.optimizer;
    content.files = {{"tokenizer.json", some_text()}};
    content.state = from.state;
    content.config = from.config;
    *folders[step - 1] =
        train::save_checkpoint(made.files, "/run", content, /*max_shard_bytes=*/20000);
  }
  made.names = made.files.list(made.folder);
  for (const std::string& name : made.names) {
    made.intact.push_back(made.files.read(made.folder + "/" + name));
  }
}

// The error of loading the damaged checkpoint; empty: none.
std::string load_error(Files& made) {
  try {
    train::load_checkpoint(made.files, made.folder);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// The tensor that a byte of a shard belongs to; empty: its header, or no shard.
std::string tensor_at(Files& made, const std::string& path, size_t at) {
  if (!path.ends_with(".safetensors")) return "";
  const auto shard = formats::read_safetensors(made.files, path);
  for (const formats::TensorEntry& entry : shard.tensors) {
    const auto begin = static_cast<size_t>(entry.data.data() - shard.mapping->data().data());
    if (begin <= at && at < begin + entry.data.size()) return entry.name;
  }
  return "";
}

}  // namespace

int64_t damage_trials(int64_t num_flips, int64_t num_cuts, int64_t num_swaps, uint64_t seed) {
  Files made;
  make_files(made);
  std::mt19937_64 random(seed);
  int64_t failed = 0, num_tensors_named = 0;
  const auto expect_named = [&](const std::string& trial, const std::string& path,
                                const std::string& tensor) {
    const std::string message = load_error(made);
    if (message.find(path) == message.npos || message.find(tensor) == message.npos) {
      ++failed;
      report_failure(trial, cat(path, " ", tensor, ": ", message));
    }
    if (!tensor.empty()) ++num_tensors_named;
  };
  // Any byte of the checkpoint with equal chance: most are a tensor's.
  size_t total = 0;
  for (const std::string& text : made.intact) total += text.size();
  const auto draw = [&] {
    size_t at = random() % total, file = 0;
    while (at >= made.intact[file].size()) at -= made.intact[file++].size();
    return std::pair(file, at);
  };
  for (int64_t i = 0; i < num_flips; ++i) {
    const auto [file, at] = draw();
    const std::string path = made.folder + "/" + made.names[file];
    const std::string tensor = tensor_at(made, path, at);
    std::string damaged = made.intact[file];
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
    made.files.corrupt(path, damaged);
    expect_named(cat("flip ", i), path, tensor);
    made.files.corrupt(path, made.intact[file]);
  }
  for (int64_t i = 0; i < num_cuts; ++i) {
    const auto [file, at] = draw();
    const std::string path = made.folder + "/" + made.names[file];
    made.files.corrupt(path, made.intact[file].substr(0, at));
    expect_named(cat("cut ", i), path, "");
    made.files.corrupt(path, made.intact[file]);
  }
  // With another shard of the same step, or with the same shard of another step.
  for (int64_t i = 0; i < num_swaps; ++i) {
    size_t first = 0, second = 0;
    while (!made.names[first].ends_with(".safetensors")) first = random() % made.names.size();
    do {
      second = random() % made.names.size();
    } while (second == first || !made.names[second].ends_with(".safetensors"));
    const std::string first_path = made.folder + "/" + made.names[first];
    const std::string second_path = made.folder + "/" + made.names[second];
    if (i % 2 == 0) {
      made.files.corrupt(first_path, made.intact[second]);
      made.files.corrupt(second_path, made.intact[first]);
      // Whichever is read first is named.
      expect_named(
          cat("swap ", i),
          load_error(made).find(first_path) != std::string::npos ? first_path : second_path,
          "tensor '");
    } else {
      made.files.corrupt(first_path, made.files.read(made.other + "/" + made.names[first]));
      if (made.files.read(first_path) == made.intact[first]) continue;
      expect_named(cat("swap ", i), first_path, "tensor '");
    }
    made.files.corrupt(first_path, made.intact[first]);
    made.files.corrupt(second_path, made.intact[second]);
  }
  if (!load_error(made).empty()) ++failed;
  std::printf(
      "damage: %lld bits flipped, %lld files cut, %lld shards swapped, %lld tensors named, "
      "%lld failures\n",
      static_cast<long long>(num_flips), static_cast<long long>(num_cuts),
      static_cast<long long>(num_swaps), static_cast<long long>(num_tensors_named),
      static_cast<long long>(failed));
  return failed;
}

}  // namespace amoeba::test
