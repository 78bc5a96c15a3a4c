#include "amoeba/train.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/headeronly/version.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "amoeba/version.h"
#include "base/clock.h"
#include "base/error_word.h"
#include "base/text.h"
#include "nn/loss.h"
#include "train/batch.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/model_config.h"
#include "train/optimizer.h"
#include "train/plain/checkpoint.h"
#include "train/plain/data_loader.h"
#include "train/plain/metrics.h"
#include "train/plain/report.h"
#include "train/plain/schedule.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

using formats::Object;
using formats::Value;

// What one optimizer step did; the tensors' values are on the host already.
struct StepResult {
  double loss = 0;
  double grad_norm = 0;
  double aux_loss = 0;
  bool rejected = false;
  int32_t errors = 0;  // bits of the error word
  at::Tensor counts;   // [L, E] int64
};

// Totals since the last logged step.
struct Interval {
  int64_t tokens = 0;
  int64_t steps = 0;
  double seconds = 0;
  double data_seconds = 0;
};

class Run {
 public:
  Run(const RunConfig& config, const formats::Schema& schema, RunContext& context);
  RunSummary train();

 private:
  void start();
  void restore(const Checkpoint& checkpoint);
  Value source_tokens() const;
  void warn_of_changed_keys(const Checkpoint& checkpoint);
  StepResult step(const StepBatch& batch, double lr);
  void log_step(const StepResult& result, double lr);
  bool count_rejection(const StepResult& result);
  [[noreturn]] void give_up();
  void validate();
  void save();
  std::string sample();
  void finish(RunSummary& summary, const std::string& reason);

  const RunConfig& config_;
  const formats::Schema& schema_;
  RunContext& context_;
  Clock clock_;
  at::Device device_;
  std::unique_ptr<formats::Tokenizer> tokenizer_;
  TrainingData data_;
  DataLoader loader_;
  nn::Model model_;
  AdamW optimizer_;
  nn::ModelSize size_;
  std::unique_ptr<MetricsWriter> metrics_;

  int64_t step_ = 0;  // optimizer steps done, rejected ones included
  int64_t tokens_seen_ = 0;
  int64_t rejected_in_a_row_ = 0;
  int64_t saved_step_ = -1;
  int64_t validated_step_ = -1;
  int64_t session_tokens_ = 0;
  double session_seconds_ = 0;
  Interval interval_;
  std::string checkpoint_;
  Evaluation evaluation_{kMissing, kMissing, 0, false};
};

at::Device prepare_device(const RunConfig& config) {
  set_num_threads(config.training.num_threads);
  return resolve_device(config.training.device);
}

Run::Run(const RunConfig& config, const formats::Schema& schema, RunContext& context)
    : config_(config),
      schema_(schema),
      context_(context),
      device_(prepare_device(config)),
      tokenizer_(formats::make_tokenizer(context.files, config.data.tokenizer)),
      data_(open_training_data(context.files, config, *tokenizer_)),
      loader_(data_, config),
      model_(make_model_config(config, tokenizer_->vocab_size()), device_,
             resolve_dtype(config.training.dtype), static_cast<uint64_t>(config.training.seed)),
      optimizer_((model_.store().allocate_training_state(), model_.store()), config.optimizer),
      size_(model_.size(config.training.seq_len)) {}

std::string backend_reason(const nn::ExpertChoice& choice, const std::string& asked) {
  if (asked != "auto") return "asked for by moe.compute_backend";
  std::string reason = "first in the table that takes this problem";
  for (const nn::ExpertRefusal& refusal : choice.refusals) {
    reason += cat("; ", refusal.name, ": ", refusal.reason);
  }
  return reason;
}

