#include "train_plain/synthetic_history.h"

#include <algorithm>
#include <cmath>

namespace amoeba::test {
namespace {

using train::ExpertLoad;
using train::RunHistory;
using train::StepRecord;

double noise(int64_t stream, int64_t counter) {  // in [-1, 1)
  uint64_t bits = static_cast<uint64_t>(stream) * 0x9E3779B97F4A7C15u +
                  static_cast<uint64_t>(counter) * 0xD1B54A32D192ED03u + 1;
  bits ^= bits >> 31;
  bits *= 0xBF58476D1CE4E5B9u;
  bits ^= bits >> 29;
  return static_cast<double>(bits >> 11) / static_cast<double>(uint64_t{1} << 52) - 1.0;
}

double loss_at(int64_t step, const HistoryShape& shape) {
  const double share = static_cast<double>(step) / static_cast<double>(shape.num_steps);
  return 1.55 + 4.0 * std::exp(-9.0 * share) - 0.15 * share;
}

ExpertLoad load_at(int64_t layer, int64_t step, const HistoryShape& shape) {
  ExpertLoad experts{.layer = layer, .load = {}};
  const double share = static_cast<double>(step) / static_cast<double>(shape.num_steps);
  for (int64_t e = 0; e < shape.num_experts; ++e) {
    const double taste = noise(layer + 7, e) * (0.25 + 1.6 * std::exp(-4.0 * share));
    const double rows = 1000.0 * std::exp2(taste + 0.12 * noise(layer * 1000 + e, step));
    const bool dies = layer == 1 && e == 2 && share > 0.5 && share < 0.7;
    experts.load.push_back(dies ? 0 : std::llround(rows));
  }
  return experts;
}

StepRecord step_at(int64_t step, const HistoryShape& shape) {
  StepRecord record;
  record.step = step;
  record.loss = loss_at(step, shape) + 0.12 * noise(1, step);
  record.grad_norm =
      0.4 + 3.0 * std::exp(-0.02 * static_cast<double>(step)) + 0.2 * std::abs(noise(2, step));
  const double share = static_cast<double>(step) / static_cast<double>(shape.num_steps);
  record.lr =
      3e-3 * std::min(1.0, 20 * share) * (share < 0.2 ? 1.0 : 1.0 - 0.9 * (share - 0.2) / 0.8);
  record.tokens_per_second = step == 1 ? 6200.0 : 18300.0 + 500.0 * noise(3, step);
  record.step_seconds = 4096 / record.tokens_per_second;
  record.data_seconds = 0.002 + 0.001 * noise(4, step);
  record.tflops = record.tokens_per_second * 5e-6;
  record.memory_bytes = 420'000'000;
  record.memory_reserved_bytes = 600'000'000;
  record.memory_peak_bytes = 547'000'000;
  record.memory_percent = 2.1;
  record.tokens_seen = step * 4096;
  record.aux_loss = 0.01;
  record.padding_ratio = 0.0;
  record.saved_bytes = 12'000'000;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    record.experts.push_back(load_at(layer, step, shape));
  }
  return record;
}

formats::Value value(auto data) { return formats::Value{.data = std::move(data)}; }

}  // namespace

RunHistory synthetic_history(const HistoryShape& shape) {
  RunHistory history;
  using formats::Object;
  history.starts.push_back(
      {.step = 0,
       .version = "0.1.0",
       .command = "amoeba train configs/demo.toml --training.steps 520 --moe.num_experts 8",
       .config = value(
           Object{{"run", value(Object{{"folder", value(std::string("runs/demo"))}})},
                  {"model",
                   value(Object{{"dim", value(int64_t{128})}, {"num_layers", value(int64_t{4})}})},
                  {"moe", value(Object{{"num_experts", value(shape.num_experts)},
                                       {"compute_backend", value(std::string("auto"))}})},
                  {"optimizer", value(Object{{"lr", value(3e-3)}, {"weight_decay", value(0.1)}})},
                  {"training", value(Object{{"steps", value(shape.num_steps)}})}}),
       .backend = "fused",
       .backend_reason = "first of the list that takes float32 on the CPU",
       .device = "CPU, 16 threads",
       .machine = {{"processor", value(std::string("a processor"))}},
       .params_total = 1'234'567,
       .params_active = 456'789,
       .flops_per_token = 2'900'000});
  for (int64_t step = 1; step <= shape.num_steps; ++step) {
    if (step == 1 || step % shape.log_interval == 0) {
      history.steps.push_back(step_at(step, shape));
    }
    if (shape.validation_interval > 0 && step % shape.validation_interval == 0) {
      const double loss = loss_at(step, shape) + 0.08;
      history.validations.push_back({step, loss, loss / std::log(2.0), 839});
    }
  }
  history.ends.push_back({.step = shape.num_steps,
                          .reason = "completed",
                          .prompt = "In the beginning",
                          .sample = "In the beginning there was a small model,\nand the model had "
                                    "experts, and the experts were eight.",
                          .checkpoint = "runs/demo/checkpoint-520",
                          .seconds = 134.0});
  return history;
}

}  // namespace amoeba::test
