// A training step as one CUDA graph: the host queues one launch instead of thousands.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "amoeba/experts.h"
#include "base/log.h"
#include "train/batch.h"
#include "train/device_graph.h"

namespace amoeba::train {

// All that a step reads and the host decides anew each time, on the device.
struct StepInputs {
  std::vector<DeviceBatch> micro_batches;
  at::Tensor settings;  // [3] fp64: learning rate, limits of the loss and of the gradient norm
};

// The second of two steps of one shape is recorded; it and those after it are replayed, to the same
// bits. A step of another shape drops the recording, as does release(). Only steps that read
// nothing on the host are recorded; without CUDA none is.
class StepGraph {
 public:
  explicit StepGraph(LogSink log) : log_(std::move(log)) {}

  // The result of compute(inputs), computed or replayed. `shape` names all that compute takes from
  // the host ("": not to be recorded); it counts in `stats`, and so does a replay.
  at::Tensor run(const std::string& shape, const StepInputs& inputs, nn::ExpertStats& stats,
                 const std::function<at::Tensor(const StepInputs&)>& compute);

  bool is_recorded() const { return graph_ != nullptr; }

  // Gives the recording's memory back. Its next step is computed, the one after recorded again.
  void release();

 private:
  at::Tensor record(const StepInputs& inputs, nn::ExpertStats& stats,
                    const std::function<at::Tensor(const StepInputs&)>& compute);

  LogSink log_;
  bool is_possible_ = true;
  std::string shape_;  // of the last step
  std::unique_ptr<DeviceGraph> graph_;
  StepInputs inputs_;        // what the recording reads
  at::Tensor result_;        // what it writes
  nn::ExpertStats counted_;  // by one replay
};

}  // namespace amoeba::train
