#include <cmath>
#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "formats/value.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/load_model.h"
#include "train/multiple_choice.h"
#include "train/plain/plain_text.h"

namespace amoeba::apps {

namespace {

using formats::Object;

std::string help_footer() {
  return R"(Texts are cut into windows of the trained length; each token is predicted from those before it in
its window. A file for --choices is JSONL, one question a line:

  {"context": "Question: ...\nAnswer:", "choices": [" yes", " no"], "answer": 0}

answer: an index from 0 or a letter from A. The likeliest choice counts as the model's answer;
accuracy_norm divides each log-likelihood by the bytes of its choice first. See docs/judging.md.

examples:
  amoeba eval --checkpoint runs/demo
  amoeba eval --checkpoint runs/demo --text a.txt --text b.jsonl --json result.jsonl
  amoeba eval --checkpoint runs/demo --choices arc.jsonl --choices hellaswag.jsonl
)";
}

struct EvalOptions {
  std::vector<std::string> texts, choices;
  int64_t max_windows = 0;
  int64_t max_questions = 0;
};

// What one run of the verb shares.
class Judge {
 public:
  Judge(FileSystem& files, train::LoadedModel& loaded, const EvalOptions& options,
        train::Progress& progress)
      : files_(files), loaded_(loaded), options_(options), progress_(progress) {}

  // One object a file and, of several, one for all of them.
  std::vector<Object> run();

 private:
  void judge_texts();
  void judge_choices();
  train::Evaluation judge_text(const std::string& path, double fraction);
  train::ChoiceScore judge_questions(const std::string& path,
                                     std::vector<train::Question>& questions);
  void add(const char* kind, const std::string& file, const train::Evaluation& result,
           double seconds);
  void add(const char* kind, const std::string& file, const train::ChoiceScore& score,
           double seconds);

  FileSystem& files_;
  train::LoadedModel& loaded_;
  const EvalOptions& options_;
  train::Progress& progress_;
  Clock clock_;
  std::vector<Object> records_;
};

std::vector<Object> Judge::run() {
  if (options_.choices.empty() || !options_.texts.empty()) judge_texts();
  if (!options_.choices.empty()) judge_choices();
  progress_.clear();
  return std::move(records_);
}

void Judge::judge_texts() {
  const bool is_held_out = options_.texts.empty();
  const train::DataSection& data = loaded_.config.data;
  const double fraction = is_held_out ? data.validation_fraction : 1.0;
  AMOEBA_CHECK_KIND(kData, fraction > 0, "eval: the run holds out no text ",
                    "(data.validation_fraction is ", fraction, "), want --text FILE");
  const Clock clock;
  std::vector<train::Evaluation> results;
  for (const std::string& path : is_held_out ? data.path : options_.texts) {
    if (stop_requested()) return;
    const Clock file_clock;
    results.push_back(judge_text(path, fraction));
    add(is_held_out ? "held_out" : "text", path, results.back(), file_clock.seconds());
  }
  if (results.size() < 2) return;
  add(is_held_out ? "held_out_total" : "text_total", "", train::total_of(results), clock.seconds());
}

train::Evaluation Judge::judge_text(const std::string& path, double fraction) {
  train::RunConfig config = loaded_.config;
  config.data.path = {path};
  config.data.weights.clear();
  config.data.validation_fraction = fraction;
  const train::ValidationData data =
      train::open_validation_data(files_, config, *loaded_.tokenizer);
  train::EvaluateOptions options;
  options.max_windows = options_.max_windows;
  options.batch_size = config.training.local_batch_size;
  options.loss_chunk_bytes =
      train::loss_chunk_bytes(config.training.loss_chunk_mib, loaded_.model->device().type());
  options.stop = stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    progress_.live(train::format_work(cat(path, ": evaluating"), done, total, "windows"),
                   clock_.seconds());
  };
  const train::Evaluation result = train::evaluate(*loaded_.model, data.set, options);
  AMOEBA_CHECK_KIND(kNumeric, result.tokens == 0 || std::isfinite(result.loss), "eval: '", path,
                    "': loss is ", result.loss, " over ", result.windows,
                    " windows, want a finite number");
  return result;
}

void Judge::judge_choices() {
  // All files are read before the first is judged, so that a mistake in the last is known at once.
  std::vector<std::vector<train::Question>> questions;
  for (const std::string& path : options_.choices) {
    questions.push_back(train::read_questions(files_, path));
  }
  const Clock clock;
  train::ChoiceScore total;
  size_t num_files = 0;
  for (; num_files < questions.size() && !stop_requested(); ++num_files) {
    const Clock file_clock;
    const std::string& path = options_.choices[num_files];
    const train::ChoiceScore score = judge_questions(path, questions[num_files]);
    add("choices", path, score, file_clock.seconds());
    total += score;
  }
  if (num_files > 1) add("choices_total", "", total, clock.seconds());
}

train::ChoiceScore Judge::judge_questions(const std::string& path,
                                          std::vector<train::Question>& questions) {
  const auto limit = static_cast<size_t>(options_.max_questions);
  if (limit > 0 && questions.size() > limit) questions.resize(limit);
  train::ChoiceOptions options;
  options.context = loaded_.config.training.seq_len;
  options.stop = stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    progress_.live(train::format_work(cat(path, ": answering"), done, total, "questions"),
                   clock_.seconds());
  };
  return train::answer_questions(*loaded_.model, *loaded_.tokenizer, questions, options);
}

