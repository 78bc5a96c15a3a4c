#include "train/plain/lr_curve.h"

#include <algorithm>
#include <cmath>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/axis.h"
#include "train/plain/page.h"
#include "train/plain/plain_text.h"
#include "train/plain/plot.h"

namespace amoeba::train {

namespace {

using formats::Array;
using formats::Object;
using formats::Value;

constexpr int64_t kMinSteps = 20;
constexpr double kDecay = 0.8;       // of the smoothing
constexpr double kDivergence = 4.0;  // times the lowest smoothed loss
constexpr double kClearFall = 0.05;  // of the first loss: less is within the noise of batches
constexpr size_t kTableRows = 20;

size_t index_of_lowest(const std::vector<LrPoint>& points) {
  const auto lowest =
      std::min_element(points.begin(), points.end(),
                       [](const auto& a, const auto& b) { return a.smoothed < b.smoothed; });
  return static_cast<size_t>(lowest - points.begin());
}

// The point before the lowest one at which the loss falls fastest over log lr.
double steepest_lr(const std::vector<LrPoint>& points, size_t lowest) {
  const size_t half = std::max<size_t>(1, points.size() / 20);
  double lr = kMissing, steepest = 0;
  for (size_t i = half; i + half < points.size() && i <= lowest; ++i) {
    const LrPoint &before = points[i - half], &after = points[i + half];
    const double slope = (after.smoothed - before.smoothed) / std::log(after.lr / before.lr);
    if (slope < steepest) {
      steepest = slope;
      lr = points[i].lr;
    }
  }
  return lr;
}

std::string doubt_of(const std::vector<LrPoint>& points, size_t lowest, LrEnd end) {
  const double first = points.front().smoothed, best = points[lowest].smoothed;
  if (points.size() < static_cast<size_t>(kMinSteps)) {
    return cat("only ", points.size(), " steps were done, want ", kMinSteps,
               ": too few for a slope; a smaller --min-lr leaves more before the loss explodes");
  }
  if (first - best < kClearFall * first) {
    return cat("the loss hardly fell, from ", fixed(first, 3), " to ", fixed(best, 3),
               ": no clear rate; try more --num-steps or another range");
  }
  if (lowest < points.size() / 10) {
    return "the loss is lowest at the very beginning: no clear rate; try a smaller --min-lr";
  }
  if (end != LrEnd::kDiverged && end != LrEnd::kNotFinite && lowest + 1 == points.size()) {
    return "the loss still falls at the last rate: the best one is higher; try a larger --max-lr";
  }
  return "";
}

std::string rate(double lr) { return short_number(lr, 3); }

std::vector<Point> curve_of(const std::vector<LrPoint>& points, double LrPoint::*field) {
  std::vector<Point> out;
  for (const LrPoint& point : points) out.push_back({point.lr, point.*field});
  return out;
}

std::string render_curve(const LrReport& report) {
  const std::vector<LrPoint>& points = report.points;
  LineChart chart;
  chart.title = "Loss over learning rate";
  chart.width = 1100;
  chart.height = 340;
  chart.x_label = "lr";
  chart.log_x = true;
  chart.x_low = report.sweep.min_lr;
  chart.x_high = std::max(10 * report.sweep.min_lr, points.back().lr);
  chart.series = {{"loss", "", "raw", curve_of(points, &LrPoint::loss)},
                  {"smoothed", "smoothed", "main", curve_of(points, &LrPoint::smoothed)}};
  for (const double lr : {report.suggestion.steepest, report.suggestion.tenth_of_best}) {
    if (std::isfinite(lr) && lr >= chart.x_low) chart.marked.push_back(lr);
  }
  return panel("Loss", "nats a token; suggested rates dashed", render_line_chart(chart));
}

}  // namespace

void check_sweep(const LrSweep& sweep) {
  AMOEBA_CHECK(sweep.min_lr > 0 && sweep.max_lr >= 10 * sweep.min_lr, "find-lr: --min-lr is ",
               sweep.min_lr, " and --max-lr is ", sweep.max_lr,
               ", want more than 0, and at least ten times as much");
  AMOEBA_CHECK(sweep.num_steps >= kMinSteps, "find-lr: --num-steps is ", sweep.num_steps,
               ", want at least ", kMinSteps);
}

double sweep_lr(const LrSweep& sweep, int64_t step) {
  const double share = static_cast<double>(step) / static_cast<double>(sweep.num_steps - 1);
  return sweep.min_lr * std::pow(sweep.max_lr / sweep.min_lr, share);
}

std::string_view describe(LrEnd end) {
  switch (end) {
    case LrEnd::kRunning:
      return "running";
    case LrEnd::kCompleted:
      return "completed";
    case LrEnd::kDiverged:
      return "the smoothed loss rose above 4 times its lowest value";
    case LrEnd::kNotFinite:
      return "the loss or its gradient was not finite";
    case LrEnd::kStopped:
      return "stopped by a signal";
  }
  return "";
}

LrEnd LrCurve::add(double lr, double loss) {
  if (!std::isfinite(loss)) return LrEnd::kNotFinite;
  average_ = kDecay * average_ + (1 - kDecay) * loss;
  weight_ = kDecay * weight_ + (1 - kDecay);
  const double smoothed = average_ / weight_;
  points_.push_back({lr, loss, smoothed});
  lowest_ = points_.size() == 1 ? smoothed : std::min(lowest_, smoothed);
  return smoothed > kDivergence * lowest_ ? LrEnd::kDiverged : LrEnd::kRunning;
}

LrSuggestion suggest_lr(const std::vector<LrPoint>& points, LrEnd end) {
  LrSuggestion suggestion;
  if (points.empty()) {
    suggestion.doubt = "no step was done";
    return suggestion;
  }
  const size_t lowest = index_of_lowest(points);
  suggestion.steepest = steepest_lr(points, lowest);
  suggestion.tenth_of_best = points[lowest].lr / 10;
  suggestion.doubt = doubt_of(points, lowest, end);
  return suggestion;
}

Value to_value(const LrReport& report) {
  const auto number = [](double value) {
    return std::isfinite(value) ? Value{.data = value} : Value{};
  };
  Value points;
  Array& rows = points.data.emplace<Array>();
  for (const LrPoint& point : report.points) {
    rows.emplace_back().data =
        Object{{"lr", {point.lr}}, {"loss", {point.loss}}, {"smoothed", {point.smoothed}}};
  }
  return {Object{{"command", {report.command}},
                 {"min_lr", {report.sweep.min_lr}},
                 {"max_lr", {report.sweep.max_lr}},
                 {"num_steps", {report.sweep.num_steps}},
                 {"end", {std::string(describe(report.end))}},
                 {"steepest", number(report.suggestion.steepest)},
                 {"tenth_of_best", number(report.suggestion.tenth_of_best)},
                 {"doubt", {report.suggestion.doubt}},
                 {"points", points},
                 {"config", report.config}}};
}

std::string render_lr_page(const LrReport& report, std::string_view title) {
  const LrSuggestion& suggestion = report.suggestion;
  std::string body = "<section class=\"cards\">";
  body += card("Steepest descent", rate(suggestion.steepest), "loss falls fastest here");
  body += card("A tenth of the best", rate(suggestion.tenth_of_best), "lowest loss, divided by 10");
  body += "</section>";
  if (!suggestion.doubt.empty()) {
    body += panel("Doubt", "", cat("<p>", escape_html(suggestion.doubt), "</p>"));
  }
  if (!report.points.empty()) body += render_curve(report);
  body += panel("Command", "", cat("<pre>", escape_html(report.command), "</pre>"));
  return render_page(title,
                     cat("Learning-rate range test, ", report.points.size(), " of ",
                         report.sweep.num_steps, " steps: ", describe(report.end)),
                     body);
}

std::string format_lr_table(const std::vector<LrPoint>& points) {
  std::string table = "        lr      loss  smoothed\n";
  const size_t rows = std::min(kTableRows, points.size());
  const auto right = [](std::string text, size_t width) {
    return std::string(text.size() < width ? width - text.size() : 0, ' ') + text;
  };
  for (size_t row = 0; row < rows; ++row) {
    // The first and the last point are always there.
    const size_t index = rows == 1 ? 0 : row * (points.size() - 1) / (rows - 1);
    const LrPoint& point = points[index];
    table += cat(right(rate(point.lr), 10), right(fixed(point.loss, 4), 10),
                 right(fixed(point.smoothed, 4), 10), "\n");
  }
  return table;
}

std::string format_lr_suggestion(const LrSuggestion& suggestion) {
  std::string text;
  if (std::isfinite(suggestion.steepest)) {
    text += cat("steepest descent at lr ", rate(suggestion.steepest), "; ");
  }
  if (std::isfinite(suggestion.tenth_of_best)) {
    text += cat("a tenth of the lr of the lowest loss is ", rate(suggestion.tenth_of_best), "\n");
  }
  if (!suggestion.doubt.empty()) return text + "not clear: " + suggestion.doubt;
  return text + cat("suggestion, the lower of the two: --optimizer.lr ",
                    rate(std::fmin(suggestion.steepest, suggestion.tenth_of_best)));
}

}  // namespace amoeba::train
