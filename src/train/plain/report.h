// The page a run leaves behind: its numbers, curves, expert loads, sample and settings in one HTML
// file that can be mailed and opened anywhere. It loads nothing, and everything in it is escaped.
#pragma once

#include <string>

#include "train/plain/metrics.h"

namespace amoeba::train {

struct ReportOptions {
  std::string title = "Training run";
};

// Any history makes a page: what is missing is left out. The size is bounded whatever the run's
// length (lines and heat maps are downsampled).
std::string render_report(const RunHistory& history, const ReportOptions& options = {});

}  // namespace amoeba::train