void Run::start() {
  const std::string& folder = config_.run.folder;
  const std::string& resume = config_.checkpoint.resume;
  if (resume == "none") {
    const auto existing = find_checkpoints(context_.files, folder);
    AMOEBA_CHECK(existing.empty(), "train: run.folder '", folder,
                 "' already holds checkpoints (newest step ",
                 existing.empty() ? 0 : existing[0].step,
                 "); continue it with --resume auto, or give another --run.folder");
  }
  if (resume == "auto") {
    LatestCheckpoint latest = load_latest_checkpoint(context_.files, folder);
    for (const std::string& reason : latest.skipped) {
      context_.log(LogLevel::kWarning, cat("resume: passed over ", reason));
    }
    if (latest.checkpoint) {
      restore(*latest.checkpoint);
    } else {
      // Starting anew among damaged checkpoints would bury what can still be saved of them.
      AMOEBA_CHECK_KIND(kData, latest.skipped.empty(), "resume: no checkpoint in '", folder,
                        "' verifies; repair one, or give another --run.folder");
      context_.log(LogLevel::kInfo, cat("resume: no checkpoint in ", folder, ", starting anew"));
    }
  } else if (resume != "none") {
    AMOEBA_CHECK_KIND(
        kData, context_.files.exists(resume + "/manifest.json"), "resume: '", resume,
        "' is not a checkpoint's folder; want one (RUN/checkpoints/step-...) or auto");
    const Checkpoint checkpoint = load_checkpoint(context_.files, resume);
    // "auto" would take the newer one next time, and pruning would remove what this run saves.
    const auto existing = find_checkpoints(context_.files, folder);
    AMOEBA_CHECK(existing.empty() || existing[0].step <= checkpoint.step, "train: run.folder '",
                 folder, "' holds a checkpoint of step ", existing[0].step,
                 ", newer than the one to resume from, step ", checkpoint.step,
                 "; want another --run.folder, or the newer checkpoints removed");
    restore(checkpoint);
  }
  context_.files.create_directories(folder);
  write_file_atomically(context_.files, folder + "/config.toml", schema_.write_toml(true));
  metrics_ = std::make_unique<MetricsWriter>(context_.files, folder + "/metrics.jsonl");

  const nn::ExpertChoice& choice = model_.expert_choice();
  StartRecord record;
  record.step = step_;
  record.version = kVersion;
  record.command = context_.command;
  record.config = schema_.to_value();
  record.backend = std::string(choice.backend->name);
  record.backend_reason = backend_reason(choice, config_.moe.compute_backend);
  record.device = device_name(device_);
  record.machine = {{"threads", {static_cast<int64_t>(num_threads())}},
                    {"torch", {std::string(TORCH_VERSION)}},
                    {"dtype", {config_.training.dtype}}};
  record.params_total = size_.total;
  record.params_active = size_.active;
  record.flops_per_token = static_cast<int64_t>(size_.flops_per_token);
  metrics_->write(record);

  const auto info = [&](const std::string& text) { context_.log(LogLevel::kInfo, text); };
  info(cat("device: ", record.device, ", ", config_.training.dtype));
  info(cat("model: ", format_count(size_.total), " parameters, ", format_count(size_.active),
           " active, ", config_.model.num_layers, " layers, ", config_.moe.num_experts,
           " experts, top ", config_.moe.top_k, ", vocabulary ", model_.config().vocab_size));
  info(cat("experts: ", record.backend, " (", record.backend_reason, ")"));
  info(cat("data: ", format_count(loader_.num_training_tokens()), " tokens to train on, ",
           format_count(data_.validation.num_windows()), " windows held out"));
}

void Run::warn_of_changed_keys(const Checkpoint& checkpoint) {
  const Value now = schema_.to_value();
  for (const char* section : {"model", "moe", "training", "optimizer", "lr_scheduler", "data"}) {
    const Value *before_section = checkpoint.config.find(section), *now_section = now.find(section);
    if (before_section == nullptr || now_section == nullptr) continue;
    for (const auto& [key, value] : *now_section->get_if<Object>()) {
      const Value* before = before_section->find(key);
      if (before == nullptr) continue;
      const std::string was = formats::write_json(*before), is = formats::write_json(value);
      if (was == is) continue;
      context_.log(LogLevel::kWarning,
                   cat("resume: ", section, ".", key, " was ", was, ", is now ", is));
    }
  }
}

// Tokens of each file: a text that changed would be read at the wrong places.
Value Run::source_tokens() const {
  Value tokens;
  formats::Array& counts = tokens.data.emplace<formats::Array>();
  // Not push_back of a Value: GCC 12 sees an uninitialised variant in its move.
  for (const auto& source : data_.sources) counts.emplace_back().data = source->num_tokens();
  return tokens;
}

