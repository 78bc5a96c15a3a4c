#include "train/plain/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace amoeba::train {
namespace {

StepRecord ordinary_step() {
  StepRecord record;
  record.step = 100;
  record.loss = 1.98341;
  record.grad_norm = 0.45;
  record.lr = 3e-3;
  record.tokens_per_second = 18374.4;
  record.tflops = 0.0919;
  record.memory_peak_bytes = 547'608'330;
  record.memory_percent = 2.1;
  record.experts = {{.layer = 0, .load = {10, 10, 10, 10}}, {.layer = 1, .load = {30, 10, 0, 0}}};
  return record;
}

TEST(Progress, StepLine) {
  EXPECT_EQ(format_step(ordinary_step(), 520, 75.0),
            "step: 100/520  loss: 1.9834  grad_norm: 0.4500  memory: 0.51GiB(2.10%)  tps: 18,374  "
            "tflops: 0.09  mfu: N/A  lr: 3.00e-03  experts max/mean: 3.00  eta: 1m15s");
}

TEST(Progress, StepLineWithKnownPeak) {
  StepRecord record = ordinary_step();
  record.mfu = 41.256;
  EXPECT_NE(format_step(record, 520, 1.0).find("  mfu: 41.26%  "), std::string::npos);
}

TEST(Progress, StepLineOfARejectedStepWithoutAnyMeasurement) {
  StepRecord record;
  record.step = 7;
  record.rejected = true;
  record.grad_norm = std::numeric_limits<double>::infinity();
  EXPECT_EQ(format_step(record, 9, kMissing),
            "step: 7/9  loss: nan  grad_norm: inf  memory: 0.00GiB(N/A)  tps: N/A  tflops: N/A  "
            "mfu: N/A  lr: N/A  rejected: not finite");
}

TEST(Progress, ValidationLine) {
  const ValidationRecord record{
      .step = 200, .loss = 1.9012, .bits_per_byte = 2.74281, .windows = 1839};
  EXPECT_EQ(format_validation(record, 520),
            "step: 200/520  validation loss: 1.9012  bits_per_byte: 2.7428  windows: 1,839");
  EXPECT_EQ(format_validation({.step = 1}, 2),
            "step: 1/2  validation loss: nan  bits_per_byte: N/A  windows: 0");
}

TEST(Progress, WorkLines) {
  EXPECT_EQ(format_work("evaluating", 120, 839, "windows"), "evaluating 120/839 windows");
  EXPECT_EQ(format_work("evaluating", 12000, 83900, "windows"), "evaluating 12,000/83,900 windows");
  EXPECT_EQ(format_work("reading", 12000, 0, "lines"), "reading 12,000 lines");
  EXPECT_EQ(format_work("saving checkpoint", 0, 0, ""), "saving checkpoint");
}

TEST(Progress, SecondsLeftFollowTheMeanSpeed) {
  EXPECT_EQ(eta_seconds(100, 520, 25.0), 105.0);
  EXPECT_EQ(eta_seconds(520, 520, 25.0), 0.0);
  EXPECT_TRUE(std::isnan(eta_seconds(0, 520, 25.0)));
}

TEST(Progress, TextIsCutToTheColumnsAtACharacter) {
  struct Case {
    std::string text;
    int columns;
    std::string want;
  };
  const Case cases[] = {
      {"abcdef", 6, "abcdef"},
      {"abcdef", 5, "abcde"},
      {"abcdef", 0, ""},
      {"abcdef", -1, ""},
      {"a\nb\x1b[2Jc", 80, "a b [2Jc"},       // no second line, no escape sequence
      {"a\x7f\xC2\x9Bz", 80, "a  z"},         // nor the one-byte control sequence introducer
      {"\xC3\xA9t\xC3\xA9", 2, "\xC3\xA9t"},  // two bytes, one column
      {"\xE6\x97\xA5\xE6\x9C\xAC", 3, "\xE6\x97\xA5"},  // three bytes, two columns
      {"\xFFz", 1, ""},                                 // U+FFFD counts as wide
  };
  for (const Case& c : cases) EXPECT_EQ(fit_to_columns(c.text, c.columns), c.want) << c.text;
}

struct Screen {
  std::string text;
  Progress::Sink sink() {
    return [this](std::string_view part) { text += part; };
  }
};

TEST(Progress, OnATerminalTheLiveLineIsRewrittenAndGivesWayToLines) {
  Screen screen;
  Progress progress(screen.sink(), {.terminal = true, .columns = 8, .min_interval = 0.1});
  progress.live("step 1 of many", 0.0);
  EXPECT_EQ(screen.text, "\rstep 1 \x1b[K") << "one column stays free";
  screen.text.clear();
  progress.line("a line that is longer than the terminal");
  EXPECT_EQ(screen.text, "\r\x1b[Ka line that is longer than the terminal\n");
  screen.text.clear();
  progress.line("next");
  EXPECT_EQ(screen.text, "next\n") << "no live line to erase";
  screen.text.clear();
  progress.set_columns(20);
  progress.live("step 2 of many", 1.0);
  EXPECT_EQ(screen.text, "\rstep 2 of many\x1b[K");
  screen.text.clear();
  progress.clear();
  progress.clear();
  EXPECT_EQ(screen.text, "\r\x1b[K") << "erased once";
}

TEST(Progress, LiveLinesAreLimitedByTheGivenTime) {
  Screen screen;
  Progress progress(screen.sink(), {.terminal = true, .columns = 80, .min_interval = 0.1});
  progress.live("a", 10.0);
  progress.live("b", 10.05);  // too soon
  progress.live("c", 10.125);
  progress.live("d", 10.2);  // too soon after c
  progress.live("e", 3.0);   // the clock was set back
  EXPECT_EQ(screen.text, "\ra\x1b[K\rc\x1b[K\re\x1b[K");
}

TEST(Progress, PipedOutputHasPlainLinesOnly) {
  Screen screen;
  Progress progress(screen.sink(), {.terminal = false});
  progress.live("evaluating 1/2 windows", 0.0);
  progress.line("step: 1/2");
  progress.clear();
  EXPECT_EQ(screen.text, "step: 1/2\n");
}

}  // namespace
}  // namespace amoeba::train
