#include "train/saver.h"

#include <utility>

#include "amoeba/error.h"
#include "train/float_types.h"
#include "train/plain/tokenizer_files.h"

namespace amoeba::train {

namespace {

int64_t tensor_bytes(const CheckpointContent& content) {
  int64_t bytes = 0;
  for (const auto* tensors : {&content.weights, &content.optimizer}) {
    for (const formats::TensorEntry& entry : *tensors) {
      bytes += static_cast<int64_t>(entry.data.size());
    }
  }
  return bytes;
}

}  // namespace

CheckpointSaver::CheckpointSaver(FileSystem& files, Setup& setup, const Guard& guard,
                                 const formats::Schema& schema)
    : files_(files),
      setup_(setup),
      guard_(guard),
      schema_(schema),
      tokenizer_files_(read_tokenizer_files(files, setup.tokenizer->name())) {}

void CheckpointSaver::start(int64_t step, int64_t tokens_seen) {
  const CheckpointSection& checkpoint = setup_.config.checkpoint;
  SnapshotOptions options;
  options.weights_only = checkpoint.last_save_model_only && step == setup_.config.training.steps;
  if (options.weights_only) {
    options.dtype = find_float_type(&FloatType::name, checkpoint.export_dtype)->type;
  }
  options.copy = checkpoint.async_mode == "async";
  clock_ = {};
  take_snapshot(snapshot_, setup_, guard_, schema_, step, tokens_seen, options);
  snapshot_.content.files = tokenizer_files_;
  outcome_ = {};
  outcome_.record.step = step;
  outcome_.record.weights_only = options.weights_only;
  outcome_.record.bytes = tensor_bytes(snapshot_.content);
  work_.start([this] { write(); });
}

// On the other thread.
void CheckpointSaver::write() {
  const RunConfig& config = setup_.config;
  try {
    outcome_.record.folder = save_checkpoint(files_, config.run.folder, snapshot_.content);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    outcome_.record.error = error.what();
  }
  if (outcome_.record.error.empty()) {
    try {
      prune_checkpoints(files_, config.run.folder, config.checkpoint.keep_latest_k,
                        config.checkpoint.keep_every);
    } catch (const Error& error) {
      outcome_.prune_error = error.what();
    }
  }
  outcome_.record.seconds = clock_.seconds();
}

SaveOutcome CheckpointSaver::finish() {
  work_.finish();
  return std::move(outcome_);
}

}  // namespace amoeba::train