void Run::restore(const Checkpoint& checkpoint) {
  warn_of_changed_keys(checkpoint);
  load_entries(checkpoint.weights, weight_tensors(model_), checkpoint.folder);
  load_entries(checkpoint.optimizer, optimizer_tensors(model_), checkpoint.folder);
  const std::string what = checkpoint.folder + "/manifest.json: state";
  optimizer_.num_steps().fill_(
      static_cast<double>(checkpoint.state.integer_at("optimizer_steps", what)));
  tokens_seen_ = checkpoint.state.integer_at("tokens_seen", what);
  const std::string then = formats::write_json(checkpoint.state.at("source_tokens", what));
  const std::string now = formats::write_json(source_tokens());
  AMOEBA_CHECK_KIND(kData, then == now, "resume: the files of data.path hold ", now,
                    " tokens, but ", checkpoint.folder, " was trained on ", then,
                    "; give the same text, or start anew in another --run.folder");
  loader_.seek(DataCursor::from_value(checkpoint.state.at("data", what), what));
  model_.store().refresh_compute();
  step_ = checkpoint.step;
  saved_step_ = step_;
  checkpoint_ = checkpoint.folder;
  context_.log(LogLevel::kInfo, cat("resume: step ", step_, " from ", checkpoint.folder));
}

void Run::save() {
  if (!config_.checkpoint.enable || saved_step_ == step_) return;
  context_.progress.live("saving checkpoint", clock_.seconds());
  CheckpointContent content;
  content.step = step_;
  std::vector<at::Tensor> storage;
  content.weights = to_entries(weight_tensors(model_), storage);
  content.optimizer = to_entries(optimizer_tensors(model_), storage);
  content.state.data =
      Object{{"optimizer_steps", {static_cast<int64_t>(optimizer_.num_steps().item<double>())}},
             {"tokens_seen", {tokens_seen_}},
             {"source_tokens", source_tokens()},
             {"data", loader_.cursor().to_value()}};
  content.config = schema_.to_value();
  checkpoint_ = save_checkpoint(context_.files, config_.run.folder, content);
  saved_step_ = step_;
  try {
    prune_checkpoints(context_.files, config_.run.folder, config_.checkpoint.keep_latest_k);
  } catch (const Error& error) {
    // The new checkpoint is in place: an older damaged one is no reason to end the run.
    context_.log(LogLevel::kWarning, cat("checkpoint: no older one is removed: ", error.what()));
  }
}

StepResult Run::step(const StepBatch& batch, double lr) {
  nn::ParameterStore& store = model_.store();
  store.zero_grad();
  model_.error_word().zero_();
  const auto valid_tokens = static_cast<double>(std::max<int64_t>(1, batch.valid_tokens));
  const nn::LossOptions loss_options{1.0 / valid_tokens, config_.training.loss_chunk_mib << 20};
  at::Tensor loss_sum, aux_sum, counts;
  for (const MicroBatch& micro_batch : batch.micro_batches) {
    const DeviceBatch on_device = to_device(micro_batch, device_);
    const nn::ModelOutput out = model_.forward(on_device.input);
    const nn::LossOutput loss =
        nn::lm_head_cross_entropy(out.hidden, model_.lm_head(), on_device.targets, loss_options);
    // Each micro-batch's auxiliary loss counts by its share of the step's tokens.
    const double share = static_cast<double>(micro_batch.valid_tokens) / valid_tokens;
    if (config_.moe.aux_loss_coeff > 0) {
      torch::autograd::backward(
          {out.hidden, out.aux_loss},
          {loss.dhidden, at::full_like(out.aux_loss, config_.moe.aux_loss_coeff * share)});
    } else {
      torch::autograd::backward({out.hidden}, {loss.dhidden});
    }
    const at::Tensor aux = out.aux_loss.detach() * share;
    loss_sum = loss_sum.defined() ? loss_sum + loss.loss_sum : loss.loss_sum;
    aux_sum = aux_sum.defined() ? aux_sum + aux : aux;
    counts = counts.defined() ? counts + out.counts : out.counts;
  }
  const at::Tensor reject =
      at::isfinite(loss_sum).logical_not().logical_or(model_.error_word().squeeze(0).ne(0));
  const OptimizerStep done = optimizer_.step(lr, config_.training.max_norm, reject);
  if (config_.moe.balance_coeff > 0) {
    at::Tensor& bias = model_.expert_bias();
    bias.copy_(at::where(done.rejected, bias,
                         nn::balanced_expert_bias(bias, counts, config_.moe.balance_coeff)));
  }
  // The one host read of the step.
  const at::Tensor host =
      at::stack({loss_sum, done.grad_norm.to(at::kDouble), aux_sum.to(at::kDouble),
                 done.rejected.to(at::kDouble), model_.error_word().squeeze(0).to(at::kDouble)})
          .to(at::kCPU);
  const double* values = host.const_data_ptr<double>();
  return {values[0] / valid_tokens,        values[1], values[2], values[3] != 0.0,
          static_cast<int32_t>(values[4]), counts};
}

