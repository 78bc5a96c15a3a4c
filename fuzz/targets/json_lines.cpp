// Files of one JSON object a line: texts to train on, and the metrics of a run.
#include "amoeba/error.h"
#include "formats/text_documents.h"
#include "formats/value.h"
#include "fuzz/target.h"
#include "train/plain/metrics.h"
#include "train/plain/report.h"

namespace amoeba::fuzz {

namespace {

std::vector<std::string> texts_of(std::string_view data) {
  InputFiles files({{"/f.jsonl", data}});
  const formats::TextDocuments documents(files, "/f.jsonl", "");
  std::vector<std::string> texts;
  for (int64_t i = 0; i < documents.size(); ++i) texts.push_back(documents.text(i));
  return texts;
}

bool run_texts(std::string_view data) {
  std::vector<std::string> texts;
  try {
    texts = texts_of(data);
  } catch (const Error&) {
    return false;
  }
  std::string again;
  for (const std::string& text : texts) {
    again += formats::write_json({formats::Object{{"text", {text}}}}) + "\n";
  }
  expect_same(texts_of(again) == texts, "a text");
  return true;
}

void read_texts(std::string_view data) {
  InputFiles files({{"/f.jsonl", data}});
  const formats::TextDocuments documents(files, "/f.jsonl", "");
  for (int64_t i = 0; i < documents.size(); ++i) documents.text(i);
}

// Roll-backs before the steps, which they would take away again.
std::string lines_of(const train::RunHistory& history) {
  std::string text;
  const auto add = [&](const auto& records) {
    for (const auto& record : records) text += formats::write_json(train::to_value(record)) + "\n";
  };
  add(history.starts);
  add(history.guard);
  add(history.steps);
  add(history.validations);
  add(history.ends);
  return text;
}

bool run_metrics(std::string_view data) {
  train::RunHistory history;
  try {
    history = train::parse_metrics(data, "f");
  } catch (const Error&) {
    return false;
  }
  const std::string text = lines_of(history);
  expect_same(lines_of(train::parse_metrics(text, "again")) == text, "a record");
  train::render_report(history, {.title = "fuzz"});
  return true;
}

void read_metrics(std::string_view data) { train::parse_metrics(data, "f"); }

std::vector<std::string> text_seeds() {
  return {"{\"text\": \"one \\u00e9\\n\"}\n\n{\"id\": 3, \"text\": \"two\", \"x\": [1, {}]}\r\n",
          R"({"text":""})"};
}

std::vector<std::string> metrics_seeds() {
  train::RunHistory history;
  history.starts.push_back({0,
                            "0.1",
                            "amoeba train",
                            {formats::Object{{"model", {formats::Object{}}}}},
                            "fused",
                            "why",
                            "cpu",
                            {{"threads", {int64_t{2}}}},
                            10,
                            5,
                            60});
  for (int64_t step = 1; step <= 2; ++step) {
    train::StepRecord record;
    record.step = step;
    record.loss = 2.5;
    record.experts = {{0, {1, 3}}};
    history.steps.push_back(record);
  }
  history.validations.push_back({2, 2.25, 1.5, 4});
  history.guard.push_back({1, "skip", "loss 9 above its limit 3", 1});
  history.ends.push_back({2, "completed", "a", "ab", "run/checkpoints/step-00000002", 1.5});
  return {lines_of(history)};
}

}  // namespace

extern const Target kJsonLines{"json_lines", run_texts, read_texts, text_seeds};
extern const Target kMetrics{"metrics", run_metrics, read_metrics, metrics_seeds};

}  // namespace amoeba::fuzz
