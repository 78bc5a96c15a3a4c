#include "train/plain/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "amoeba/error.h"
#include "train/plain/axis.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {
namespace {

constexpr double kCharWidth = 6.6;  // of the 11 px labels, about
constexpr double kWide = 700.0;     // charts that narrow screens scroll instead of shrinking
constexpr double kLineHeight = 13.0;
constexpr int64_t kMaxPoints = 800;      // of one series
constexpr double kSmallestLog = 1e-300;  // powers of ten below lose their digits
constexpr double kLogRange = 100.0;      // values that span more go on a logarithmic axis

// Hundredths of a pixel are as fine as the hover text needs to read values back.
std::string coordinate(double value) {
  std::string text = fixed(value, 2);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text;
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool empty() const { return low > high; }
};

Range range_of(const std::vector<Series>& series) {
  Range range;
  for (const Series& line : series) {
    for (const Point& point : line.points) {
      if (!std::isfinite(point.y)) continue;
      range.low = std::min(range.low, point.y);
      range.high = std::max(range.high, point.y);
    }
  }
  return range;
}

// Where data lands inside the picture.
struct Frame {
  double left, right, top, bottom;
  Axis x, y;

  double at_x(double value) const { return left + share(x, value) * (right - left); }
  double at_y(double value) const { return bottom - share(y, value) * (bottom - top); }

  static double share(const Axis& axis, double value) {
    if (axis.logarithmic) return std::log(value / axis.low) / std::log(axis.high / axis.low);
    return (value - axis.low) / (axis.high - axis.low);
  }
};

std::string text_at(double x, double y, std::string_view anchor, std::string_view style,
                    std::string_view text) {
  return cat("<text x=\"", coordinate(x), "\" y=\"", coordinate(y), "\" text-anchor=\"", anchor,
             "\" class=\"", style, "\">", escape_html(text), "</text>");
}

std::string line_at(double x1, double y1, double x2, double y2, std::string_view style) {
  return cat("<path class=\"", style, "\" d=\"M", coordinate(x1), " ", coordinate(y1), "L",
             coordinate(x2), " ", coordinate(y2), "\"/>");
}

// With `hover`, what the page's script needs to read values back.
std::string open_svg(double width, double height, std::string_view title, const Frame* hover,
                     std::string_view x_label) {
  std::string frame;
  if (hover != nullptr) {
    frame = cat(" data-frame=\"", coordinate(hover->left), " ", coordinate(hover->right), " ",
                coordinate(hover->top), " ", coordinate(hover->bottom), " ", hover->x.low, " ",
                hover->x.high, " ", hover->y.low, " ", hover->y.high, " ",
                hover->y.logarithmic ? 1 : 0, "\" data-x=\"", escape_html(x_label), "\"",
                hover->x.logarithmic ? " data-log-x=\"1\"" : "");
  }
  return cat("<svg class=\"", width > kWide ? "chart wide" : "chart",
             "\" role=\"img\" aria-label=\"", escape_html(title), "\" viewBox=\"0 0 ",
             coordinate(width), " ", coordinate(height), "\"", frame, ">");
}

std::string x_ticks(const Frame& frame) {
  std::string out;
  for (const double tick : frame.x.ticks) {
    const double x = frame.at_x(tick);
    out += line_at(x, frame.bottom, x, frame.bottom + 4, "axis");
    out += text_at(x, frame.bottom + 16, "middle", "tick", short_number(tick, 6));
  }
  return out;
}

std::string y_grid(const Frame& frame) {
  std::string out;
  for (const double tick : frame.y.ticks) {
    const double y = frame.at_y(tick);
    out += line_at(frame.left, y, frame.right, y, "grid");
    out += text_at(frame.left - 7, y + 4, "end", "tick", short_number(tick, 6));
  }
  return out;
}

struct LinePaths {
  std::string joined;
  std::string lone;  // points between two gaps: lines of length zero, which round caps draw as dots
};

LinePaths line_paths(const Frame& frame, const std::vector<Point>& points) {
  LinePaths paths;
  bool pen_down = false;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (!std::isfinite(points[i].y)) {
      pen_down = false;
      continue;
    }
    const std::string place =
        cat(coordinate(frame.at_x(points[i].x)), " ", coordinate(frame.at_y(points[i].y)));
    const bool ends = i + 1 == points.size() || !std::isfinite(points[i + 1].y);
    if (!pen_down && ends) {
      paths.lone += cat("M", place, "h0");
    } else {
      paths.joined += cat(pen_down ? "L" : "M", place);
      pen_down = true;
    }
  }
  return paths;
}

