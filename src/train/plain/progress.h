// What a person sees while a run works: torchtitan's step line, and one live line on a terminal.
// Nothing here prints or reads a clock: text goes to the caller's sink, times come from the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "train/plain/metrics.h"

namespace amoeba::train {

// torchtitan's words in its order, then ours:
// "step: 100/520  loss: 1.9834  grad_norm: 0.4500  memory: 0.51GiB(2.10%)  tps: 18,374
//  tflops: 0.09  mfu: N/A  lr: 3.00e-03  experts max/mean: 1.21  eta: 1m15s" (one line).
// Memory is the peak. A missing number is N/A (loss and grad_norm: nan); missing eta and experts
// are left out.
std::string format_step(const StepRecord& record, int64_t num_steps, double eta_seconds);

// "step: 200/520  validation loss: 1.9012  bits_per_byte: 2.7428  windows: 839"
std::string format_validation(const ValidationRecord& record, int64_t num_steps);

// "evaluating 120/839 windows"; without a known total (0): "saving checkpoint" for an empty unit,
// "reading 12,000 lines" for another.
std::string format_work(std::string_view verb, int64_t done, int64_t total, std::string_view unit);

// Seconds left at the mean speed so far; kMissing before the first item is done.
double eta_seconds(int64_t done, int64_t total, double elapsed_seconds);

// `text` cut to `columns` terminal columns at a character; control characters become spaces, so
// that it stays one line.
std::string fit_to_columns(std::string_view text, int columns);

struct ProgressOptions {
  bool terminal = false;      // live lines are shown only there
  int columns = 80;           // the terminal's width
  double min_interval = 0.1;  // seconds between two repaints of the live line
};

// Interleaves lines that stay with one live line that is rewritten in place.
class Progress {
 public:
  using Sink = std::function<void(std::string_view)>;

  Progress(Sink sink, ProgressOptions options);

  void line(std::string_view text);                      // stays; takes the live line's place
  void live(std::string_view text, double now_seconds);  // dropped when piped or too soon
  void clear();                                          // erases the live line
  void set_columns(int columns) { options_.columns = columns; }

 private:
  Sink sink_;
  ProgressOptions options_;
  bool shown_ = false;
  double painted_at_ = kMissing;
};

}  // namespace amoeba::train
