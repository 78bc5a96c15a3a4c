#include <cstdio>
#include <functional>
#include <utility>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "base/text.h"
#include "train/plain/checkpoint.h"

namespace amoeba::apps {

namespace {

using Folders = std::vector<train::CheckpointFolder>;

// The checkpoints of a run, newest first; those that lost their manifest, which nothing else takes
// for checkpoints, come last.
Folders find_folders(FileSystem& files, const std::string& run) {
  Folders folders = train::find_checkpoints(files, run);
  const std::string parent = run + "/checkpoints";
  if (!files.is_directory(parent)) return folders;
  for (const std::string& name : files.list(parent)) {
    const std::string folder = parent + "/" + name;
    if (name.starts_with("step-") && !name.ends_with(".partial") && files.is_directory(folder) &&
        !files.exists(folder + "/manifest.json")) {
      folders.push_back({0, folder});
    }
  }
  return folders;
}

// Calls `print` with each checkpoint's folder that PATH stands for, newest first, and prints one
// line for an error. Returns the exit code.
int for_each_checkpoint(const std::string& action, const std::string& summary,
                        const std::string& footer, const Arguments& arguments,
                        const std::function<void(FileSystem&, const std::string&)>& print) {
  Command command{"checkpoint " + action, summary, {}, /*takes_overrides=*/true};
  command.help_footer = [&] { return footer; };
  const Parsed parsed = parse(command, arguments);
  if (parsed.help_shown) return 0;
  AMOEBA_CHECK(parsed.rest.size() == 1 && !parsed.rest[0].starts_with("-"), "checkpoint ", action,
               ": got ", parsed.rest.size(),
               " arguments, want one: a run's folder or a checkpoint's (amoeba checkpoint ", action,
               " --help)");
  std::string path = parsed.rest[0];
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  PosixFileSystem files;
  AMOEBA_CHECK_KIND(kData, files.is_directory(path), "checkpoint ", action, ": '", path,
                    "' is not a folder; want a run's folder or one of its checkpoints");
  Folders folders = find_folders(files, path);
  if (files.exists(path + "/manifest.json")) folders = {{0, path}};
  AMOEBA_CHECK_KIND(kData, !folders.empty(), "checkpoint ", action, ": none in '", path,
                    "'; want a run's folder or one of its checkpoints");
  int code = 0;
  for (const train::CheckpointFolder& checkpoint : folders) {
    try {
      print(files, checkpoint.folder);
    } catch (const Error& error) {
      std::printf("damaged  %s\n", error.what());
      code = static_cast<int>(ErrorKind::kData);
    }
  }
  return code;
}

std::string age_text(int64_t saved_at) {
  return saved_at == 0 ? "?" : format_duration(unix_seconds() - static_cast<double>(saved_at));
}

int run_list(const Arguments& arguments) {
  return for_each_checkpoint(
      "list",
      "Lists checkpoints, newest first, from their manifests; tensors are not read.\n"
      "PATH is a run's folder or one checkpoint's.",
      "usage: amoeba checkpoint list PATH\n\n"
      "One line a checkpoint: step, tokens seen, size, age, what it holds (full: can be resumed;\n"
      "weights: for generate, eval and export only), schema of its manifest, folder.\n\n"
      "Example:\n  amoeba checkpoint list runs/demo\n",
      arguments, [first = true](FileSystem& files, const std::string& folder) mutable {
        const auto summary = train::summarize_checkpoint(files, folder);
        if (std::exchange(first, false)) {
          std::printf("%10s  %14s  %10s  %8s  %-7s  %6s  folder\n", "step", "tokens", "size", "age",
                      "content", "schema");
        }
        std::printf("%10lld  %14s  %10s  %8s  %-7s  %6lld  %s\n",
                    static_cast<long long>(summary.step), format_count(summary.tokens_seen).c_str(),
                    format_bytes(summary.bytes).c_str(), age_text(summary.saved_at).c_str(),
                    summary.weights_only ? "weights" : "full",
                    static_cast<long long>(summary.schema), folder.c_str());
      });
}

int run_verify(const Arguments& arguments) {
  return for_each_checkpoint(
      "verify",
      "Reads checkpoints whole and compares every tensor and file with its hash.\n"
      "PATH is a run's folder or one checkpoint's.",
      "usage: amoeba checkpoint verify PATH\n\n"
      "One line a checkpoint, newest first: \"ok FOLDER ...\" or \"damaged\" with the file and "
      "the\n"
      "tensor. Exit code 0: all are whole; 3: at least one is damaged. `amoeba train --resume "
      "auto`\n"
      "passes over damaged ones by itself; a damaged folder may be removed by hand.\n\n"
      "Examples:\n  amoeba checkpoint verify runs/demo\n"
      "  amoeba checkpoint verify runs/demo/checkpoints/step-00000500\n",
      arguments, [](FileSystem& files, const std::string& folder) {
        const train::Checkpoint checkpoint = train::load_checkpoint(files, folder);
        const size_t tensors = checkpoint.weights.size() + checkpoint.optimizer.size();
        std::printf("ok       %s: step %lld, %zu tensors and %zu files agree\n", folder.c_str(),
                    static_cast<long long>(checkpoint.step), tensors, checkpoint.attached.size());
      });
}

}  // namespace

int run_checkpoint(const Arguments& arguments) {
  static constexpr Verb kActions[] = {
      {"list", "the checkpoints of a run", run_list},
      {"verify", "compare every tensor with its hash", run_verify},
  };
  return run_action("checkpoint", "Shows and verifies checkpoints", kActions, arguments);
}

}  // namespace amoeba::apps
