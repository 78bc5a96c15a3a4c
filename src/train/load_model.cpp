#include "train/load_model.h"

#include <algorithm>

#include "amoeba/error.h"
#include "train/device.h"
#include "train/model_config.h"
#include "train/plain/checkpoint.h"
#include "train/saver.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

Checkpoint open_checkpoint(FileSystem& files, const std::string& path, const LogSink& log) {
  AMOEBA_CHECK_KIND(kData, files.is_directory(path), "checkpoint: '", path,
                    "' is not a folder; want a run's folder or one of its checkpoints");
  if (files.exists(path + "/manifest.json")) return load_checkpoint(files, path);
  LatestCheckpoint latest = load_latest_checkpoint(files, path);
  for (const std::string& reason : latest.skipped) {
    log(LogLevel::kWarning, cat("checkpoint: passed over ", reason));
  }
  AMOEBA_CHECK_KIND(kData, latest.checkpoint.has_value(), "checkpoint: none in '", path,
                    "'; want a run's folder or one of its checkpoints");
  return std::move(*latest.checkpoint);
}

}  // namespace

LoadedModel load_model(FileSystem& files, const std::string& path, const LoadModelOptions& options,
                       const LogSink& log) {
  const Checkpoint checkpoint = open_checkpoint(files, path, log);
  LoadedModel loaded;
  loaded.folder = checkpoint.folder;
  loaded.step = checkpoint.step;
  make_schema(loaded.config).apply(checkpoint.config, checkpoint.folder + "/manifest.json: config");
  if (!options.compute_backend.empty()) loaded.config.moe.compute_backend = options.compute_backend;
  set_num_threads(options.num_threads);
  // The copy beside the weights, so that the checkpoint can be used wherever it lies.
  const bool has_copy = std::ranges::count(checkpoint.attached, kTokenizerFile) > 0;
  loaded.tokenizer = formats::make_tokenizer(
      files, has_copy ? cat(checkpoint.folder, "/", kTokenizerFile) : loaded.config.data.tokenizer);
  loaded.model = std::make_unique<nn::Model>(
      make_model_config(loaded.config, loaded.tokenizer->vocab_size()),
      resolve_device(options.device), resolve_dtype(loaded.config.training.dtype),
      static_cast<uint64_t>(loaded.config.training.seed));
  load_entries(checkpoint.weights, weight_tensors(*loaded.model), checkpoint.folder);
  loaded.model->store().refresh_compute();
  return loaded;
}

}  // namespace amoeba::train
