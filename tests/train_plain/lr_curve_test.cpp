#include "train/plain/lr_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/rng.h"
#include "support/errors.h"
#include "train_plain/markup.h"

namespace amoeba::train {
namespace {

constexpr LrSweep kSweep{1e-5, 1.0, 100};

struct Swept {
  std::vector<LrPoint> points;
  LrEnd end;
};

// A sweep over `loss`, a function of log10(lr).
Swept sweep_over(const std::function<double(double)>& loss, const LrSweep& sweep = kSweep) {
  LrCurve curve;
  for (int64_t step = 0; step < sweep.num_steps; ++step) {
    const double lr = sweep_lr(sweep, step);
    const LrEnd end = curve.add(lr, loss(std::log10(lr)));
    if (end != LrEnd::kRunning) return {curve.points(), end};
  }
  return {curve.points(), LrEnd::kCompleted};
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

TEST(SweepLr, RunsThroughEqualFactors) {
  EXPECT_DOUBLE_EQ(sweep_lr(kSweep, 0), 1e-5);
  EXPECT_NEAR(sweep_lr(kSweep, 99), 1.0, 1e-12);
  for (int64_t step = 1; step < 100; ++step) {
    EXPECT_NEAR(sweep_lr(kSweep, step) / sweep_lr(kSweep, step - 1), std::pow(1e5, 1.0 / 99), 1e-9);
  }
}

TEST(CheckSweep, RefusesRangesWithoutACurve) {
  const auto message = [](LrSweep sweep) {
    return test::error_message(ErrorKind::kUsage, [&] { check_sweep(sweep); });
  };
  check_sweep({1e-4, 1e-3, 20});
  EXPECT_EQ(message({0, 1, 100}),
            "find-lr: --min-lr is 0 and --max-lr is 1, want more than 0, and at least ten times as "
            "much");
  EXPECT_NE(message({1e-3, 5e-3, 100}).find("--max-lr is 0.005"), std::string::npos);
  EXPECT_EQ(message({1e-5, 1, 19}), "find-lr: --num-steps is 19, want at least 20");
}

TEST(LrCurve, SmoothsWithBiasCorrection) {
  LrCurve curve;
  const std::vector<double> losses = {5.0, 4.0, 7.0, 3.0, 3.5};
  for (size_t t = 0; t < losses.size(); ++t) {
    EXPECT_EQ(curve.add(0.1, losses[t]), LrEnd::kRunning);
    // The same as weights 0.8^age over their sum.
    double sum = 0, weights = 0;
    for (size_t i = 0; i <= t; ++i) {
      const double weight = std::pow(0.8, static_cast<double>(t - i));
      sum += weight * losses[i];
      weights += weight;
    }
    EXPECT_NEAR(curve.points()[t].smoothed, sum / weights, 1e-12) << t;
    EXPECT_EQ(curve.points()[t].loss, losses[t]);
  }
}

TEST(LrCurve, EndsAboveFourTimesTheLowest) {
  LrCurve curve;
  EXPECT_EQ(curve.add(1, 2.0), LrEnd::kRunning);
  int64_t steps = 0;
  LrEnd end = LrEnd::kRunning;
  for (; end == LrEnd::kRunning; ++steps) end = curve.add(1, 10.0);
  EXPECT_EQ(end, LrEnd::kDiverged);
  EXPECT_GT(curve.points().back().smoothed, 8.0);
  EXPECT_LE(curve.points()[curve.points().size() - 2].smoothed, 8.0);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    LrCurve other;
    EXPECT_EQ(other.add(1, 2.0), LrEnd::kRunning);
    EXPECT_EQ(other.add(1, bad), LrEnd::kNotFinite);
    EXPECT_EQ(other.points().size(), 1u);
  }
}

// Falls from 6 to 2 around 10^-3, rises without bound from 10^-1 on.
double clear_loss(double x) { return 6 - 4 * logistic(4 * (x + 3)) + std::exp(8 * (x + 0.8)); }

TEST(SuggestLr, FindsTheSteepestDescentOfAClearCurve) {
  const Swept swept = sweep_over(clear_loss);
  EXPECT_EQ(swept.end, LrEnd::kDiverged);
  EXPECT_LT(swept.points.size(), 100u);
  const LrSuggestion suggestion = suggest_lr(swept.points, swept.end);
  EXPECT_EQ(suggestion.doubt, "");
  // The smoothing lags by 4 steps of 1/20 decade.
  EXPECT_NEAR(std::log10(suggestion.steepest), -3 + 0.2, 0.15);
  EXPECT_GT(suggestion.tenth_of_best, 1e-3);
  EXPECT_LT(suggestion.tenth_of_best, 2e-2);
}

TEST(SuggestLr, NoiseOfBatchesDoesNotMoveItFar) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    uint64_t draw = 0;
    const Swept swept = sweep_over(
        [&](double x) { return clear_loss(x) + 0.2 * (random_uniform(seed, 1, draw++) - 0.5); });
    const LrSuggestion suggestion = suggest_lr(swept.points, swept.end);
    EXPECT_EQ(suggestion.doubt, "") << seed;
    EXPECT_NEAR(std::log10(suggestion.steepest), -3 + 0.2, 0.3) << seed;
  }
}

