#include "train/plain/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "amoeba/error.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "train_plain/synthetic_history.h"

namespace amoeba::train {
namespace {

using formats::write_json;

StepRecord full_step(int64_t step) {
  StepRecord record;
  record.step = step;
  record.loss = 1.5;
  record.grad_norm = 0.25;
  record.lr = 0.003;
  record.tokens_per_second = 18000;
  record.step_seconds = 0.5;
  record.data_seconds = 0.125;
  record.tflops = 0.75;
  record.mfu = 41.5;
  record.memory_bytes = 1;
  record.memory_reserved_bytes = 2;
  record.memory_peak_bytes = 3;
  record.memory_percent = 2.5;
  record.tokens_seen = 4096 * step;
  record.rejected = true;
  record.aux_loss = 0.0625;
  record.z_loss = 4.25;
  record.dropped_rows = 4;
  record.padding_ratio = 0.375;
  record.expert_calls = 8;
  record.host_syncs = 5;
  record.saved_bytes = 6;
  record.experts = {{.layer = 1, .load = {3, 0, 1}}};
  return record;
}

std::string step_line(int64_t step) { return write_json(to_value(full_step(step))) + "\n"; }
std::string validation_line(int64_t step) {
  return write_json(to_value(ValidationRecord{step, 2.0, 3.0, 7})) + "\n";
}
std::string checkpoint_line(int64_t step, const char* error = "") {
  return write_json(to_value(CheckpointRecord{.step = step,
                                              .folder = *error == 0 ? "run/step" : "",
                                              .error = error,
                                              .weights_only = true,
                                              .bytes = 5,
                                              .seconds = 1.5,
                                              .wait_seconds = 0.25})) +
         "\n";
}
std::string start_line(int64_t step) {
  return write_json(to_value(StartRecord{.step = step,
                                         .version = "0.1.0",
                                         .command = "amoeba train",
                                         .config = {.data = formats::Object{}},
                                         .backend = "fused",
                                         .backend_reason = "first",
                                         .device = "cpu",
                                         .machine = {}})) +
         "\n";
}
std::string end_line(int64_t step) {
  return write_json(to_value(EndRecord{.step = step,
                                       .reason = "completed",
                                       .prompt = "p",
                                       .sample = "s",
                                       .checkpoint = "c"})) +
         "\n";
}

std::string guard_line(int64_t step, const char* action, int64_t to_step) {
  return write_json(to_value(GuardRecord{step, action, "why", to_step})) + "\n";
}

std::vector<int64_t> steps_of(const auto& records) {
  std::vector<int64_t> steps;
  for (const auto& record : records) steps.push_back(record.step);
  return steps;
}

using Steps = std::vector<int64_t>;

TEST(Metrics, StepLineIsTheDocumentedOne) {
  EXPECT_EQ(
      step_line(2),
      R"({"kind":"step","step":2,"loss":1.5,"grad_norm":0.25,"lr":0.003,)"
      R"("tokens_per_second":18000.0,"step_seconds":0.5,"data_seconds":0.125,"tflops":0.75,)"
      R"("mfu":41.5,"memory_bytes":1,"memory_reserved_bytes":2,"memory_peak_bytes":3,)"
      R"("memory_percent":2.5,"tokens_seen":8192,"rejected":true,"aux_loss":0.0625,)"
      R"("z_loss":4.25,"dropped_rows":4,"padding_ratio":0.375,"expert_calls":8,"host_syncs":5,"saved_bytes":6,)"
      R"("experts":[{"layer":1,"load":[3,0,1],"max_over_mean":2.25,"empty":1}]})"
      "\n");
}

TEST(Metrics, NumbersThatAreNotFiniteAreNullAndComeBackMissing) {
  StepRecord record = full_step(1);
  record.loss = std::numeric_limits<double>::quiet_NaN();
  record.grad_norm = std::numeric_limits<double>::infinity();
  record.mfu = kMissing;
  record.experts = {{.layer = 0, .load = {0, 0}}};
  const std::string line = write_json(to_value(record));
  for (const char* part : {"\"loss\":null", "\"grad_norm\":null", "\"mfu\":null",
                           "\"max_over_mean\":null,\"empty\":2"}) {
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
  }
  const RunHistory history = parse_metrics(line + "\n", "m");
  EXPECT_TRUE(std::isnan(history.steps.at(0).loss));
  EXPECT_TRUE(std::isnan(history.steps.at(0).grad_norm));
  EXPECT_TRUE(std::isnan(history.steps.at(0).mfu));
}

TEST(Metrics, ALineWithoutTheZLossIsRead) {
  std::string line = step_line(1);
  const std::string key = "\"z_loss\":4.25,";
  EXPECT_EQ(parse_metrics(line, "m").steps.at(0).z_loss, 4.25);
  line.erase(line.find(key), key.size());
  EXPECT_TRUE(std::isnan(parse_metrics(line, "m").steps.at(0).z_loss));
}

TEST(Metrics, CheckpointLines) {
  const RunHistory history =
      parse_metrics(start_line(0) + checkpoint_line(2) + checkpoint_line(4, "disk full") +
                        checkpoint_line(6) + start_line(4),
                    "metrics.jsonl");
  ASSERT_EQ(history.checkpoints.size(), 2u);  // that of step 6 is superseded
  const CheckpointRecord& saved = history.checkpoints[0];
  EXPECT_EQ(saved.step, 2);
  EXPECT_EQ(saved.folder, "run/step");
  EXPECT_EQ(saved.error, "");
  EXPECT_TRUE(saved.weights_only);
  EXPECT_EQ(saved.bytes, 5);
  EXPECT_EQ(saved.seconds, 1.5);
  EXPECT_EQ(saved.wait_seconds, 0.25);
  EXPECT_EQ(history.checkpoints[1].folder, "");
  EXPECT_EQ(history.checkpoints[1].error, "disk full");
}

TEST(Metrics, BalanceOfExperts) {
  EXPECT_EQ(max_over_mean({.layer = 0, .load = {5, 5, 5, 5}}), 1.0);
  EXPECT_EQ(max_over_mean({.layer = 0, .load = {0, 20, 0, 0}}), 4.0);
  EXPECT_TRUE(std::isnan(max_over_mean({.layer = 0, .load = {}})));
  EXPECT_EQ(num_empty({.layer = 0, .load = {0, 20, 0, 0}}), 3);
  StepRecord record;
  EXPECT_TRUE(std::isnan(worst_max_over_mean(record)));
  record.experts = {{0, {0, 0}}, {1, {1, 1}}, {2, {3, 1}}};
  EXPECT_EQ(worst_max_over_mean(record), 1.5);
}

// Reading back what was written gives the same lines again: no field is lost or swapped.
TEST(Metrics, WrittenFileReadsBackTheSame) {
  const RunHistory history = test::synthetic_history({.num_steps = 120});
  test::MemoryFileSystem files;
  MetricsWriter writer(files, "metrics.jsonl");
  for (const auto& record : history.starts) writer.write(record);
  for (const auto& record : history.steps) writer.write(record);
  for (const auto& record : history.validations) writer.write(record);
  for (const auto& record : history.ends) writer.write(record);
  writer.write(full_step(121));  // distinct values in all fields
  writer.close();
  const RunHistory read = read_metrics(files, "metrics.jsonl");
  MetricsWriter second(files, "again.jsonl");
  for (const auto& record : read.starts) second.write(record);
  for (std::size_t i = 0; i + 1 < read.steps.size(); ++i) second.write(read.steps[i]);
  for (const auto& record : read.validations) second.write(record);
  for (const auto& record : read.ends) second.write(record);
  second.write(read.steps.back());
  second.close();
  EXPECT_EQ(read.steps.size(), history.steps.size() + 1);
  EXPECT_EQ(files.read("again.jsonl"), files.read("metrics.jsonl"));
}

TEST(Metrics, TextOfAnyBytesMakesAReadableLine) {
  EndRecord end;
  end.sample = "quote \" back\\slash \n\xFF\xE2\x82";
  const RunHistory history = parse_metrics(write_json(to_value(end)) + "\n", "m");
  EXPECT_EQ(history.ends.at(0).sample,
            "quote \" back\\slash \n\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Metrics, ATornLastLineIsIgnoredWhereverItWasCut) {
  const std::string text = start_line(0) + step_line(1);
  const std::string torn = step_line(2);
  for (std::size_t size = 0; size < torn.size(); ++size) {
    const RunHistory history = parse_metrics(text + torn.substr(0, size), "m");
    EXPECT_EQ(steps_of(history.steps), (Steps{1})) << size;
  }
  EXPECT_EQ(steps_of(parse_metrics(text + torn, "m").steps), (Steps{1, 2}));
}

TEST(Metrics, TheWriterCutsATornLineOffBeforeItAppends) {
  for (const std::string& whole : {std::string(), start_line(0), start_line(0) + step_line(1)}) {
    test::MemoryFileSystem files;
    files.create("metrics.jsonl")->write(whole + step_line(2).substr(0, 30));
    MetricsWriter writer(files, "metrics.jsonl");
    writer.write(full_step(3));
    writer.close();
    EXPECT_EQ(files.read("metrics.jsonl"), whole + step_line(3));
  }
}

TEST(Metrics, TheWriterCutsBlocksOffThatNeverReachedTheDisk) {
  test::MemoryFileSystem files;
  const std::string hole(16, '\0');
  for (const std::string& rest :
       {hole, hole + "\n" + step_line(3), step_line(3).substr(0, 9) + hole + step_line(4)}) {
    files.create("metrics.jsonl")->write(start_line(0) + step_line(2) + rest);
    MetricsWriter(files, "metrics.jsonl").write(ValidationRecord{.step = 5});
    const RunHistory history = read_metrics(files, "metrics.jsonl");
    EXPECT_EQ(history.steps.size(), 1u);
    EXPECT_EQ(history.validations.size(), 1u);
  }
  files.create("metrics.jsonl")->write(hole + start_line(0));
  MetricsWriter(files, "metrics.jsonl").close();
  EXPECT_EQ(files.read("metrics.jsonl"), "");
}

TEST(Metrics, AResumeSupersedesWhatCameAfterItsStep) {
  struct Case {
    std::string text;
    Steps steps, validations;
    std::size_t num_starts, num_ends;
  };
  const std::string first = start_line(0) + step_line(10) + step_line(20) + validation_line(20) +
                            step_line(30) + validation_line(30);
  const Case cases[] = {
      {"", {}, {}, 0, 0},
      {first, {10, 20, 30}, {20, 30}, 1, 0},
      {first + start_line(20), {10, 20}, {20}, 2, 0},  // the resumed session has not got to 30 yet
      {first + start_line(20) + step_line(30) + end_line(30), {10, 20, 30}, {20}, 2, 1},
      {first + end_line(30) + start_line(30) + step_line(40), {10, 20, 30, 40}, {20, 30}, 2, 1},
      {first + end_line(30) + start_line(0) + step_line(10), {10}, {}, 1, 0},  // a new run
      {first + step_line(20), {10, 20, 30}, {20, 30}, 1, 0},
  };
  for (const Case& c : cases) {
    const RunHistory history = parse_metrics(c.text, "m");
    EXPECT_EQ(steps_of(history.steps), c.steps) << c.text;
    EXPECT_EQ(steps_of(history.validations), c.validations) << c.text;
    EXPECT_EQ(history.starts.size(), c.num_starts) << c.text;
    EXPECT_EQ(history.ends.size(), c.num_ends) << c.text;
  }
}

TEST(Metrics, ARollBackSupersedesTheStepsItTakesBack) {
  const std::string before = start_line(0) + step_line(1) + step_line(2) +
                             guard_line(2, "skip", 2) + step_line(3) +
                             guard_line(3, "rollback", 1) + step_line(2);
  RunHistory history = parse_metrics(before, "m");
  EXPECT_EQ(steps_of(history.steps), (Steps{1, 2}));
  EXPECT_EQ(steps_of(history.guard), (Steps{2, 3}));
  EXPECT_EQ(history.guard[1].action, "rollback");
  EXPECT_EQ(history.guard[1].to_step, 1);
  EXPECT_EQ(history.guard[1].reason, "why");
  // A session from a step after the roll-back's keeps what was before it, though of later steps.
  history = parse_metrics(before + guard_line(4, "skip", 4) + start_line(2), "m");
  EXPECT_EQ(steps_of(history.guard), (Steps{2, 3}));
  // One from before it does the roll-back again.
  history = parse_metrics(
      start_line(0) + step_line(1) + guard_line(3, "rollback", 2) + start_line(1), "m");
  EXPECT_TRUE(history.guard.empty());
}

TEST(Metrics, TheLastRecordOfAStepWins) {
  StepRecord later = full_step(10);
  later.loss = 9.0;
  const RunHistory history = parse_metrics(
      step_line(10) + step_line(20) + write_json(to_value(later)) + "\n", "metrics.jsonl");
  EXPECT_EQ(steps_of(history.steps), (Steps{10, 20}));
  EXPECT_EQ(history.steps.front().loss, 9.0);
}

std::string with(std::string line, const std::string& from, const std::string& to) {
  const std::size_t place = line.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return line.replace(place, from.size(), to);
}

TEST(Metrics, AnythingElseIsRefusedWithItsFileAndLine) {
  struct Case {
    std::string line, part;
  };
  const Case cases[] = {
      {"\n", "run/metrics.jsonl:2:1"},  // column of the parser follows the line
      {"not json\n", "run/metrics.jsonl:2:"},
      {"[1]\n", "run/metrics.jsonl:2: the line is array, want object"},
      {"{}\n", "run/metrics.jsonl:2: "},
      {"{\"kind\":\"stop\"}\n",
       "run/metrics.jsonl:2: kind is \"stop\", want start, step, validation, checkpoint, guard or "
       "end"},
      {guard_line(2, "jump", 2), "run/metrics.jsonl:2: action is \"jump\", want skip or rollback"},
      {with(step_line(2), "\"step\":2", "\"step\":-2"),
       "run/metrics.jsonl:2: step is -2, want >= 0"},
      {with(step_line(2), "1.5", "\"x\""), "run/metrics.jsonl:2: "},
      {with(step_line(2), "\"lr\":0.003,", ""), "run/metrics.jsonl:2: "},
      {with(step_line(2), "[3,0,1]", "[3,true]"),
       "run/metrics.jsonl:2: load holds boolean, want integer"},
      {with(step_line(2), "[3,0,1]", "[3,-1]"), "run/metrics.jsonl:2: load holds -1, want >= 0"},
      {with(start_line(2), "\"config\":{}", "\"config\":3"),
       "run/metrics.jsonl:2: config is integer, want object"},
      {with(start_line(2), "\"machine\":{}", "\"machine\":[]"),
       "run/metrics.jsonl:2: machine is array, want object"},
  };
  for (const Case& c : cases) {
    const std::string message = test::error_message(ErrorKind::kData, [&] {
      parse_metrics(step_line(1) + c.line + step_line(3), "run/metrics.jsonl");
    });
    EXPECT_TRUE(message.starts_with(c.part)) << message;
  }
}

// One line is one write: whatever a full disk does, earlier lines stay whole and the error is seen.
TEST(Metrics, AFailedWriteIsReportedAndLosesOnlyItsLine) {
  test::MemoryFileSystem files;
  test::FaultyFileSystem faulty(files);
  MetricsWriter writer(faulty, "metrics.jsonl");
  writer.write(full_step(1));
  EXPECT_EQ(faulty.num_operations(test::Operation::kWrite), 1);
  faulty.short_write_at(0, "disk full");
  const std::string message =
      test::error_message(ErrorKind::kData, [&] { writer.write(full_step(2)); });
  EXPECT_NE(message.find("disk full"), std::string::npos) << message;
  EXPECT_EQ(steps_of(read_metrics(files, "metrics.jsonl").steps), (Steps{1}));
}

TEST(Metrics, CloseMakesTheLinesDurable) {
  test::MemoryFileSystem files;
  files.create("metrics.jsonl")->close();
  files.sync_directory(".");
  MetricsWriter writer(files, "metrics.jsonl");
  writer.write(full_step(1));
  writer.close();
  files.reboot(test::Survival::kSyncedOnly);
  EXPECT_EQ(steps_of(read_metrics(files, "metrics.jsonl").steps), (Steps{1}));
}

}  // namespace
}  // namespace amoeba::train
