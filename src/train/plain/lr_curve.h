// The learning-rate range test: the loss while the rate grows exponentially (Smith, "Cyclical
// Learning Rates for Training Neural Networks", 2017, section 3.3), smoothed, and what to make of
// it. Numbers only: train/lr_finder.h runs the steps.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/value.h"
#include "train/plain/metrics.h"

namespace amoeba::train {

struct LrSweep {
  double min_lr = 1e-5;
  double max_lr = 1.0;
  int64_t num_steps = 100;
};

// Error(kUsage) unless 0 < 10 * min_lr <= max_lr and there are at least 20 steps.
void check_sweep(const LrSweep& sweep);

// min_lr * (max_lr / min_lr)^(step / (num_steps - 1)), step from 0.
double sweep_lr(const LrSweep& sweep, int64_t step);

struct LrPoint {
  double lr = 0;
  double loss = 0;      // before the update with lr
  double smoothed = 0;  // see LrCurve
};

// Why a sweep ended.
enum class LrEnd { kRunning, kCompleted, kDiverged, kNotFinite, kStopped };
std::string_view describe(LrEnd end);

// smoothed_t = avg_t / (1 - 0.8^t), avg_t = 0.8 avg_{t-1} + 0.2 loss_t: the bias correction of Adam
// (Kingma and Ba, 2015), so that the curve begins at the first loss. It lags by about 4 steps.
class LrCurve {
 public:
  // kDiverged when the smoothed loss is above 4 times its lowest value so far, kNotFinite for a
  // loss that is not finite, which is not kept; else kRunning.
  LrEnd add(double lr, double loss);

  const std::vector<LrPoint>& points() const { return points_; }

 private:
  std::vector<LrPoint> points_;
  double average_ = 0;
  double weight_ = 0;  // 1 - 0.8^t
  double lowest_ = 0;
};

struct LrSuggestion {
  double steepest = kMissing;       // where the smoothed loss falls fastest over log lr
  double tenth_of_best = kMissing;  // a tenth of where it is lowest
  std::string doubt;  // why not to trust them, one sentence; empty: the curve is clear
};

// `points` of one sweep that ended with `end`. The slope is taken over a tenth of the points.
LrSuggestion suggest_lr(const std::vector<LrPoint>& points, LrEnd end);

// What lr_finder.json and lr_finder.html say.
struct LrReport {
  LrSweep sweep;
  LrEnd end = LrEnd::kRunning;
  std::vector<LrPoint> points;
  LrSuggestion suggestion;
  std::string command;
  formats::Value config;  // the resolved configuration
};

formats::Value to_value(const LrReport& report);
std::string render_lr_page(const LrReport& report, std::string_view title);

// The curve in about 20 rows of text, and a sentence with the suggestion.
std::string format_lr_table(const std::vector<LrPoint>& points);
std::string format_lr_suggestion(const LrSuggestion& suggestion);

}  // namespace amoeba::train