std::string path_of(std::string_view style, std::string_view name, std::string_view data) {
  if (data.empty()) return "";
  return cat("<path class=\"line ", style, "\" data-name=\"", escape_html(name), "\" d=\"", data,
             "\"/>");
}

std::string render_series(const Frame& frame, const Series& series) {
  const std::vector<Point> points = downsample(series.points, kMaxPoints);
  if (series.style != "dots") {
    const LinePaths paths = line_paths(frame, points);
    return path_of(series.style, series.name, paths.joined) +
           path_of(cat(series.style, " lone"), series.name, paths.lone);
  }
  std::string out;
  for (const Point& point : points) {
    if (!std::isfinite(point.y)) continue;
    out += cat("<circle class=\"dot\" r=\"3.5\" cx=\"", coordinate(frame.at_x(point.x)), "\" cy=\"",
               coordinate(frame.at_y(point.y)), "\"><title>step ", point.x, ": ",
               short_number(point.y, 5), "</title></circle>");
  }
  return out;
}

struct EndLabel {
  double y;
  std::string style;
  std::string text;
};

// One label a named series at its last value.
std::vector<EndLabel> end_labels(const Frame& frame, const std::vector<Series>& series) {
  std::vector<EndLabel> labels;
  for (const Series& line : series) {
    if (line.label.empty()) continue;
    const auto last = std::find_if(line.points.rbegin(), line.points.rend(),
                                   [](const Point& point) { return std::isfinite(point.y); });
    if (last == line.points.rend()) continue;
    labels.push_back(
        {frame.at_y(last->y), line.style, cat(line.label, " ", short_number(last->y, 4))});
  }
  return labels;
}

std::string render_end_labels(const Frame& frame, std::vector<EndLabel> labels) {
  std::sort(labels.begin(), labels.end(),
            [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  double below = frame.top + (frame.bottom - frame.top);
  below -= kLineHeight * (static_cast<double>(labels.size()) - 1);  // the last one still fits
  double above = -std::numeric_limits<double>::infinity();
  std::string out;
  for (const EndLabel& label : labels) {
    const double y = std::max(std::min(label.y, below), above);
    out += text_at(frame.right + 8, y + 4, "start", cat("label ", label.style), label.text);
    above = y + kLineHeight;
    below += kLineHeight;
  }
  return out;
}

Axis y_axis(const LineChart& chart, Range range, int max_ticks) {
  if (range.empty()) return linear_axis(0.0, 1.0, max_ticks);
  if (!chart.from_zero && range.low >= kSmallestLog && range.high / range.low > kLogRange) {
    return log_axis(range.low, range.high, max_ticks);
  }
  return linear_axis(chart.from_zero ? std::min(0.0, range.low) : range.low, range.high, max_ticks);
}

std::string render_marks(const Frame& frame, const std::vector<double>& marked) {
  std::set<int64_t> pixels;  // many marks on one pixel are one
  for (const double x : marked) pixels.insert(std::llround(frame.at_x(x)));
  std::string path;
  for (const int64_t x : pixels)
    path += cat("M", x, " ", coordinate(frame.top), "V", coordinate(frame.bottom));
  return path.empty() ? "" : cat("<path class=\"mark\" d=\"", path, "\"/>");
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : replace_invalid_utf8(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '\t':
      case '\n':
        out += c;
        break;
      default: {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7F) {
          out += "\xEF\xBF\xBD";
        } else {
          out += c;
        }
      }
    }
  }
  return out;
}

