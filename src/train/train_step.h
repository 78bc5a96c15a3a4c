// One optimizer step: every micro-batch forward and backward, then the optimizer and the balance
// bias. The run and the learning-rate finder share it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "amoeba/model.h"
#include "train/optimizer.h"
#include "train/plain/data_loader.h"
#include "train/plain/guard.h"
#include "train/plain/run_config.h"
#include "train/step_graph.h"

namespace amoeba::train {

// The numbers are on the host already.
struct StepResult {
  double loss = 0;       // nats a valid token
  double grad_norm = 0;  // before clipping
  double aux_loss = 0;
  double z_loss = 0;
  bool rejected = false;
  int32_t errors = 0;  // bits of the error word
  at::Tensor counts;   // [L, E] int64 on the host, of tokens that are no padding
};

// Leaves weights, moments and bias as they are when the loss or the gradient norm is not finite or
// above its limit, or the error word is set: `rejected`. One host read. With `graph` the step may
// be replayed; the caller releases it before it changes anything but the batch, the rate and the
// limits.
StepResult train_step(nn::Model& model, AdamW& optimizer, const StepBatch& batch,
                      const RunConfig& config, double lr, const StepLimits& limits = {},
                      StepGraph* graph = nullptr);

}  // namespace amoeba::train
