// A trained model from a checkpoint, for generation and evaluation.
#pragma once

#include <memory>
#include <string>

#include "amoeba/model.h"
#include "base/file_system.h"
#include "base/log.h"
#include "formats/tokenizer.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

struct LoadedModel {
  std::string folder;  // of the checkpoint taken
  int64_t step = 0;
  RunConfig config;  // as the run was configured
  std::unique_ptr<formats::Tokenizer> tokenizer;
  std::unique_ptr<nn::Model> model;
};

struct LoadModelOptions {
  std::string device = "auto";
  int64_t num_threads = 0;
  std::string compute_backend;  // empty: as the run was configured
  int64_t seq_len = 0;          // 0: the trained length, or all of a Hugging Face folder's context
};

// `path`: a checkpoint's folder, a run's folder (its newest checkpoint that verifies), or a Hugging
// Face folder, at the context length of its config.json. What is passed over goes to `log`.
// Error(kData) when there is none.
LoadedModel load_model(FileSystem& files, const std::string& path, const LoadModelOptions& options,
                       const LogSink& log);

}  // namespace amoeba::train
