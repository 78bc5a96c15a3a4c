#include "train/setup.h"

#include "train/device.h"
#include "train/model_config.h"

namespace amoeba::train {

namespace {

at::Device prepare_device(const RunConfig& config) {
  set_num_threads(config.training.num_threads);
  keep_freed_memory();
  return resolve_device(config.training.device);
}

}  // namespace

Setup::Setup(FileSystem& files, const RunConfig& run_config)
    : config(run_config),
      device(prepare_device(config)),
      tokenizer(formats::make_tokenizer(files, config.data.tokenizer)),
      data(open_training_data(files, config, *tokenizer)),
      loader(data, config),
      model(make_model_config(config, tokenizer->vocab_size()), device,
            resolve_dtype(config.training.dtype), static_cast<uint64_t>(config.training.seed)),
      optimizer((model.store().allocate_training_state(), model.store()), config.optimizer) {}

}  // namespace amoeba::train
