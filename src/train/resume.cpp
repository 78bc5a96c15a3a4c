#include "train/resume.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "base/clock.h"
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

Value tokenizer_state(const formats::Tokenizer& tokenizer) {
  return {Object{{"name", {tokenizer.name()}}, {"fingerprint", {tokenizer.fingerprint()}}}};
}

void make_absolute(Value& path) {
  auto* text = std::get_if<std::string>(&path.data);
  if (text != nullptr) *text = absolute_path(*text);
}

// A configuration whose data is found from any working folder.
Value with_absolute_paths(Value config) {
  auto* sections = std::get_if<Object>(&config.data);
  if (sections == nullptr) return config;
  for (auto& [section, keys] : *sections) {
    if (section != "data" || keys.get_if<Object>() == nullptr) continue;
    for (auto& [key, value] : std::get<Object>(keys.data)) {
      if (key == "path" && value.get_if<formats::Array>() != nullptr) {
        for (Value& path : std::get<formats::Array>(value.data)) make_absolute(path);
      }
      const auto* name = value.get_if<std::string>();
      if (key == "tokenizer" && name != nullptr && *name != "bytes") make_absolute(value);
    }
  }
  return config;
}

// Before anything is loaded: ids of another tokenizer mean other text.
void check_tokenizer(const Checkpoint& checkpoint, const formats::Tokenizer& tokenizer,
                     const std::string& what) {
  const Value& then = checkpoint.state.at("tokenizer", what);
  const std::string& fingerprint = then.string_at("fingerprint", what);
  // Empty: written before fingerprints were kept.
  AMOEBA_CHECK_KIND(kData, fingerprint.empty() || fingerprint == tokenizer.fingerprint(),
                    "resume: ", checkpoint.folder, " was trained with tokenizer '",
                    then.string_at("name", what), "' (", fingerprint, "), data.tokenizer is '",
                    tokenizer.name(), "' (", tokenizer.fingerprint(),
                    "); give the same one, or start anew in another --run.folder");
}

void warn_of_changed_keys(const Checkpoint& checkpoint, const formats::Schema& schema,
                          const LogSink& log) {
  const Value now = with_absolute_paths(schema.to_value());
  const Value config = with_absolute_paths(checkpoint.config);
  for (const char* section :
       {"model", "moe", "training", "optimizer", "lr_scheduler", "data", "guard"}) {
    const Value *before_section = config.find(section), *now_section = now.find(section);
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
      Checkpoint checkpoint = load_checkpoint(files, candidate.folder);
      if (!checkpoint.weights_only) return checkpoint;
    } catch (const Error& error) {
      log(LogLevel::kWarning, cat("roll-back: passed over ", error.what()));
    }
  }
  return std::nullopt;
}

int64_t restore(const Checkpoint& checkpoint, Setup& setup, Guard& guard,
                const formats::Schema& schema, const LogSink& log) {
  AMOEBA_CHECK_KIND(kData, !checkpoint.weights_only, "resume: ", checkpoint.folder,
                    " holds weights only (checkpoint.last_save_model_only), want a checkpoint with "
                    "the optimizer's state");
  const std::string what = checkpoint.folder + "/manifest.json: state";
  check_tokenizer(checkpoint, *setup.tokenizer, what);
  warn_of_changed_keys(checkpoint, schema, log);
  load_entries(checkpoint.weights, weight_tensors(setup.model), checkpoint.folder);
  load_entries(checkpoint.optimizer, optimizer_tensors(setup.model), checkpoint.folder);
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

void take_snapshot(Snapshot& snapshot, Setup& setup, const Guard& guard,
                   const formats::Schema& schema, int64_t step, int64_t tokens_seen,
                   const SnapshotOptions& options) {
  std::vector<NamedTensor> tensors = weight_tensors(setup.model);
  const size_t num_weights = tensors.size();
  for (size_t i = 0; options.dtype != at::kFloat && i + 1 < num_weights; ++i) {  // last: the bias
    tensors[i].tensor = tensors[i].tensor.to(options.dtype);
  }
  if (!options.weights_only) {
    for (NamedTensor& tensor : optimizer_tensors(setup.model)) tensors.push_back(std::move(tensor));
  }
  CheckpointContent& content = snapshot.content;
  content = {};
  content.step = step;
  content.weights_only = options.weights_only;
  content.saved_at = static_cast<int64_t>(unix_seconds());
  content.weights = to_entries(tensors, snapshot.storage, options.copy);
  const auto first_of_optimizer = content.weights.begin() + static_cast<int64_t>(num_weights);
  content.optimizer.assign(std::make_move_iterator(first_of_optimizer),
                           std::make_move_iterator(content.weights.end()));
  content.weights.resize(num_weights);
  const auto optimizer_steps = static_cast<int64_t>(setup.optimizer.num_steps().item<double>());
  content.state.data = Object{{"optimizer_steps", {optimizer_steps}},
                              {"tokens_seen", {tokens_seen}},
                              {"source_tokens", source_tokens(setup.data)},
                              {"tokenizer", tokenizer_state(*setup.tokenizer)},
                              {"guard", guard.to_value()},
                              {"data", setup.loader.cursor().to_value()}};
  content.config = with_absolute_paths(schema.to_value());
}

}  // namespace amoeba::train
