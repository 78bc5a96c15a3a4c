// Everything that a configuration makes before the first step.
#pragma once

#include <memory>

#include "amoeba/model.h"
#include "base/file_system.h"
#include "base/log.h"
#include "formats/tokenizer.h"
#include "train/optimizer.h"
#include "train/plain/data_loader.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// Members use one another: it stays where it is, and `config` outlives it.
struct Setup {
  // Sets the process's number of threads, warns of memory that the machine has not, opens the data
  // and builds the model with its training state.
  Setup(FileSystem& files, const RunConfig& config, const LogSink& log);
  Setup(const Setup&) = delete;

  const RunConfig& config;
  at::Device device;
  std::unique_ptr<formats::Tokenizer> tokenizer;
  TrainingData data;
  DataLoader loader;
  nn::Model model;
  AdamW optimizer;
};

}  // namespace amoeba::train
