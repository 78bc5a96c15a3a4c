#include "train/step_graph.h"

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

void copy(const StepInputs& from, StepInputs& to) {
  to.settings.copy_(from.settings);
  for (size_t i = 0; i < to.micro_batches.size(); ++i) {
    to.micro_batches[i].input.tokens.copy_(from.micro_batches[i].input.tokens);
    to.micro_batches[i].input.layout.positions.copy_(from.micro_batches[i].input.layout.positions);
    to.micro_batches[i].targets.copy_(from.micro_batches[i].targets);
  }
}

// What the numbers of `stats` grew by since `before`.
nn::ExpertStats growth(const nn::ExpertStats& stats, const nn::ExpertStats& before) {
  nn::ExpertStats out;
  out.calls = stats.calls - before.calls;
  out.rows = stats.rows - before.rows;
  out.padded_rows = stats.padded_rows - before.padded_rows;
  out.host_syncs = stats.host_syncs - before.host_syncs;
  out.saved_bytes = stats.saved_bytes - before.saved_bytes;
  return out;
}

void add(nn::ExpertStats& stats, const nn::ExpertStats& counted) {
  stats.calls += counted.calls;
  stats.rows += counted.rows;
  stats.padded_rows += counted.padded_rows;
  stats.saved_bytes += counted.saved_bytes;
}

}  // namespace

at::Tensor StepGraph::run(const std::string& shape, const StepInputs& inputs,
                          nn::ExpertStats& stats,
                          const std::function<at::Tensor(const StepInputs&)>& compute) {
  if (graph_ != nullptr && shape == shape_) {
    copy(inputs, inputs_);
    graph_->replay();
    add(stats, counted_);
    return result_;
  }
  release();
  const bool is_second = !shape.empty() && shape == shape_;
  shape_ = shape;
  if (is_second && is_possible_) return record(inputs, stats, compute);
  const nn::ExpertStats before = stats;
  const at::Tensor result = compute(inputs);
  // Neither a read nor rows counted on the device can be repeated without the host.
  is_possible_ =
      is_possible_ && growth(stats, before).host_syncs == 0 && !stats.dropped_rows.defined();
  return result;
}

at::Tensor StepGraph::record(const StepInputs& inputs, nn::ExpertStats& stats,
                             const std::function<at::Tensor(const StepInputs&)>& compute) {
  const nn::ExpertStats before = stats;
  try {
    graph_ = record_graph([&] { result_ = compute(inputs); });
  } catch (const std::exception& error) {
    log_(LogLevel::kWarning,
         cat("training.cuda_graph: steps stay single operations: ", error.what()));
    stats = before;
  }
  if (graph_ == nullptr) {
    is_possible_ = false;
    return compute(inputs);
  }
  inputs_ = inputs;
  counted_ = growth(stats, before);
  graph_->replay();
  return result_;
}

void StepGraph::release() {
  result_ = at::Tensor();
  graph_ = nullptr;
  inputs_ = {};
}

}  // namespace amoeba::train
