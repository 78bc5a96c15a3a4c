// Loss of a model on held-out text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "amoeba/model.h"
#include "train/plain/data_loader.h"

namespace amoeba::train {

struct Evaluation {
  double loss = 0;           // nats a token; NaN when stopped before the first window
  double bits_per_byte = 0;  // of the original text; NaN likewise
  int64_t windows = 0;       // evaluated
  bool complete = false;     // not stopped early
  int64_t tokens = 0;        // predicted
  int64_t bytes = 0;         // of text behind them
};

// Of all tokens and bytes of several evaluations together.
Evaluation total_of(std::span<const Evaluation> parts);

struct EvaluateOptions {
  int64_t max_windows = 0;  // 0: all
  int64_t batch_size = 16;  // windows at once
  int64_t loss_chunk_bytes = int64_t{64} << 20;
  std::function<void(int64_t done, int64_t total)> progress;  // may be empty
  std::function<bool()> stop;                                 // may be empty; true ends early
};

// Counts nothing and keeps no gradients: training state and expert statistics are untouched.
Evaluation evaluate(nn::Model& model, const ValidationSet& set, const EvaluateOptions& options);

}  // namespace amoeba::train