std::vector<Point> downsample(const std::vector<Point>& points, int64_t max_points) {
  const auto size = static_cast<int64_t>(points.size());
  if (size <= max_points) return points;
  const int64_t num_buckets = std::max<int64_t>(1, max_points / 2);
  std::vector<Point> out;
  for (int64_t bucket = 0; bucket < num_buckets; ++bucket) {
    const auto begin = points.begin() + size * bucket / num_buckets;
    const auto end = points.begin() + size * (bucket + 1) / num_buckets;
    auto smallest = end;
    auto largest = end;
    for (auto point = begin; point != end; ++point) {
      if (!std::isfinite(point->y)) continue;
      if (smallest == end || point->y < smallest->y) smallest = point;
      if (largest == end || point->y > largest->y) largest = point;
    }
    if (smallest == end) {
      out.push_back({begin->x, std::numeric_limits<double>::quiet_NaN()});
      continue;
    }
    out.push_back(*std::min(smallest, largest));
    if (smallest != largest) out.push_back(*std::max(smallest, largest));
  }
  return out;
}

std::vector<Point> smooth(const std::vector<Point>& points, int64_t half_window) {
  const auto size = static_cast<int64_t>(points.size());
  std::vector<double> sum(points.size() + 1, 0.0);  // of the finite values before each point
  std::vector<int64_t> count(points.size() + 1, 0);
  for (std::size_t i = 0; i < points.size(); ++i) {
    const bool finite = std::isfinite(points[i].y);
    sum[i + 1] = sum[i] + (finite ? points[i].y : 0.0);
    count[i + 1] = count[i] + (finite ? 1 : 0);
  }
  std::vector<Point> out = points;
  for (int64_t i = 0; i < size; ++i) {
    Point& point = out[static_cast<std::size_t>(i)];
    if (!std::isfinite(point.y)) continue;
    const int64_t half = std::min(half_window, i);
    const auto begin = static_cast<std::size_t>(i - half);
    const auto end = static_cast<std::size_t>(std::min(size, i + half + 1));
    point.y = (sum[end] - sum[begin]) / static_cast<double>(count[end] - count[begin]);
  }
  return out;
}

std::string render_line_chart(const LineChart& chart) {
  const Range range = range_of(chart.series);
  const int max_x_ticks = static_cast<int>(chart.width / 70);
  Frame frame{.left = 0,
              .right = chart.width,
              .top = 10,
              .bottom = chart.height - 26,
              .x = chart.log_x ? log_axis(chart.x_low, chart.x_high, max_x_ticks)
                               : step_axis(chart.x_low, chart.x_high, max_x_ticks),
              .y = y_axis(chart, range, static_cast<int>(chart.height / 50))};
  std::size_t longest_tick = 3;
  for (const double tick : frame.y.ticks) {
    longest_tick = std::max(longest_tick, short_number(tick, 6).size());
  }
  frame.left = kCharWidth * static_cast<double>(longest_tick) + 12;
  const std::vector<EndLabel> labels = end_labels(frame, chart.series);
  std::size_t longest_label = chart.x_label.size() + 1;
  for (const EndLabel& label : labels) longest_label = std::max(longest_label, label.text.size());
  frame.right = chart.width - kCharWidth * static_cast<double>(longest_label) - 10;

  std::string out = open_svg(chart.width, chart.height, chart.title, &frame, chart.x_label);
  out += y_grid(frame) + x_ticks(frame);
  out += line_at(frame.left, frame.bottom, frame.right, frame.bottom, "axis");
  out += text_at(frame.right + 18, frame.bottom + 16, "start", "tick", chart.x_label);
  out += render_marks(frame, chart.marked);
  for (const Series& series : chart.series) out += render_series(frame, series);
  out += render_end_labels(frame, labels);
  if (range.empty()) {
    out +=
        text_at((frame.left + frame.right) / 2, chart.height / 2, "middle", "label", "no values");
  }
  return out + "</svg>";
}