void Run::log_step(const StepResult& result, double lr) {
  const nn::ExpertStats& stats = model_.expert_stats();
  StepRecord record;
  record.step = step_;
  record.loss = result.loss;
  record.grad_norm = result.grad_norm;
  record.lr = lr;
  record.tokens_per_second = static_cast<double>(interval_.tokens) / interval_.seconds;
  record.step_seconds = interval_.seconds / static_cast<double>(interval_.steps);
  record.data_seconds = interval_.data_seconds / static_cast<double>(interval_.steps);
  record.tflops = size_.flops_per_token * record.tokens_per_second * 1e-12;
  const double peak = peak_flops(device_, resolve_dtype(config_.training.dtype));
  if (peak > 0) record.mfu = 100.0 * record.tflops * 1e12 / peak;
  const MemoryUsage memory = memory_usage(device_);
  record.memory_bytes = memory.current_bytes;
  record.memory_reserved_bytes = memory.reserved_bytes;
  record.memory_peak_bytes = memory.peak_bytes;
  if (memory.capacity_bytes > 0) {
    record.memory_percent =
        100.0 * static_cast<double>(memory.peak_bytes) / static_cast<double>(memory.capacity_bytes);
  }
  record.tokens_seen = tokens_seen_;
  record.rejected = result.rejected;
  record.aux_loss = result.aux_loss;
  if (stats.dropped_rows.defined()) record.dropped_rows = stats.dropped_rows.item<int64_t>();
  if (stats.rows > 0) {
    record.padding_ratio = static_cast<double>(stats.padded_rows) / static_cast<double>(stats.rows);
  }
  record.expert_calls = stats.calls;
  record.host_syncs = stats.host_syncs;
  record.saved_bytes = stats.saved_bytes;
  const at::Tensor counts = result.counts.to(at::kCPU).contiguous();
  const int64_t* load = counts.const_data_ptr<int64_t>();
  for (int64_t layer = 0; layer < counts.size(0); ++layer) {
    record.experts.push_back(
        {layer, {load + layer * counts.size(1), load + (layer + 1) * counts.size(1)}});
  }
  metrics_->write(record);
  const double left =
      session_seconds_ / static_cast<double>(std::max<int64_t>(1, session_tokens_)) *
      static_cast<double>((config_.training.steps - step_) * loader_.tokens_per_step());
  context_.progress.line(format_step(record, config_.training.steps, left));
  interval_ = {};
  model_.expert_stats() = {};
}

std::string error_text(int32_t errors) {
  std::string text;
  if (errors & kErrorBadId) text += ", an expert id is out of range";
  if (errors & kErrorCounts) text += ", the experts' row counts exceed the rows";
  if (errors & kErrorNanLogit) text += ", router logits hold NaN";
  return text;
}

// Whether the run must end here.
bool Run::count_rejection(const StepResult& result) {
  if (!result.rejected) {
    rejected_in_a_row_ = 0;
    return false;
  }
  ++rejected_in_a_row_;
  context_.log(LogLevel::kWarning,
               cat("step ", step_, " rejected: loss ", result.loss, ", grad_norm ",
                   result.grad_norm, error_text(result.errors),
                   "; weights and optimizer keep their values (", rejected_in_a_row_,
                   " in a row, the run stops at ", config_.training.max_rejected_steps, ")"));
  return rejected_in_a_row_ >= config_.training.max_rejected_steps;
}

[[noreturn]] void Run::give_up() {
  save();
  RunSummary summary;
  finish(summary, "too many steps in a row were not finite");
  fail(ErrorKind::kNumeric,
       cat("train: ", rejected_in_a_row_, " steps in a row were not finite, the last at step ",
           step_, "; the state before them is saved in ",
           checkpoint_.empty() ? "no checkpoint (checkpoint.enable is false)" : checkpoint_,
           "; try a lower optimizer.lr or a longer lr_scheduler.warmup_steps"));
}

