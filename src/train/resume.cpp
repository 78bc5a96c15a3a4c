#include "train/resume.h"

#include <algorithm>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

using formats::Object;
using formats::Value;

// Tokens of each file: a text that changed would be read at the wrong places.
Value source_tokens(const TrainingData& data) {
  Value tokens;
  formats::Array& counts = tokens.data.emplace<formats::Array>();
  // Not push_back of a Value: GCC 12 sees an uninitialised variant in its move.
  for (const auto& source : data.sources) counts.emplace_back().data = source->num_tokens();
  return tokens;
}

void warn_of_changed_keys(const Checkpoint& checkpoint, const formats::Schema& schema,
                          const LogSink& log) {
  const Value now = schema.to_value();
  for (const char* section :
       {"model", "moe", "training", "optimizer", "lr_scheduler", "data", "guard"}) {
    const Value *before_section = checkpoint.config.find(section), *now_section = now.find(section);
    if (before_section == nullptr || now_section == nullptr) continue;
    for (const auto& [key, value] : *now_section->get_if<Object>()) {
      const Value* before = before_section->find(key);
      if (before == nullptr) continue;
      const std::string was = formats::write_json(*before), is = formats::write_json(value);
      if (was == is) continue;
      log(LogLevel::kWarning, cat("resume: ", section, ".", key, " was ", was, ", is now ", is));
    }
  }
}

std::optional<Checkpoint> find_newest(FileSystem& files, const std::string& folder,
                                      const LogSink& log) {
  LatestCheckpoint latest = load_latest_checkpoint(files, folder);
  for (const std::string& reason : latest.skipped) {
    log(LogLevel::kWarning, cat("resume: passed over ", reason));
  }
  if (!latest.checkpoint) {
    // Starting anew among damaged checkpoints would bury what can still be saved of them.
    AMOEBA_CHECK_KIND(kData, latest.skipped.empty(), "resume: no checkpoint in '", folder,
                      "' verifies; repair one, or give another --run.folder");
    log(LogLevel::kInfo, cat("resume: no checkpoint in ", folder, ", starting anew"));
  }
  return std::move(latest.checkpoint);
}

Checkpoint find_named(FileSystem& files, const std::string& path, const std::string& folder) {
  AMOEBA_CHECK_KIND(kData, files.exists(path + "/manifest.json"), "resume: '", path,
                    "' is not a checkpoint's folder; want one (RUN/checkpoints/step-...) or auto");
  Checkpoint checkpoint = load_checkpoint(files, path);
  // "auto" would take the newer one next time, and pruning would remove what this run saves.
  const auto existing = find_checkpoints(files, folder);
  AMOEBA_CHECK(existing.empty() || existing[0].step <= checkpoint.step, "train: run.folder '",
               folder, "' holds a checkpoint of step ", existing[0].step,
               ", newer than the one to resume from, step ", checkpoint.step,
               "; want another --run.folder, or the newer checkpoints removed");
  return checkpoint;
}

}  // namespace

std::optional<Checkpoint> find_resume_point(FileSystem& files, const RunConfig& config,
                                            const LogSink& log) {
  const std::string &folder = config.run.folder, &resume = config.checkpoint.resume;
  if (resume == "auto") return find_newest(files, folder, log);
  if (resume != "none") return find_named(files, resume, folder);
  const auto existing = find_checkpoints(files, folder);
  AMOEBA_CHECK(existing.empty(), "train: run.folder '", folder,
               "' already holds checkpoints (newest step ", existing.empty() ? 0 : existing[0].step,
               "); continue it with --resume auto, or give another --run.folder");
  return std::nullopt;
}

std::optional<Checkpoint> find_rollback_point(FileSystem& files, const RunConfig& config,
                                              int64_t step, const LogSink& log) {
  const int64_t interval = config.checkpoint.interval;
  if (!config.checkpoint.enable || interval == 0) return std::nullopt;
  std::vector<CheckpointFolder> candidates = find_checkpoints(files, config.run.folder);
  std::erase_if(candidates, [&](const auto& candidate) { return candidate.step % interval != 0; });
  const auto earlier = std::find_if(candidates.begin(), candidates.end(),
                                    [&](const auto& candidate) { return candidate.step < step; });
  // Newest first so far; of the later ones the oldest is nearest to what is wanted.
  std::reverse(candidates.begin(), earlier);
  std::rotate(candidates.begin(), earlier, candidates.end());
  for (const CheckpointFolder& candidate : candidates) {
    try {
      return load_checkpoint(files, candidate.folder);
    } catch (const Error& error) {
      log(LogLevel::kWarning, cat("roll-back: passed over ", error.what()));
    }
  }
  return std::nullopt;
}

int64_t restore(const Checkpoint& checkpoint, Setup& setup, Guard& guard,
                const formats::Schema& schema, const LogSink& log) {
  warn_of_changed_keys(checkpoint, schema, log);
  load_entries(checkpoint.weights, weight_tensors(setup.model), checkpoint.folder);
  load_entries(checkpoint.optimizer, optimizer_tensors(setup.model), checkpoint.folder);
  const std::string what = checkpoint.folder + "/manifest.json: state";
  setup.optimizer.num_steps().fill_(
      static_cast<double>(checkpoint.state.integer_at("optimizer_steps", what)));
  const std::string then = formats::write_json(checkpoint.state.at("source_tokens", what));
  const std::string now = formats::write_json(source_tokens(setup.data));
  AMOEBA_CHECK_KIND(kData, then == now, "resume: the files of data.path hold ", now,
                    " tokens, but ", checkpoint.folder, " was trained on ", then,
                    "; give the same text, or start anew in another --run.folder");
  setup.loader.seek(DataCursor::from_value(checkpoint.state.at("data", what), what));
  setup.model.store().refresh_compute();
  // Checkpoints of earlier versions lack it: the window fills anew.
  if (const Value* state = checkpoint.state.find("guard")) guard.restore(*state, what + ".guard");
  log(LogLevel::kInfo, cat("resume: step ", checkpoint.step, " from ", checkpoint.folder));
  return checkpoint.state.integer_at("tokens_seen", what);
}

std::string save_state(FileSystem& files, Setup& setup, const Guard& guard,
                       const formats::Schema& schema, int64_t step, int64_t tokens_seen) {
  CheckpointContent content;
  content.step = step;
  std::vector<at::Tensor> storage;
  content.weights = to_entries(weight_tensors(setup.model), storage);
  content.optimizer = to_entries(optimizer_tensors(setup.model), storage);
  const auto optimizer_steps = static_cast<int64_t>(setup.optimizer.num_steps().item<double>());
  content.state.data = Object{{"optimizer_steps", {optimizer_steps}},
                              {"tokens_seen", {tokens_seen}},
                              {"source_tokens", source_tokens(setup.data)},
                              {"guard", guard.to_value()},
                              {"data", setup.loader.cursor().to_value()}};
  content.config = schema.to_value();
  return save_checkpoint(files, setup.config.run.folder, content);
}

}  // namespace amoeba::train
