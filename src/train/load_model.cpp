#include "train/load_model.h"

#include <algorithm>

#include "amoeba/error.h"
#include "formats/hf_folder.h"
#include "train/device.h"
#include "train/model_config.h"
#include "train/plain/checkpoint.h"
#include "train/plain/config_layers.h"
#include "train/plain/model_source.h"
#include "train/start_weights.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

// The folder's configuration, at the length that its model is meant for.
RunConfig hugging_face_config(FileSystem& files, const std::string& path, const LogSink& log) {
  std::vector<std::pair<std::string, std::string>> overrides = {{"model.from", path}};
  if (!files.exists(path + "/tokenizer.json")) {
    overrides.emplace_back("data.tokenizer", "bytes");
    log(LogLevel::kWarning, cat("'", path, "' holds no tokenizer.json: a token is a byte"));
  }
  RunConfig config = load_config(files, {}, overrides)->config;
  config.training.seq_len = config.model.rope_max_seq_len;
  config.training.local_batch_size = 1;
  return config;
}

// A shorter context: the tables of positions are as long as it, the rotation stays what it was.
void shorten(RunConfig& config, int64_t seq_len) {
  if (seq_len == 0) return;
  const int64_t longest = config.training.seq_len;
  AMOEBA_CHECK(seq_len <= longest, "--seq-len: got ", seq_len, ", want at most the model's ",
               longest);
  if (config.model.rope_max_seq_len == 0) config.model.rope_max_seq_len = longest;
  config.training.seq_len = seq_len;
}

void build(LoadedModel& loaded, FileSystem& files, const LoadModelOptions& options) {
  shorten(loaded.config, options.seq_len);
  if (!options.compute_backend.empty()) loaded.config.moe.compute_backend = options.compute_backend;
  set_num_threads(options.num_threads);
  loaded.tokenizer = formats::make_tokenizer(files, loaded.config.data.tokenizer);
  loaded.model = std::make_unique<nn::Model>(
      make_model_config(loaded.config, loaded.tokenizer->vocab_size()),
      resolve_device(options.device), resolve_dtype(loaded.config.training.dtype),
      static_cast<uint64_t>(loaded.config.training.seed));
}

}  // namespace

LoadedModel load_model(FileSystem& files, const std::string& path, const LoadModelOptions& options,
                       const LogSink& log) {
  LoadedModel loaded;
  if (formats::is_hf_folder(files, path)) {
    loaded.folder = path;
    loaded.config = hugging_face_config(files, path, log);
    check_config(loaded.config);
    build(loaded, files, options);
    load_start_weights(files, loaded.config, *loaded.model, log);
    return loaded;
  }
  const Checkpoint checkpoint = open_checkpoint(files, path, log);
  loaded.folder = checkpoint.folder;
  loaded.step = checkpoint.step;
  make_schema(loaded.config).apply(checkpoint.config, checkpoint.folder + "/manifest.json: config");
  // The copy beside the weights, so that the checkpoint can be used wherever it lies.
  if (std::ranges::count(checkpoint.attached, kTokenizerFile) > 0) {
    loaded.config.data.tokenizer = cat(checkpoint.folder, "/", kTokenizerFile);
  }
  build(loaded, files, options);
  load_entries(checkpoint.weights, weight_tensors(*loaded.model), checkpoint.folder);
  loaded.model->store().refresh_compute();
  return loaded;
}

}  // namespace amoeba::train
