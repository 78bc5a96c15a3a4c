#include "train/setup.h"

#include "amoeba/error.h"
#include "base/text.h"
#include "train/device.h"
#include "train/memory_plan.h"
#include "train/model_config.h"

namespace amoeba::train {

namespace {

at::Device prepare_device(const RunConfig& config) {
  set_num_threads(config.training.num_threads);
  keep_freed_memory();
  return resolve_device(config.training.device);
}

// The tokenizer, which says how large the model is, before anything large is allocated.
std::unique_ptr<formats::Tokenizer> open_tokenizer(FileSystem& files, const RunConfig& config,
                                                   at::Device device, const LogSink& log) {
  auto tokenizer = formats::make_tokenizer(files, config.data.tokenizer);
  const int64_t capacity = memory_usage(device).capacity_bytes;
  const MemoryPlan plan = plan_memory(config, tokenizer->vocab_size(), device.type());
  if (capacity > 0 && plan.total() > capacity) {
    log(LogLevel::kWarning,
        cat("memory: ", device.str(), " has ", format_bytes(capacity), ", this run takes ",
            format_bytes(plan.total()), " (", describe(plan),
            "); try a smaller training.local_batch_size or training.activation_checkpoint full"));
  }
  return tokenizer;
}

}  // namespace

Setup::Setup(FileSystem& files, const RunConfig& run_config, const LogSink& log)
    : config(run_config),
      device(prepare_device(config)),
      tokenizer(open_tokenizer(files, config, device, log)),
      data(open_training_data(files, config, *tokenizer)),
      loader(data, config),
      model(make_model_config(config, tokenizer->vocab_size()), device,
            resolve_dtype(config.training.dtype), static_cast<uint64_t>(config.training.seed)),
      optimizer((model.store().allocate_training_state(), model.store()), config.optimizer) {}

}  // namespace amoeba::train
