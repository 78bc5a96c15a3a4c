#include "train/lr_finder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "amoeba/error.h"
#include "support/errors.h"
#include "train/lab.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

using train::LrEnd;
using train::LrFinderResult;
using train::LrSweep;
using train::RunConfig;

LrFinderResult find(Lab& lab, const RunConfig& config, const LrSweep& sweep) {
  return lab.call(
      config, nullptr,
      [&](const RunConfig& checked, const formats::Schema& schema, train::RunContext& context) {
        return train::find_lr(checked, schema, sweep, context);
      });
}

TEST(LrFinder, SweepsSuggestsAndSavesNothingButTheCurve) {
  Lab lab;
  const LrFinderResult result = find(lab, small_config(), {1e-4, 1.0, 40});
  const train::LrReport& report = result.report;
  ASSERT_GE(report.points.size(), 20u);
  EXPECT_DOUBLE_EQ(report.points.front().lr, 1e-4);
  EXPECT_NEAR(report.points.front().loss, std::log(264.0), 0.6);
  EXPECT_EQ(report.suggestion.doubt, "");
  EXPECT_GT(report.suggestion.steepest, 3e-4);
  EXPECT_LT(report.suggestion.steepest, 0.3);
  EXPECT_EQ(lab.files.list("/run"), (std::vector<std::string>{"lr_finder.html", "lr_finder.json"}));
  const formats::Value json =
      formats::parse_json(lab.files.read("/run/lr_finder.json"), "lr_finder.json");
  EXPECT_EQ(json.array_at("points", "json").size(), report.points.size());
  EXPECT_EQ(json.at("config", "json").at("model", "json").integer_at("dim", "json"), 32);
  EXPECT_NE(lab.files.read("/run/lr_finder.html").find("<svg"), std::string::npos);
  EXPECT_NE(lab.painted.find("find-lr: 4/40  lr: "), std::string::npos) << lab.painted;
}

TEST(LrFinder, TakesTheStepsOfARun) {
  // A run whose rate is constant and the sweep's first one has the same first two losses.
  Lab swept, run;
  RunConfig config = small_config();
  config.training.steps = 2;
  config.optimizer.lr = 1e-4;
  config.lr_scheduler.warmup_steps = 0;
  config.lr_scheduler.decay_ratio = 0;
  run.run(config);
  const auto steps = train::read_metrics(run.files, "/run/metrics.jsonl").steps;
  config.training.batch_ramp_start = 4;  // is left out: the rate is for the full batch
  config.training.batch_ramp_steps = 100;
  const auto points = find(swept, config, {1e-4, 1.0, 30}).report.points;
  ASSERT_GE(points.size(), 2u);
  EXPECT_EQ(points[0].loss, steps[0].loss);
  EXPECT_EQ(points[1].loss, steps[1].loss);
}

TEST(LrFinder, EndsWhenTheLossIsNotFinite) {
  Lab lab;
  RunConfig config = small_config();
  config.training.max_norm = 0;
  const train::LrReport report = find(lab, config, {1e-2, 1e30, 60}).report;
  EXPECT_TRUE(report.end == LrEnd::kNotFinite || report.end == LrEnd::kDiverged);
  EXPECT_LT(report.points.size(), 60u);
  for (const train::LrPoint& point : report.points) EXPECT_TRUE(std::isfinite(point.smoothed));
}

TEST(LrFinder, AModelThatIsBrokenFromTheStartIsANumericError) {
  Lab lab;
  RunConfig config = small_config();
  config.model.embedding_init_std = 1e39;  // beyond float32
  const std::string message = error_message(ErrorKind::kNumeric, [&] {
    find(lab, config, {1e-4, 1.0, 30});
  });
  EXPECT_NE(message.find("not finite before any update"), std::string::npos) << message;
  EXPECT_FALSE(lab.files.exists("/run"));
}

TEST(LrFinder, AStopLeavesTheCurveSoFar) {
  Lab lab;
  lab.stop_after = 4;
  const train::LrReport report = find(lab, small_config(), {1e-4, 1.0, 40}).report;
  EXPECT_EQ(report.end, LrEnd::kStopped);
  EXPECT_EQ(report.points.size(), 5u);
  EXPECT_NE(report.suggestion.doubt.find("only 5 steps"), std::string::npos);
  EXPECT_TRUE(lab.files.exists("/run/lr_finder.json"));
}

TEST(LrFinder, RefusesBeforeItWorks) {
  Lab lab;
  error_message(ErrorKind::kUsage, [&] { find(lab, small_config(), {1e-2, 1e-2, 40}); });
  RunConfig config = small_config();
  config.moe.top_k = 9;
  error_message(ErrorKind::kUsage, [&] { find(lab, config, {1e-4, 1.0, 40}); });
  EXPECT_FALSE(lab.files.exists("/run"));
}

}  // namespace
}  // namespace amoeba::test