void Run::validate() {
  if (validated_step_ == step_ || data_.validation.num_windows() == 0) return;
  EvaluateOptions options;
  options.max_windows = config_.validation.max_windows;
  options.batch_size = config_.training.local_batch_size;
  options.loss_chunk_bytes = config_.training.loss_chunk_mib << 20;
  options.stop = context_.stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    context_.progress.live(format_work("evaluating", done, total, "windows"), clock_.seconds());
  };
  const Evaluation evaluation = evaluate(model_, data_.validation, options);
  if (!evaluation.complete) return;  // a part of the windows compares with nothing
  evaluation_ = evaluation;
  validated_step_ = step_;
  const ValidationRecord record{step_, evaluation_.loss, evaluation_.bits_per_byte,
                                evaluation_.windows};
  metrics_->write(record);
  context_.progress.line(format_validation(record, config_.training.steps));
}

std::string Run::sample() {
  if (config_.sample.prompt.empty()) return "";
  GenerateOptions options;
  options.num_tokens = config_.sample.num_tokens;
  options.temperature = config_.sample.temperature;
  options.seed = static_cast<uint64_t>(config_.sample.seed);
  options.context = config_.training.seq_len;
  options.stop = context_.stop_requested;
  context_.progress.live("generating a sample", clock_.seconds());
  return generate(model_, *tokenizer_, config_.sample.prompt, options).text;
}

void Run::finish(RunSummary& summary, const std::string& reason) {
  summary.step = step_;
  summary.validation_loss = evaluation_.loss;
  summary.bits_per_byte = evaluation_.bits_per_byte;
  summary.train_seconds = session_seconds_;
  summary.tokens_per_second =
      session_seconds_ > 0 ? static_cast<double>(session_tokens_) / session_seconds_ : 0.0;
  summary.checkpoint = checkpoint_;
  EndRecord record;
  record.step = step_;
  record.reason = reason;
  record.prompt = config_.sample.prompt;
  if (!summary.sample.empty()) record.sample = config_.sample.prompt + summary.sample;
  record.checkpoint = checkpoint_;
  record.seconds = clock_.seconds();
  metrics_->write(record);
  metrics_->close();
  if (config_.metrics.report) {
    summary.report = config_.run.folder + "/report.html";
    const RunHistory history = read_metrics(context_.files, config_.run.folder + "/metrics.jsonl");
    write_file_atomically(context_.files, summary.report,
                          render_report(history, {.title = config_.run.folder}));
  }
  context_.progress.clear();
}

RunSummary Run::train() {
  start();
  RunSummary summary;
  const int64_t steps = config_.training.steps;
  const auto due = [&](int64_t interval) { return interval > 0 && step_ % interval == 0; };
  while (step_ < steps && !summary.stopped) {
    const double began = clock_.seconds();
    const StepBatch batch = loader_.next_step();
    const double loaded = clock_.seconds();
    const double lr = learning_rate(config_.lr_scheduler, config_.optimizer.lr, step_, steps);
    const StepResult result = step(batch, lr);
    const double seconds = clock_.seconds() - began;
    ++step_;
    tokens_seen_ += batch.num_tokens;
    session_tokens_ += batch.num_tokens;
    session_seconds_ += seconds;
    interval_.tokens += batch.num_tokens;
    interval_.steps += 1;
    interval_.seconds += seconds;
    interval_.data_seconds += loaded - began;
    if (due(config_.metrics.log_interval) || step_ == steps || step_ == 1 || result.rejected) {
      log_step(result, lr);
    } else {
      context_.progress.live(cat("step: ", step_, "/", steps, "  loss: ", result.loss),
                             clock_.seconds());
    }
    if (count_rejection(result)) give_up();
    if (due(config_.checkpoint.interval)) save();
    if (due(config_.validation.interval)) validate();
    summary.stopped = step_ < steps && context_.stop_requested();
    if (summary.stopped) save();
  }
  if (!summary.stopped) {
    save();  // first: a second signal ends the process at once
    validate();
    summary.sample = sample();
  }
  finish(summary, summary.stopped ? "stopped by a signal" : "completed");
  return summary;
}

}  // namespace

RunSummary train(const RunConfig& config, const formats::Schema& schema, RunContext& context) {
  check_config(config);
  try {
    return Run(config, schema, context).train();
  } catch (...) {
    context.progress.clear();  // or the error would be printed behind the live line
    throw;
  }
}

}  // namespace amoeba::train