int heat_level(double relative) {
  if (relative <= 0) return kHeatZero;
  const int middle = kNumHeatLevels / 2;
  const double level = std::round(3 * std::log2(relative)) + middle;
  return static_cast<int>(std::clamp(level, 0.0, double{kNumHeatLevels - 1}));
}

std::string render_heat_map(const HeatMap& map) {
  const Frame frame{.left = 30,
                    .right = map.width - 12,
                    .top = 4,
                    .bottom = map.height - 22,
                    .x = step_axis(map.x_low, map.x_high, static_cast<int>(map.width / 70)),
                    .y = {}};
  const double row_height =
      (frame.bottom - frame.top) / static_cast<double>(std::max<int64_t>(1, map.num_rows));
  std::string out = open_svg(map.width, map.height, map.title, nullptr, "");

  // One path a colour: a cell is a stroke one row wide, and equal neighbours are one stroke.
  std::array<std::string, kNumHeatLevels + 1> paths;
  for (int64_t row = 0; row < map.num_rows; ++row) {
    const auto index = static_cast<std::size_t>(row);
    for (std::size_t i = 0; i < map.columns.size();) {
      const HeatColumn& first = map.columns[i];
      if (first.values.size() <= index || !std::isfinite(first.values[index])) {
        ++i;
        continue;
      }
      const int level = heat_level(first.values[index]);
      double end = first.end;
      for (++i; i < map.columns.size(); ++i) {
        const HeatColumn& next = map.columns[i];
        if (next.values.size() <= index || next.begin != end) break;
        if (!std::isfinite(next.values[index]) || heat_level(next.values[index]) != level) break;
        end = next.end;
      }
      const int64_t from = std::llround(frame.at_x(first.begin));
      const int64_t to = std::max(from + 1, int64_t{std::llround(frame.at_x(end))});
      paths[static_cast<std::size_t>(level)] += cat("M", from, " ", row, "h", to - from);
    }
  }
  out += cat("<g class=\"heat\" transform=\"translate(0 ", coordinate(frame.top + row_height / 2),
             ") scale(1 ", fixed(row_height, 4), ")\">");
  for (std::size_t level = 0; level < paths.size(); ++level) {
    if (paths[level].empty()) continue;
    out += cat("<path class=\"h", level, "\" d=\"", paths[level], "\"/>");
  }
  out += "</g>" + x_ticks(frame);

  const Axis rows = step_axis(0.0, static_cast<double>(map.num_rows - 1),
                              static_cast<int>((frame.bottom - frame.top) / 18));
  for (const double row : rows.ticks) {
    if (row >= static_cast<double>(map.num_rows)) break;  // one row: the axis is widened
    out += text_at(frame.left - 6, frame.top + (row + 0.5) * row_height + 4, "end", "tick",
                   short_number(row, 6));
  }
  return out + "</svg>";
}

std::string render_heat_legend() {
  std::string out = "<ul class=\"legend\">";
  const auto item = [&](int level, const std::string& text) {
    out += cat("<li><i class=\"h", level, "\"></i>", text, "</li>");
  };
  item(kHeatZero, "no rows");
  for (int level = 0; level < kNumHeatLevels; ++level) {
    const double relative = std::exp2((level - kNumHeatLevels / 2) / 3.0);
    const char* bound = level == 0 ? "&le; " : level == kNumHeatLevels - 1 ? "&ge; " : "";
    item(level, cat(bound, short_number(relative, 2)));
  }
  return out + "</ul>";
}

}  // namespace amoeba::train
