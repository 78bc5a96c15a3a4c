// Charts as inline SVG text: line charts with direct labels and heat maps. Colours are CSS classes
// of the page (report_assets.h), so that one picture serves a light and a dark screen.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace amoeba::train {

// Valid UTF-8 with & < > " ' as entities and control characters other than tab and line feed
// replaced by U+FFFD: safe in element content and in quoted attributes.
std::string escape_html(std::string_view text);

struct Point {
  double x = 0.0;
  double y = 0.0;  // not finite: a gap in the line
};

// At most about `max_points` points that keep the extremes: each bucket gives its smallest and its
// largest value in order, a bucket without values a gap.
std::vector<Point> downsample(const std::vector<Point>& points, int64_t max_points);

// Mean over the `half_window` points on each side and the point itself. At the start the window
// narrows on both sides, so that the curve does not leave steep data; at the end only on its right.
// Gaps stay gaps.
std::vector<Point> smooth(const std::vector<Point>& points, int64_t half_window);

struct Series {
  std::string name;   // in the hover text
  std::string label;  // drawn at the line's end with the last value; empty: none
  std::string style;  // CSS class: "raw", "main", "dots"
  std::vector<Point> points;
};

struct LineChart {
  std::string title;  // for screen readers
  double width = 520;
  double height = 220;
  double x_low = 0.0;
  double x_high = 1.0;
  std::string x_label = "step";
  bool log_x = false;          // 0 < x_low < x_high / 10
  bool from_zero = false;      // the y axis starts at zero
  std::vector<Series> series;  // later ones are drawn on top
  std::vector<double> marked;  // x of vertical marks
};

// Unless from_zero, the y axis is logarithmic when all values are positive and they span more than
// a factor 100.
std::string render_line_chart(const LineChart& chart);

// One column of a heat map: values over (begin, end] on the x axis.
struct HeatColumn {
  double begin = 0.0;
  double end = 0.0;
  std::vector<double> values;  // [rows] relative to the mean; empty: a gap
};

struct HeatMap {
  std::string title;
  double width = 520;
  double height = 160;
  double x_low = 0.0;
  double x_high = 1.0;
  int64_t num_rows = 0;
  std::vector<HeatColumn> columns;
};

// Colour classes of relative values: kNumHeatLevels steps of a factor 2^(1/3), the middle one
// around 1, and one of its own for 0.
inline constexpr int kNumHeatLevels = 9;
inline constexpr int kHeatZero = kNumHeatLevels;
int heat_level(double relative);

std::string render_heat_map(const HeatMap& map);
std::string render_heat_legend();

}  // namespace amoeba::train