Object begin_record(const char* kind, const std::string& file, int64_t step) {
  Object record = {{"kind", {std::string(kind)}}};
  if (!file.empty()) record.push_back({"file", {file}});
  record.push_back({"step", {step}});
  return record;
}

void Judge::add(const char* kind, const std::string& file, const train::Evaluation& result,
                double seconds) {
  if (result.windows == 0) return;  // stopped before the first was done
  Object record = begin_record(kind, file, loaded_.step);
  for (const auto& [name, number] : {std::pair<const char*, double>{"loss", result.loss},
                                     {"perplexity", std::exp(result.loss)},
                                     {"bits_per_byte", result.bits_per_byte}}) {
    record.push_back({name, {number}});
  }
  record.push_back({"windows", {result.windows}});
  record.push_back({"tokens", {result.tokens}});
  record.push_back({"bytes", {result.bytes}});
  record.push_back({"complete", {result.complete}});
  record.push_back({"seconds", {seconds}});
  records_.push_back(std::move(record));
}

void Judge::add(const char* kind, const std::string& file, const train::ChoiceScore& score,
                double seconds) {
  if (score.questions == 0) return;
  Object record = begin_record(kind, file, loaded_.step);
  const double accuracy = score.accuracy(), norm = score.accuracy_norm();
  record.push_back({"accuracy", {accuracy}});
  record.push_back({"accuracy_stderr", {train::standard_error(accuracy, score.questions)}});
  record.push_back({"accuracy_norm", {norm}});
  record.push_back({"accuracy_norm_stderr", {train::standard_error(norm, score.questions)}});
  record.push_back({"questions", {score.questions}});
  record.push_back({"truncated", {score.truncated}});
  record.push_back({"seconds", {seconds}});
  records_.push_back(std::move(record));
}

// "text.txt: loss 1.2345  perplexity 3.4366  ..." for a reader.
std::string describe(const Object& record) {
  const formats::Value value{record};
  const formats::Value* file = value.find("file");
  std::string line = cat(file != nullptr ? *file->get_if<std::string>() : "all", ":");
  for (const auto& [name, field] : record) {
    if (const auto* number = field.get_if<double>()) {
      line += cat("  ", name, " ", train::fixed(*number, name == "seconds" ? 1 : 4));
    } else if (const auto* count = field.get_if<int64_t>(); count != nullptr && name != "step") {
      line += cat("  ", name, " ", *count);
    }
  }
  return line;
}

}  // namespace

int run_eval(const Arguments& arguments) {
  std::string checkpoint, seq_len = "0", windows = "0", questions = "0", json;
  std::string device = "auto", threads = "0", backend;
  EvalOptions options;
  const Command command{
      "eval",
      "Judges a trained model: loss, perplexity and bits per byte of text, and multiple choice by "
      "likelihood. Prints one JSON object a file, and one for all of several.",
      {{"--checkpoint", "run folder (its newest checkpoint) or one checkpoint's folder", nullptr,
        &checkpoint},
       {"--text",
        "evaluate all of this file: text, JSONL or a token data set; may be repeated. Default: the "
        "held-out part of the training text",
        &options.texts},
       {"--choices", "answer the questions of this JSONL file; may be repeated", &options.choices},
       {"--seq-len",
        "tokens of a window; 0: the trained length, or a Hugging Face folder's whole context "
        "(default 0)",
        nullptr, &seq_len},
       {"--max-windows", "windows to evaluate of each text; 0: all (default 0)", nullptr, &windows},
       {"--max-questions", "questions to answer of each file; 0: all (default 0)", nullptr,
        &questions},
       {"--json", "write the JSON objects to this file and print lines for a reader", nullptr,
        &json},
       {"--device", "auto, cpu or cuda (default auto)", nullptr, &device},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads},
       {"--compute-backend", "expert backend; default: the run's", nullptr, &backend}},
      /*takes_overrides=*/false,
      help_footer};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!checkpoint.empty(), "eval: --checkpoint is missing, want a run's folder");
  options.max_windows = to_integer("--max-windows", windows);
  options.max_questions = to_integer("--max-questions", questions);

  train::Progress progress = terminal_progress();
  PosixFileSystem files;
  const train::LoadModelOptions load{device, to_integer("--num-threads", threads), backend,
                                     to_integer("--seq-len", seq_len)};
  train::LoadedModel loaded = train::load_model(files, checkpoint, load, terminal_log(progress));
  catch_stop_signals();
  const std::vector<Object> records = Judge(files, loaded, options, progress).run();
  if (records.empty()) {
    progress.line("eval: stopped before anything was done");
    return 0;
  }
  std::string lines;
  for (const Object& record : records) lines += formats::write_json({record}) + "\n";
  if (json.empty()) {
    std::printf("%s", lines.c_str());
    return 0;
  }
  for (const Object& record : records) std::printf("%s\n", describe(record).c_str());
  write_file_atomically(files, json, lines);
  return 0;
}

}  // namespace amoeba::apps
