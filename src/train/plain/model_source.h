// model.from: the folder that training starts from, as a layer of the configuration under the
// user's settings. Its weights: train/start_weights.h.
#pragma once

#include <string>

#include "base/file_system.h"
#include "base/log.h"
#include "train/plain/checkpoint.h"
#include "train/plain/config_layers.h"

namespace amoeba::train {

// `path`: a checkpoint's folder, or a run's folder: its newest checkpoint that verifies. What is
// passed over goes to `log`. Error(kData) when there is none.
Checkpoint open_checkpoint(FileSystem& files, const std::string& path, const LogSink& log);

// Sets what the folder says that the model is. Error(kUsage) when a layer set one of these keys to
// something else: both are named. The folder's tokenizer.json is the tokenizer unless one was set.
void apply_model_source(FileSystem& files, LoadedConfig& loaded);

}  // namespace amoeba::train
