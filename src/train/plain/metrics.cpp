#include "train/plain/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "amoeba/error.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {
namespace {

using formats::Array;
using formats::Object;
using formats::Value;

Value value_of(bool data) { return Value{.data = data}; }
Value value_of(int64_t data) { return Value{.data = data}; }
Value value_of(double data) {
  if (std::isfinite(data)) return Value{.data = data};
  return Value{};
}
Value value_of(const char* data) { return Value{.data = std::string(data)}; }
Value value_of(const std::string& data) { return Value{.data = replace_invalid_utf8(data)}; }
Value value_of(Array data) { return Value{.data = std::move(data)}; }
Value value_of(Object data) { return Value{.data = std::move(data)}; }

double number_or_missing(const Value& record, std::string_view key, std::string_view what) {
  const Value& value = record.at(key, what);
  if (value.get_if<std::monostate>()) return kMissing;
  return record.number_at(key, what);
}

const Object& object_at(const Value& record, std::string_view key, std::string_view what) {
  const Value& value = record.at(key, what);
  const Object* object = value.get_if<Object>();
  AMOEBA_CHECK_KIND(kData, object, what, ": ", key, " is ", value.type_name(), ", want object");
  return *object;
}

int64_t step_at(const Value& record, std::string_view what) {
  const int64_t step = record.integer_at("step", what);
  AMOEBA_CHECK_KIND(kData, step >= 0, what, ": step is ", step, ", want >= 0");
  return step;
}

ExpertLoad expert_load(const Value& value, const std::string& what) {
  ExpertLoad experts{.layer = value.integer_at("layer", what), .load = {}};
  const Array& load = value.array_at("load", what);
  experts.load.reserve(load.size());
  for (const Value& item : load) {
    const int64_t* rows = item.get_if<int64_t>();
    AMOEBA_CHECK_KIND(kData, rows, what, ": load holds ", item.type_name(), ", want integer");
    AMOEBA_CHECK_KIND(kData, *rows >= 0, what, ": load holds ", *rows, ", want >= 0");
    experts.load.push_back(*rows);
  }
  return experts;
}

StepRecord step_record(const Value& value, const std::string& what) {
  StepRecord record;
  record.step = step_at(value, what);
  record.loss = number_or_missing(value, "loss", what);
  record.grad_norm = number_or_missing(value, "grad_norm", what);
  record.lr = number_or_missing(value, "lr", what);
  record.tokens_per_second = number_or_missing(value, "tokens_per_second", what);
  record.step_seconds = number_or_missing(value, "step_seconds", what);
  record.data_seconds = number_or_missing(value, "data_seconds", what);
  record.tflops = number_or_missing(value, "tflops", what);
  record.mfu = number_or_missing(value, "mfu", what);
  record.memory_bytes = value.integer_at("memory_bytes", what);
  record.memory_reserved_bytes = value.integer_at("memory_reserved_bytes", what);
  record.memory_peak_bytes = value.integer_at("memory_peak_bytes", what);
  record.memory_percent = number_or_missing(value, "memory_percent", what);
  record.tokens_seen = value.integer_at("tokens_seen", what);
  record.rejected = value.bool_at("rejected", what);
  record.aux_loss = number_or_missing(value, "aux_loss", what);
  // Lines of earlier versions lack it.
  if (value.find("z_loss") != nullptr) record.z_loss = number_or_missing(value, "z_loss", what);
  record.dropped_rows = value.integer_at("dropped_rows", what);
  record.padding_ratio = number_or_missing(value, "padding_ratio", what);
  record.expert_calls = value.integer_at("expert_calls", what);
  record.host_syncs = value.integer_at("host_syncs", what);
  record.saved_bytes = value.integer_at("saved_bytes", what);
  for (const Value& layer : value.array_at("experts", what)) {
    record.experts.push_back(expert_load(layer, what));
  }
  return record;
}

ValidationRecord validation_record(const Value& value, const std::string& what) {
  return {.step = step_at(value, what),
          .loss = number_or_missing(value, "loss", what),
          .bits_per_byte = number_or_missing(value, "bits_per_byte", what),
          .windows = value.integer_at("windows", what)};
}

CheckpointRecord checkpoint_record(const Value& value, const std::string& what) {
  return {.step = step_at(value, what),
          .folder = value.string_at("folder", what),
          .error = value.string_at("error", what),
          .weights_only = value.bool_at("weights_only", what),
          .bytes = value.integer_at("bytes", what),
          .seconds = number_or_missing(value, "seconds", what),
          .wait_seconds = number_or_missing(value, "wait_seconds", what)};
}

StartRecord start_record(const Value& value, const std::string& what) {
  object_at(value, "config", what);
  return {.step = step_at(value, what),
          .version = value.string_at("version", what),
          .command = value.string_at("command", what),
          .config = value.at("config", what),
          .backend = value.string_at("backend", what),
          .backend_reason = value.string_at("backend_reason", what),
          .device = value.string_at("device", what),
          .machine = object_at(value, "machine", what),
          .params_total = value.integer_at("params_total", what),
          .params_active = value.integer_at("params_active", what),
          .flops_per_token = value.integer_at("flops_per_token", what)};
}

GuardRecord guard_record(const Value& value, const std::string& what) {
  GuardRecord record{.step = step_at(value, what),
                     .action = value.string_at("action", what),
                     .reason = value.string_at("reason", what),
                     .to_step = value.integer_at("to_step", what)};
  AMOEBA_CHECK_KIND(kData, record.action == "skip" || record.action == "rollback", what,
                    ": action is \"", record.action, "\", want skip or rollback");
  AMOEBA_CHECK_KIND(kData, record.to_step >= 0, what, ": to_step is ", record.to_step,
                    ", want >= 0");
  return record;
}

EndRecord end_record(const Value& value, const std::string& what) {
  return {.step = step_at(value, what),
          .reason = value.string_at("reason", what),
          .prompt = value.string_at("prompt", what),
          .sample = value.string_at("sample", what),
          .checkpoint = value.string_at("checkpoint", what),
          .seconds = number_or_missing(value, "seconds", what)};
}

template <typename Record>
auto first_not_before(std::vector<Record>& records, int64_t step) {
  return std::lower_bound(records.begin(), records.end(), step,
                          [](const Record& record, int64_t want) { return record.step < want; });
}

template <typename Record>
void insert_or_replace(std::vector<Record>& records, Record record) {
  const auto place = first_not_before(records, record.step);
  if (place != records.end() && place->step == record.step) {
    *place = std::move(record);
  } else {
    records.insert(place, std::move(record));
  }
}

template <typename Record>
void erase_after(std::vector<Record>& records, int64_t step) {
  records.erase(first_not_before(records, step + 1), records.end());
}

void forget_after(RunHistory& history, int64_t step) {
  erase_after(history.steps, step);
  erase_after(history.validations, step);
  erase_after(history.checkpoints, step);
}

// Steps fall at a roll-back: what was before one that the session continues from has happened.
bool is_superseded(const GuardRecord& record, int64_t step) {
  return (record.action == "rollback" ? record.to_step : record.step) > step;
}

void begin_session(RunHistory& history, StartRecord start) {
  if (start.step == 0) history = {};
  forget_after(history, start.step);
  while (!history.guard.empty() && is_superseded(history.guard.back(), start.step)) {
    history.guard.pop_back();
  }
  history.starts.push_back(std::move(start));
}

void add_guard_record(RunHistory& history, GuardRecord record) {
  if (record.action == "rollback") forget_after(history, record.to_step);
  history.guard.push_back(std::move(record));
}

constexpr int64_t kMaxLineValues = 1 << 18;  // a step's line has one for each expert of each layer

// Parse errors of one line come as "line:1:COLUMN: reason"; the file's path and line replace the
// front.
Value parse_line(std::string_view line, const std::string& what) {
  const std::string_view front = "line:1";
  try {
    return formats::parse_json(line, "line", kMaxLineValues);
  } catch (const Error& error) {
    const std::string_view reason = error.what();
    if (!reason.starts_with(front)) throw;
    fail(error.kind(), cat(what, reason.substr(front.size())));
  }
}

void add_line(RunHistory& history, std::string_view line, const std::string& what) {
  const Value value = parse_line(line, what);
  AMOEBA_CHECK_KIND(kData, value.get_if<Object>(), what, ": the line is ", value.type_name(),
                    ", want object");
  const std::string& kind = value.string_at("kind", what);
  if (kind == "step") {
    insert_or_replace(history.steps, step_record(value, what));
  } else if (kind == "validation") {
    insert_or_replace(history.validations, validation_record(value, what));
  } else if (kind == "checkpoint") {
    insert_or_replace(history.checkpoints, checkpoint_record(value, what));
  } else if (kind == "start") {
    begin_session(history, start_record(value, what));
  } else if (kind == "guard") {
    add_guard_record(history, guard_record(value, what));
  } else if (kind == "end") {
    history.ends.push_back(end_record(value, what));
  } else {
    fail(ErrorKind::kData, cat(what, ": kind is \"", kind,
                               "\", want start, step, validation, checkpoint, guard or end"));
  }
}

}  // namespace

