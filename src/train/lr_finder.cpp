#include "train/lr_finder.h"

#include <algorithm>
#include <cmath>

#include "amoeba/error.h"
#include "base/clock.h"
#include "base/text.h"
#include "train/plain/axis.h"
#include "train/plain/plain_text.h"
#include "train/setup.h"
#include "train/start_weights.h"
#include "train/train_step.h"

namespace amoeba::train {

namespace {

RunConfig without_ramp(RunConfig config) {
  config.training.batch_ramp_start = 0;
  config.training.batch_ramp_steps = 0;
  return config;
}

LrEnd sweep_rates(Setup& setup, const LrSweep& sweep, RunContext& context, LrCurve& curve) {
  const Clock clock;
  const int64_t line_interval = std::max<int64_t>(1, sweep.num_steps / 10);
  for (int64_t step = 0; step < sweep.num_steps; ++step) {
    const double lr = sweep_lr(sweep, step);
    const StepResult result =
        train_step(setup.model, setup.optimizer, setup.loader.next_step(), setup.config, lr);
    const LrEnd end = curve.add(lr, result.rejected ? kMissing : result.loss);
    if (end != LrEnd::kRunning) return end;
    const LrPoint& point = curve.points().back();
    const std::string text =
        cat("find-lr: ", step + 1, "/", sweep.num_steps, "  lr: ", short_number(lr),
            "  loss: ", fixed(point.loss, 4), "  smoothed: ", fixed(point.smoothed, 4));
    if ((step + 1) % line_interval == 0) {
      context.progress.line(text);
    } else {
      context.progress.live(text, clock.seconds());
    }
    if (context.stop_requested()) return LrEnd::kStopped;
  }
  return LrEnd::kCompleted;
}

}  // namespace

LrFinderResult find_lr(const RunConfig& run_config, const formats::Schema& schema,
                       const LrSweep& sweep, RunContext& context) {
  check_sweep(sweep);
  check_config(run_config);
  const RunConfig config = without_ramp(run_config);
  Setup setup(context.files, config, context.log);
  load_start_weights(context.files, config, setup.model, context.log);
  LrCurve curve;
  LrFinderResult result;
  result.report.end = sweep_rates(setup, sweep, context, curve);
  context.progress.clear();
  AMOEBA_CHECK_KIND(kNumeric, !curve.points().empty(), "find-lr: the loss or its gradient is not ",
                    "finite before any update, want finite numbers");
  result.report.sweep = sweep;
  result.report.points = curve.points();
  result.report.suggestion = suggest_lr(curve.points(), result.report.end);
  result.report.command = context.command;
  result.report.config = schema.to_value();
  const std::string& folder = config.run.folder;
  result.json = folder + "/lr_finder.json";
  result.page = folder + "/lr_finder.html";
  context.files.create_directories(folder);
  write_file_atomically(context.files, result.json,
                        formats::write_json(to_value(result.report), 2) + "\n");
  write_file_atomically(context.files, result.page, render_lr_page(result.report, folder));
  return result;
}

}  // namespace amoeba::train