TEST(SuggestLr, SaysWhenNothingIsClear) {
  const struct {
    const char* name;
    std::function<double(double)> loss;
    const char* doubt;
  } cases[] = {
      {"flat", [](double) { return 5.0; }, "the loss hardly fell, from 5.000 to 5.000"},
      {"falls to the end", [](double x) { return 6 - 4 * logistic(2 * x); },
       "the loss still falls at the last rate"},
      {"explodes at once", [](double x) { return 5 * std::exp(3 * (x + 5)); }, "only "},
      {"rises", [](double x) { return 5 + 0.5 * (x + 5); }, "the loss hardly fell"},
      {"lowest at the start",
       [](double x) { return x < -4.9 ? 5 + 20 * (-4.9 - x) : 5.0 + x + 4.9; },
       "the loss is lowest at the very beginning"},
  };
  for (const auto& c : cases) {
    const Swept swept = sweep_over(c.loss);
    const LrSuggestion suggestion = suggest_lr(swept.points, swept.end);
    EXPECT_EQ(suggestion.doubt.substr(0, std::string(c.doubt).size()), c.doubt) << c.name;
    EXPECT_NE(format_lr_suggestion(suggestion).find("not clear: "), std::string::npos) << c.name;
  }
  EXPECT_EQ(suggest_lr({}, LrEnd::kStopped).doubt, "no step was done");
  EXPECT_TRUE(std::isnan(suggest_lr({}, LrEnd::kStopped).steepest));
}

TEST(SuggestLr, ANotFiniteEndIsNoReasonToRaiseTheRange) {
  std::vector<LrPoint> points;
  for (int64_t step = 0; step < 60; ++step) {
    const double loss = 5.0 - 0.05 * static_cast<double>(step);
    points.push_back({sweep_lr(kSweep, step), loss, loss});
  }
  EXPECT_EQ(suggest_lr(points, LrEnd::kNotFinite).doubt, "");
  EXPECT_NE(suggest_lr(points, LrEnd::kStopped).doubt, "");
}

LrReport some_report() {
  LrReport report;
  const Swept swept = sweep_over(clear_loss);
  report.sweep = kSweep;
  report.end = swept.end;
  report.points = swept.points;
  report.suggestion = suggest_lr(swept.points, swept.end);
  report.command = "amoeba find-lr --data.path '<b>'";
  report.config.data = formats::Object{{"model", {formats::Object{{"dim", {int64_t{32}}}}}}};
  return report;
}

TEST(LrReport, JsonHoldsTheCurveAndTheSuggestion) {
  const LrReport report = some_report();
  const formats::Value value =
      formats::parse_json(formats::write_json(to_value(report), 2), "lr_finder.json");
  EXPECT_EQ(value.number_at("steepest", "j"), report.suggestion.steepest);
  EXPECT_EQ(value.number_at("tenth_of_best", "j"), report.suggestion.tenth_of_best);
  EXPECT_EQ(value.string_at("end", "j"), describe(LrEnd::kDiverged));
  EXPECT_EQ(value.at("config", "j").at("model", "j").integer_at("dim", "j"), 32);
  const formats::Array& points = value.array_at("points", "j");
  ASSERT_EQ(points.size(), report.points.size());
  EXPECT_EQ(points[3].number_at("smoothed", "j"), report.points[3].smoothed);
  LrReport empty;
  EXPECT_NE(formats::write_json(to_value(empty)).find("\"steepest\":null"), std::string::npos);
}

TEST(LrReport, ThePageShowsTheCurve) {
  const std::string page = render_lr_page(some_report(), "runs/rates");
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_EQ(test::attribute_after(page, "<svg", "data-log-x"), "1");
  EXPECT_NE(page.find("class=\"mark\""), std::string::npos);
  EXPECT_NE(page.find("&lt;b&gt;"), std::string::npos);
  LrReport doubtful = some_report();
  doubtful.suggestion.doubt = "a < b";
  doubtful.points.resize(1);
  EXPECT_NE(render_lr_page(doubtful, "r").find("<p>a &lt; b</p>"), std::string::npos);
  EXPECT_EQ(test::markup_error(render_lr_page(LrReport(), "r")), "");
}

TEST(LrTable, ShowsTheFirstAndTheLastPointInTwentyRows) {
  const LrReport report = some_report();
  const std::string table = format_lr_table(report.points);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 21);
  EXPECT_NE(table.find("      1e-5"), std::string::npos) << table;
  EXPECT_EQ(format_lr_table({{1e-3, 2.0, 2.5}}),
            "        lr      loss  smoothed\n     0.001    2.0000    2.5000\n");
}

}  // namespace
}  // namespace amoeba::train
