#include "amoeba/train.h"

#include <ATen/record_function.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "amoeba/error.h"
#include "amoeba/version.h"
#include "base/clock.h"
#include "base/error_word.h"
#include "base/text.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/memory_plan.h"
#include "train/plain/guard.h"
#include "train/plain/metrics.h"
#include "train/plain/report.h"
#include "train/plain/schedule.h"
#include "train/plain/tensorboard.h"
#include "train/plain/wall_time.h"
#include "train/profiler.h"
#include "train/resume.h"
#include "train/saver.h"
#include "train/setup.h"
#include "train/start_weights.h"
#include "train/step_record.h"
#include "train/train_step.h"

namespace amoeba::train {

namespace {

class Run {
 public:
  Run(const RunConfig& config, const formats::Schema& schema, RunContext& context);
  RunSummary train();

 private:
  void start();
  StartRecord start_record() const;
  void announce(const StartRecord& record);
  template <typename Record>
  void write(const Record& record);
  StepBatch next_batch();
  StepGraph* graph_of(bool is_traced);
  StepResult step(double lr, const StepLimits& limits);
  void finish_trace(StepTrace& trace);
  void log_step(const StepResult& result, double lr);
  void guard_step(const StepResult& result, const StepLimits& limits);
  void roll_back(const std::string& reason);
  [[noreturn]] void give_up(const std::string& reason);
  void validate();
  void save();
  void finish_save();
  void save_at_end();
  std::string stop_reason() const;
  std::string sample();
  void finish(RunSummary& summary, const std::string& reason);

  const RunConfig& config_;
  const formats::Schema& schema_;
  RunContext& context_;
  Clock clock_;
  Setup setup_;
  nn::ModelSize size_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<formats::EventWriter> events_;  // null: off
  Guard guard_;
  CheckpointSaver saver_;
  WallTime wall_time_;
  StepGraph graph_;