double max_over_mean(const ExpertLoad& experts) {
  const int64_t rows = std::accumulate(experts.load.begin(), experts.load.end(), int64_t{0});
  if (rows == 0) return kMissing;
  const int64_t largest = *std::max_element(experts.load.begin(), experts.load.end());
  return static_cast<double>(largest) * static_cast<double>(experts.load.size()) /
         static_cast<double>(rows);
}

int64_t num_empty(const ExpertLoad& experts) {
  return std::count(experts.load.begin(), experts.load.end(), 0);
}

double worst_max_over_mean(const StepRecord& record) {
  double worst = kMissing;
  for (const ExpertLoad& experts : record.experts) {
    worst = std::fmax(worst, max_over_mean(experts));
  }
  return worst;
}

Value to_value(const StepRecord& record) {
  Array experts;
  for (const ExpertLoad& layer : record.experts) {
    Array load;
    for (const int64_t rows : layer.load) load.push_back(value_of(rows));
    experts.push_back(value_of(Object{{"layer", value_of(layer.layer)},
                                      {"load", value_of(std::move(load))},
                                      {"max_over_mean", value_of(max_over_mean(layer))},
                                      {"empty", value_of(num_empty(layer))}}));
  }
  return value_of(Object{{"kind", value_of("step")},
                         {"step", value_of(record.step)},
                         {"loss", value_of(record.loss)},
                         {"grad_norm", value_of(record.grad_norm)},
                         {"lr", value_of(record.lr)},
                         {"tokens_per_second", value_of(record.tokens_per_second)},
                         {"step_seconds", value_of(record.step_seconds)},
                         {"data_seconds", value_of(record.data_seconds)},
                         {"tflops", value_of(record.tflops)},
                         {"mfu", value_of(record.mfu)},
                         {"memory_bytes", value_of(record.memory_bytes)},
                         {"memory_reserved_bytes", value_of(record.memory_reserved_bytes)},
                         {"memory_peak_bytes", value_of(record.memory_peak_bytes)},
                         {"memory_percent", value_of(record.memory_percent)},
                         {"tokens_seen", value_of(record.tokens_seen)},
                         {"rejected", value_of(record.rejected)},
                         {"aux_loss", value_of(record.aux_loss)},
                         {"z_loss", value_of(record.z_loss)},
                         {"dropped_rows", value_of(record.dropped_rows)},
                         {"padding_ratio", value_of(record.padding_ratio)},
                         {"expert_calls", value_of(record.expert_calls)},
                         {"host_syncs", value_of(record.host_syncs)},
                         {"saved_bytes", value_of(record.saved_bytes)},
                         {"experts", value_of(std::move(experts))}});
}

