// Axes of charts: where they end, where their ticks are and what the ticks say. Numbers only.
#pragma once

#include <string>
#include <vector>

namespace amoeba::train {

// "950", "18.4k", "1.23M", "2.5G", "0.0005", "5e-5": at most `digits` significant digits.
std::string short_number(double value, int digits = 3);

struct Axis {
  double low = 0.0;
  double high = 1.0;
  bool logarithmic = false;
  std::vector<double> ticks;  // ascending, inside [low, high]
};

// Ticks at 1, 2 or 5 times a power of ten, at most `max_ticks` + 1 of them. The axis covers
// [low, high] and ends at ticks; an empty range is widened.
Axis linear_axis(double low, double high, int max_ticks);
// Ticks at powers of ten, every n-th for wide ranges; 0 < low < high / 10.
Axis log_axis(double low, double high, int max_ticks);
// [low, high] unchanged, ticks at whole numbers.
Axis step_axis(double low, double high, int max_ticks);

}  // namespace amoeba::train