  int64_t step_ = 0;  // optimizer steps done, rejected ones included
  int64_t tokens_seen_ = 0;
  int64_t saved_step_ = -1;  // on disk, or on its way
  double save_wait_ = 0;     // seconds that the save under way has cost so far
  std::string save_error_;   // of the last save; empty: it was fine
  int64_t validated_step_ = -1;
  int64_t session_tokens_ = 0;
  double session_seconds_ = 0;
  Interval interval_;
  std::string checkpoint_;
  Evaluation evaluation_{kMissing, kMissing, 0, false};
};

Run::Run(const RunConfig& config, const formats::Schema& schema, RunContext& context)
    : config_(config),
      schema_(schema),
      context_(context),
      setup_(context.files, config, context.log),
      size_(setup_.model.size(config.training.seq_len)),
      guard_(config.guard, config.training.max_rejected_steps),
      saver_(context.files, setup_, guard_, schema),
      wall_time_(config.run),
      graph_(context.log) {}

std::string backend_reason(const nn::ExpertChoice& choice, const std::string& asked) {
  if (choice.backend == nullptr) return "every layer is dense";
  if (asked != "auto") return "asked for by moe.compute_backend";
  std::string reason = "first in the table that takes this problem";
  for (const nn::ExpertRefusal& refusal : choice.refusals) {
    reason += cat("; ", refusal.name, ": ", refusal.reason);
  }
  return reason;
}

void Run::start() {
  const std::string& folder = config_.run.folder;
  if (const auto checkpoint = find_resume_point(context_.files, config_, context_.log)) {
    tokens_seen_ = restore(*checkpoint, setup_, guard_, schema_, context_.log);
    step_ = checkpoint->step;
    saved_step_ = step_;
    checkpoint_ = checkpoint->folder;
  } else {
    load_start_weights(context_.files, config_, setup_.model, context_.log);
  }
  create_directories_durably(context_.files, folder);
  write_file_atomically(context_.files, folder + "/config.toml", schema_.write_toml(true));
  metrics_ = std::make_unique<MetricsWriter>(context_.files, folder + "/metrics.jsonl");
  if (config_.metrics.tensorboard) {
    events_ = std::make_unique<formats::EventWriter>(context_.files, folder + "/tensorboard",
                                                     unix_seconds(), step_);
  }
  const StartRecord record = start_record();
  metrics_->write(record);
  announce(record);
}

StartRecord Run::start_record() const {
  const nn::ExpertChoice& choice = setup_.model.expert_choice();
  StartRecord record;
  record.step = step_;
  record.version = kVersion;
  record.command = context_.command;
  record.config = schema_.to_value();
  record.backend = choice.backend == nullptr ? "none" : std::string(choice.backend->name);
  record.backend_reason = backend_reason(choice, config_.moe.compute_backend);
  record.device = device_name(setup_.device);
  record.machine = {{"threads", {static_cast<int64_t>(num_threads())}},
                    {"torch", {std::string(TORCH_VERSION)}},
                    {"dtype", {config_.training.dtype}}};
  record.params_total = size_.total;
  record.params_active = size_.active;
  record.flops_per_token = static_cast<int64_t>(size_.flops_per_token);
  return record;
}

void Run::announce(const StartRecord& record) {
  const auto info = [&](const std::string& text) { context_.log(LogLevel::kInfo, text); };
  info(cat("device: ", record.device, ", ", config_.training.dtype));
  const std::string experts =
      setup_.model.num_moe_layers() == 0
          ? ""
          : cat(config_.moe.num_experts, " experts, top ", config_.moe.top_k, ", ");
  info(cat("model: ", format_count(size_.total), " parameters, ", format_count(size_.active),
           " active, ", config_.model.num_layers, " layers, ", experts, "vocabulary ",
           setup_.model.config().vocab_size));
  const MemoryPlan memory =
      plan_memory(config_, setup_.tokenizer->vocab_size(), setup_.device.type());
  info(cat("memory: ", format_bytes(memory.total()), " predicted (", describe(memory), ")"));
  info(cat("experts: ", record.backend, " (", record.backend_reason, ")"));
  info(cat("data: ", format_count(setup_.loader.num_training_tokens()), " tokens to train on, ",
           format_count(setup_.data.validation.num_windows()), " windows held out"));
}

// A record of a step to everything that keeps one.
template <typename Record>
void Run::write(const Record& record) {
  metrics_->write(record);
  if (events_) events_->write(record.step, unix_seconds(), to_scalars(record));
}

// Begins to save this step, after the save before it; without checkpoint.async_mode ends it too.
void Run::save() {
  if (!config_.checkpoint.enable || saved_step_ == step_) return;
  finish_save();
  context_.progress.live("saving checkpoint", clock_.seconds());
  const double began = clock_.seconds();
  saver_.start(step_, tokens_seen_);
  saved_step_ = step_;
  save_wait_ = clock_.seconds() - began;
  if (config_.checkpoint.async_mode == "disabled") finish_save();
}

// Waits for the save under way, if any, and says what came of it.
void Run::finish_save() {
  if (!saver_.under_way()) return;
  const double began = clock_.seconds();
  SaveOutcome outcome = saver_.finish();
  CheckpointRecord& record = outcome.record;
  record.wait_seconds = save_wait_ + clock_.seconds() - began;
  save_error_ = record.error;
  wall_time_.add_save(record.seconds);
  if (record.error.empty()) {
    checkpoint_ = record.folder;
    const auto milliseconds = [](double seconds) { return static_cast<int64_t>(1000 * seconds); };
    context_.log(LogLevel::kInfo,
                 cat("checkpoint: ", record.folder, ", ", format_bytes(record.bytes), " in ",
                     milliseconds(record.seconds), " ms, training waited ",
                     milliseconds(record.wait_seconds), " ms"));
  } else {
    if (saved_step_ == record.step) saved_step_ = -1;
    context_.log(LogLevel::kWarning, cat("checkpoint: step ", record.step, " is not saved: ",
                                         record.error, "; the run goes on, the last checkpoint is ",
                                         checkpoint_.empty() ? "none" : checkpoint_));
  }
  if (!outcome.prune_error.empty()) {
    // The new checkpoint is in place: an older damaged one is no reason to end the run.
    context_.log(LogLevel::kWarning,
                 cat("checkpoint: no older one is removed: ", outcome.prune_error));
  }
  metrics_->write(record);
}

// The last save of a session, whose failure is the run's.
void Run::save_at_end() {
  finish_save();
  save();
  finish_save();
  AMOEBA_CHECK_KIND(kData, save_error_.empty(), save_error_);
}

StepBatch Run::next_batch() {
  RECORD_USER_SCOPE("data");
  return setup_.loader.next_step();
}

// nullptr: the next step is queued operation by operation, as a trace wants to see it.
StepGraph* Run::graph_of(bool is_traced) {
  if (is_traced) graph_.release();
  return is_traced || !config_.training.cuda_graph ? nullptr : &graph_;
}

// Loads, computes and counts the next step.
StepResult Run::step(double lr, const StepLimits& limits) {
  std::optional<StepTrace> trace;
  if (is_traced(config_.profiling, step_ + 1)) trace.emplace(setup_.device);
  StepResult result;
  {
    RECORD_USER_SCOPE(cat("step ", step_ + 1));
    const double began = clock_.seconds();
    const StepBatch batch = next_batch();
    const double loaded = clock_.seconds();
    result = train_step(setup_.model, setup_.optimizer, batch, config_, lr, limits,
                        graph_of(trace.has_value()));
    const double seconds = clock_.seconds() - began;
    ++step_;
    tokens_seen_ += batch.num_tokens;
    session_tokens_ += batch.num_tokens;
    session_seconds_ += seconds;
    wall_time_.add_step(seconds);
    interval_.tokens += batch.num_tokens;
    interval_.steps += 1;
    interval_.seconds += seconds;
    interval_.data_seconds += loaded - began;
  }
  if (trace) finish_trace(*trace);
  return result;
}

void Run::finish_trace(StepTrace& trace) {
  const std::string path = trace_path(config_.run.folder, step_);
  try {
    context_.files.create_directories(parent_folder(path));
    trace.finish(context_.files, path);
    context_.log(LogLevel::kInfo, cat("trace: ", path));
  } catch (const Error& error) {
    // What is looked at once is no reason to end the run.
    context_.log(LogLevel::kWarning, error.what());
  }
}

void Run::log_step(const StepResult& result, double lr) {
  StepRecord record =
      make_step_record(result, interval_, setup_.model, config_, size_.flops_per_token);
  record.step = step_;
  record.lr = lr;
  record.tokens_seen = tokens_seen_;
  write(record);
  const double tokens_left = static_cast<double>(
      num_sequences(config_.training, step_, config_.training.steps) * config_.training.seq_len);
  const double left =
      session_seconds_ / static_cast<double>(std::max<int64_t>(1, session_tokens_)) * tokens_left;
  context_.progress.line(format_step(record, config_.training.steps, left));
  interval_ = {};
  setup_.model.expert_stats() = {};
}

// Of a rejected step: its numbers, then what is wrong besides being not finite.
std::string rejection_text(const StepResult& result, const StepLimits& limits) {
  std::string text = cat("loss ", result.loss);
  if (result.loss > limits.loss) text += cat(" above its limit ", limits.loss);
  text += cat(", grad_norm ", result.grad_norm);
  if (result.grad_norm > limits.grad_norm) text += cat(" above its limit ", limits.grad_norm);
  if (result.errors & kErrorBadId) text += ", an expert id is out of range";
  if (result.errors & kErrorCounts) text += ", the experts' row counts exceed the rows";
  if (result.errors & kErrorNanLogit) text += ", router logits hold NaN";
  return text;
}

// Counts the step; too many rejected ones lead back to a checkpoint or end the run.
void Run::guard_step(const StepResult& result, const StepLimits& limits) {
  const GuardAction action = guard_.add(step_, result.loss, result.grad_norm, result.rejected);
  if (!result.rejected) return;
  const std::string text = rejection_text(result, limits);
  const std::string count = cat(guard_.rejected_in_a_row(), " in a row, ", guard_.num_skips(),
                                " within ", config_.guard.skip_interval, " steps");
  write(GuardRecord{step_, "skip", text, step_});
  context_.log(LogLevel::kWarning, cat("step ", step_, " rejected: ", text,
                                       "; weights and optimizer keep their values (", count, ")"));
  if (action == GuardAction::kGoOn) return;
  const bool in_a_row = guard_.rejected_in_a_row() >= config_.training.max_rejected_steps;
  const std::string reason =
      in_a_row ? cat(guard_.rejected_in_a_row(), " steps in a row were rejected")
               : cat(guard_.num_skips(), " of ", config_.guard.skip_interval,
                     " steps were rejected, guard.max_skips is ", config_.guard.max_skips);
  if (action == GuardAction::kEnd) give_up(reason);
  roll_back(reason);
}

// The state of a checkpoint from before the trouble, and the data from here on: rows that led into
// it are not seen again. Replaces that checkpoint, so that a run that is resumed does the same.
void Run::roll_back(const std::string& reason) {
  finish_save();
  graph_.release();
  const auto checkpoint =
      find_rollback_point(context_.files, config_, guard_.first_skip(), context_.log);
  if (!checkpoint) give_up(reason + ", with no checkpoint of checkpoint.interval to go back to");
  const int64_t from = step_;
  DataCursor cursor = setup_.loader.cursor();
  Guard saved = guard_;
  restore(*checkpoint, setup_, saved, schema_, context_.log);
  guard_.roll_back(saved);
  step_ = checkpoint->step;
  cursor.step = step_;  // of the batch-size ramp
  setup_.loader.seek(cursor);
  remove_checkpoints_after(context_.files, config_.run.folder, step_);
  saved_step_ = -1;
  validated_step_ = step_;
  save();
  finish_save();
  write(GuardRecord{from, "rollback", reason, step_});
  context_.log(
      LogLevel::kWarning,
      cat("step ", from, ": ", reason, "; back to step ", step_, " with new data (",
          guard_.num_rollbacks(), " of guard.max_rollbacks ", config_.guard.max_rollbacks, ")"));
}

[[noreturn]] void Run::give_up(const std::string& reason) {
  save_at_end();
  RunSummary summary;
  finish(summary, "too many steps were rejected");
  fail(ErrorKind::kNumeric,
       cat("train: ", reason, ", the last at step ", step_, "; the state before them is saved in ",
           checkpoint_.empty() ? "no checkpoint (checkpoint.enable is false)" : checkpoint_,
           "; try a lower optimizer.lr or a longer lr_scheduler.warmup_steps"));
}

void Run::validate() {
  if (validated_step_ == step_ || setup_.data.validation.num_windows() == 0) return;
  graph_.release();  // its memory is wanted
  EvaluateOptions options;
  options.max_windows = config_.validation.max_windows;
  options.batch_size = config_.training.local_batch_size;
  options.loss_chunk_bytes =
      loss_chunk_bytes(config_.training.loss_chunk_mib, setup_.device.type());
  options.stop = context_.stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    context_.progress.live(format_work("evaluating", done, total, "windows"), clock_.seconds());
  };
  const double began = clock_.seconds();
  const Evaluation evaluation = evaluate(setup_.model, setup_.data.validation, options);
  wall_time_.add_validation(clock_.seconds() - began);
  if (!evaluation.complete) return;  // a part of the windows compares with nothing
  evaluation_ = evaluation;
  validated_step_ = step_;
  const ValidationRecord record{step_, evaluation_.loss, evaluation_.bits_per_byte,
                                evaluation_.windows};
  write(record);
  context_.progress.line(format_validation(record, config_.training.steps));
}

std::string Run::sample() {
  if (config_.sample.prompt.empty()) return "";
  graph_.release();
  GenerateOptions options;
  options.num_tokens = config_.sample.num_tokens;
  options.sampling.temperature = config_.sample.temperature;
  options.seed = static_cast<uint64_t>(config_.sample.seed);
  options.context = config_.training.seq_len;
  options.stop = context_.stop_requested;
  context_.progress.live("generating a sample", clock_.seconds());
  try {
    return generate(setup_.model, *setup_.tokenizer, config_.sample.prompt, options).text;
  } catch (const Error& error) {  // logits that are no numbers: the run is none the worse
    if (error.kind() != ErrorKind::kNumeric) throw;
    context_.log(LogLevel::kWarning, error.what());
    return "";
  }
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
  if (events_) events_->close();
  if (config_.metrics.report) {
    summary.report = config_.run.folder + "/report.html";
    const RunHistory history = read_metrics(context_.files, config_.run.folder + "/metrics.jsonl");
    write_file_atomically(context_.files, summary.report,
                          render_report(history, {.title = config_.run.folder}));
  }
  context_.progress.clear();
}

// Why the run must end before its last step; empty: it may go on.
std::string Run::stop_reason() const {
  if (context_.stop_requested()) return "stopped by a signal";
  const double now = context_.wall_seconds ? context_.wall_seconds() : clock_.seconds();
  const int64_t interval = config_.validation.interval;
  if (!wall_time_.is_up(now, interval > 0 && (step_ + 1) % interval == 0)) return "";
  return cat("stopped before run.max_wall_minutes, ", config_.run.max_wall_minutes, ", was over");
}

RunSummary Run::train() {
  start();
  RunSummary summary;
  std::string reason = "completed";
  const int64_t steps = config_.training.steps;
  const auto due = [&](int64_t interval) { return interval > 0 && step_ % interval == 0; };
  while (step_ < steps && !summary.stopped) {
    const double lr = learning_rate(config_.lr_scheduler, config_.optimizer.lr, step_, steps);
    const StepLimits limits = guard_.limits();
    const StepResult result = step(lr, limits);
    if (due(config_.metrics.log_interval) || step_ == steps || step_ == 1 || result.rejected) {
      log_step(result, lr);
    } else {
      context_.progress.live(cat("step: ", step_, "/", steps, "  loss: ", result.loss),
                             clock_.seconds());
    }
    if (saver_.done()) finish_save();
    guard_step(result, limits);
    if (step_ == steps) save_at_end();  // first: a second signal ends the process at once
    if (due(config_.checkpoint.interval) || (step_ == 1 && config_.checkpoint.save_first_step)) {
      save();
    }
    if (due(config_.validation.interval)) validate();
    if (step_ == steps) break;
    if (const std::string why = stop_reason(); !why.empty()) {
      summary.stopped = true;
      reason = why;
      context_.log(LogLevel::kInfo, cat(why, ": saving step ", step_));
      save_at_end();
    }
  }
  if (!summary.stopped) {
    validate();
    summary.sample = sample();
  }
  finish(summary, reason);
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