Value to_value(const ValidationRecord& record) {
  return value_of(Object{{"kind", value_of("validation")},
                         {"step", value_of(record.step)},
                         {"loss", value_of(record.loss)},
                         {"bits_per_byte", value_of(record.bits_per_byte)},
                         {"windows", value_of(record.windows)}});
}

Value to_value(const CheckpointRecord& record) {
  return value_of(Object{{"kind", value_of("checkpoint")},
                         {"step", value_of(record.step)},
                         {"folder", value_of(record.folder)},
                         {"error", value_of(record.error)},
                         {"weights_only", value_of(record.weights_only)},
                         {"bytes", value_of(record.bytes)},
                         {"seconds", value_of(record.seconds)},
                         {"wait_seconds", value_of(record.wait_seconds)}});
}

Value to_value(const StartRecord& record) {
  return value_of(Object{{"kind", value_of("start")},
                         {"step", value_of(record.step)},
                         {"version", value_of(record.version)},
                         {"command", value_of(record.command)},
                         {"config", record.config},
                         {"backend", value_of(record.backend)},
                         {"backend_reason", value_of(record.backend_reason)},
                         {"device", value_of(record.device)},
                         {"machine", value_of(record.machine)},
                         {"params_total", value_of(record.params_total)},
                         {"params_active", value_of(record.params_active)},
                         {"flops_per_token", value_of(record.flops_per_token)}});
}

Value to_value(const GuardRecord& record) {
  return value_of(Object{{"kind", value_of("guard")},
                         {"step", value_of(record.step)},
                         {"action", value_of(record.action)},
                         {"reason", value_of(record.reason)},
                         {"to_step", value_of(record.to_step)}});
}

Value to_value(const EndRecord& record) {
  return value_of(Object{{"kind", value_of("end")},
                         {"step", value_of(record.step)},
                         {"reason", value_of(record.reason)},
                         {"prompt", value_of(record.prompt)},
                         {"sample", value_of(record.sample)},
                         {"checkpoint", value_of(record.checkpoint)},
                         {"seconds", value_of(record.seconds)}});
}

MetricsWriter::MetricsWriter(FileSystem& files, const std::string& path) {
  if (files.exists(path)) {
    const std::string text = files.read(path);
    const std::size_t end = std::min(text.find('\0'), text.size());
    const std::size_t whole =
        end == 0 ? 0 : text.rfind('\n', end - 1) + 1;  // npos + 1 == 0: no whole line
    if (whole != text.size()) {
      write_file_atomically(files, path, std::string_view(text).substr(0, whole));
    }
  }
  file_ = files.append(path);
}

void MetricsWriter::write_line(const Value& value) {
  file_->write(formats::write_json(value) + '\n');
}

void MetricsWriter::close() {
  file_->sync();
  file_->close();
}

RunHistory parse_metrics(std::string_view text, const std::string& path) {
  RunHistory history;
  int64_t number = 1;
  for (std::size_t end; (end = text.find('\n')) != std::string_view::npos; ++number) {
    add_line(history, text.substr(0, end), cat(path, ":", number));
    text.remove_prefix(end + 1);
  }
  return history;
}

RunHistory read_metrics(FileSystem& files, const std::string& path) {
  return parse_metrics(files.read(path), path);
}

}  // namespace amoeba::train
