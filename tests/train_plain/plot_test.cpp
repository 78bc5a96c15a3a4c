#include "train/plain/plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "train_plain/markup.h"

namespace amoeba::train {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Plot, EscapedTextIsInert) {
  struct Case {
    std::string text, want;
  };
  const Case cases[] = {
      {"a < b && c > d", "a &lt; b &amp;&amp; c &gt; d"},
      {"\"quoted\" 'text'", "&quot;quoted&quot; &#39;text&#39;"},
      {"two\nlines\tand a tab", "two\nlines\tand a tab"},
      {std::string("nul\0byte", 8),
       "nul\xEF\xBF\xBD"
       "byte"},
      {"\x1b[2J", "\xEF\xBF\xBD[2J"},
      {"\xFF<", "\xEF\xBF\xBD&lt;"},
      {"\xC3\xA9", "\xC3\xA9"},
  };
  for (const Case& c : cases) EXPECT_EQ(escape_html(c.text), c.want);
}

std::vector<Point> ramp(int64_t size) {
  std::vector<Point> points;
  for (int64_t i = 0; i < size; ++i)
    points.push_back({static_cast<double>(i), static_cast<double>(i)});
  return points;
}

TEST(Plot, DownsamplingKeepsShortSeriesAndTheExtremesOfLongOnes) {
  EXPECT_EQ(downsample(ramp(800), 800).size(), 800u);
  std::vector<Point> points = ramp(100000);
  points[33333].y = 1e9;
  points[77777].y = -1e9;
  const std::vector<Point> few = downsample(points, 800);
  EXPECT_EQ(few.size(), 800u);
  bool high = false;
  bool low = false;
  for (std::size_t i = 0; i < few.size(); ++i) {
    EXPECT_TRUE(i == 0 || few[i - 1].x < few[i].x) << i;
    high |= few[i].x == 33333 && few[i].y == 1e9;
    low |= few[i].x == 77777 && few[i].y == -1e9;
  }
  EXPECT_TRUE(high && low);
}

TEST(Plot, DownsamplingKeepsLongGapsAndIgnoresShortOnes) {
  std::vector<Point> points = ramp(10000);
  for (std::size_t i = 4000; i < 6000; ++i) points[i].y = kNan;
  points[100].y = kNan;
  int64_t num_gaps = 0;
  for (const Point& point : downsample(points, 200)) {
    if (std::isfinite(point.y)) continue;
    ++num_gaps;
    EXPECT_GE(point.x, 4000);
    EXPECT_LT(point.x, 6000);
  }
  EXPECT_EQ(num_gaps, 20);
}

TEST(Plot, SmoothingIsAMeanThatKeepsGaps) {
  const std::vector<Point> points = {{0, 8}, {1, 1}, {2, 3}, {3, kNan}, {4, 5}, {5, 7}};
  const std::vector<Point> out = smooth(points, 1);
  const double want[] = {8, 4, 2, kNan, 6, 6};
  for (std::size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i].x, points[i].x);
    if (std::isnan(want[i])) {
      EXPECT_TRUE(std::isnan(out[i].y));
    } else {
      EXPECT_DOUBLE_EQ(out[i].y, want[i]) << i;
    }
  }
  EXPECT_TRUE(smooth({}, 3).empty());
}

LineChart chart_of(std::vector<Point> points) {
  LineChart chart;
  chart.title = "a <title>";
  chart.x_high = 100;
  chart.series = {{"training", "loss", "main", std::move(points)}};
  return chart;
}

TEST(Plot, ALineIsOnePathWithGapsAndDots) {
  const std::string svg = render_line_chart(
      chart_of({{0, 1}, {10, 2}, {20, kNan}, {30, 3}, {40, kNan}, {50, 1}, {60, 2}}));
  EXPECT_EQ(test::markup_error(svg), "");
  const std::string line = test::attribute_after(svg, "class=\"line main\"", "d");
  EXPECT_EQ(std::count(line.begin(), line.end(), 'M'), 2) << line;
  EXPECT_EQ(std::count(line.begin(), line.end(), 'L'), 2) << line;
  const std::string lone = test::attribute_after(svg, "class=\"line main lone\"", "d");
  EXPECT_EQ(std::count(lone.begin(), lone.end(), 'M'), 1) << lone;
  EXPECT_NE(svg.find("aria-label=\"a &lt;title&gt;\""), std::string::npos);
  EXPECT_EQ(test::attribute_after(svg, "class=\"line main\"", "data-name"), "training");
  EXPECT_NE(svg.find(">loss 2</text>"), std::string::npos) << "label at the line's end";
}

TEST(Plot, TheFrameMapsTheEndsOfTheData) {
  LineChart chart = chart_of({{0, 0}, {100, 4}});
  const std::string svg = render_line_chart(chart);
  const std::string frame = test::attribute_after(svg, "<svg", "data-frame");
  double left, right, top, bottom, x0, x1, y0, y1;
  int logarithmic;
  ASSERT_EQ(std::sscanf(frame.c_str(), "%lf %lf %lf %lf %lf %lf %lf %lf %d", &left, &right, &top,
                        &bottom, &x0, &x1, &y0, &y1, &logarithmic),
            9)
      << frame;
  EXPECT_EQ(x0, 0);
  EXPECT_EQ(x1, 100);
  EXPECT_EQ(y0, 0);
  EXPECT_EQ(y1, 4);
  EXPECT_EQ(logarithmic, 0);
  double ax, ay, bx, by;
  const std::string line = test::attribute_after(svg, "class=\"line main\"", "d");
  ASSERT_EQ(std::sscanf(line.c_str(), "M%lf %lfL%lf %lf", &ax, &ay, &bx, &by), 4) << line;
  EXPECT_EQ(ax, left);
  EXPECT_EQ(ay, bottom);
  EXPECT_EQ(bx, right);
  EXPECT_EQ(by, top);
}

TEST(Plot, ALogarithmicXAxisPutsEqualFactorsAtEqualDistances) {
  LineChart chart = chart_of({{1e-4, 0}, {1e-3, 1}, {1e-2, 4}});
  chart.x_low = 1e-4;
  chart.x_high = 1e-2;
  chart.log_x = true;
  chart.x_label = "rate <r>";
  const std::string svg = render_line_chart(chart);
  EXPECT_EQ(test::attribute_after(svg, "<svg", "data-log-x"), "1");
  EXPECT_EQ(test::attribute_after(svg, "<svg", "data-x"), "rate &lt;r&gt;");
  EXPECT_NE(svg.find(">0.0001</text>"), std::string::npos) << svg;
  EXPECT_NE(svg.find(">0.01</text>"), std::string::npos) << svg;
  double ax, ay, bx, by, cx, cy;
  const std::string line = test::attribute_after(svg, "class=\"line main\"", "d");
  ASSERT_EQ(std::sscanf(line.c_str(), "M%lf %lfL%lf %lfL%lf %lf", &ax, &ay, &bx, &by, &cx, &cy), 6)
      << line;
  EXPECT_NEAR(bx - ax, cx - bx, 0.02);
  EXPECT_GT(bx, ax);
  const std::string linear = render_line_chart(chart_of({{0, 0}, {100, 4}}));
  EXPECT_EQ(test::attribute_after(linear, "<svg", "data-x"), "step");
  EXPECT_EQ(linear.find("data-log-x"), std::string::npos);
}

TEST(Plot, OnlyWidePositiveRangesAreLogarithmic) {
  const auto is_log = [](LineChart chart) {
    return test::attribute_after(render_line_chart(chart), "<svg", "data-frame").ends_with(" 1");
  };
  EXPECT_TRUE(is_log(chart_of({{0, 0.5}, {100, 51}})));
  EXPECT_FALSE(is_log(chart_of({{0, 0.5}, {100, 49}})));
  EXPECT_FALSE(is_log(chart_of({{0, 0}, {100, 500}})));
  LineChart from_zero = chart_of({{0, 0.5}, {100, 51}});
  from_zero.from_zero = true;
  EXPECT_FALSE(is_log(from_zero));
}

TEST(Plot, AChartWithoutValuesSaysSo) {
  for (const std::vector<Point>& points : {std::vector<Point>{}, std::vector<Point>{{1, kNan}}}) {
    const std::string svg = render_line_chart(chart_of(points));
    EXPECT_EQ(test::markup_error(svg), "");
    EXPECT_NE(svg.find("no values"), std::string::npos);
  }
}

TEST(Plot, ExtremeValuesStillMakeAPicture) {
  for (const double value : {1e300, -1e300, 1e-300, 5e-324, 0.0}) {
    const std::string svg = render_line_chart(chart_of({{0, value}, {100, 1}}));
    EXPECT_EQ(test::markup_error(svg), "") << value;
    const std::string line = test::attribute_after(svg, "class=\"line main\"", "d");
    EXPECT_EQ(line.find("nan"), std::string::npos) << line;
    EXPECT_EQ(line.find("inf"), std::string::npos) << line;
  }
}

TEST(Plot, ManyMarksOnOnePixelAreOne) {
  LineChart chart = chart_of({{0, 1}, {100, 2}});
  for (int i = 0; i < 10000; ++i) chart.marked.push_back(50.0 + i * 1e-6);
  const std::string marks = test::attribute_after(render_line_chart(chart), "class=\"mark\"", "d");
  EXPECT_EQ(std::count(marks.begin(), marks.end(), 'M'), 1) << marks;
}

TEST(Plot, HeatLevelsAreCentredOnBalance) {
  struct Case {
    double relative;
    int want;
  };
  const Case cases[] = {{0, kHeatZero}, {1e-9, 0}, {0.4, 0},  {0.5, 1}, {0.8, 3}, {0.9, 4},
                        {1, 4},         {1.1, 4},  {1.25, 5}, {2, 7},   {2.5, 8}, {64, 8}};
  for (const Case& c : cases) EXPECT_EQ(heat_level(c.relative), c.want) << c.relative;
}

TEST(Plot, AHeatMapJoinsEqualNeighboursAndLeavesGapsOut) {
  HeatMap map;
  map.title = "load";
  map.x_high = 60;
  map.num_rows = 2;
  map.columns = {
      {0, 10, {1, 0}}, {10, 20, {1, 2}}, {20, 30, {}}, {30, 40, {1, 2}}, {50, 60, {1, 2}}};
  const std::string svg = render_heat_map(map);
  EXPECT_EQ(test::markup_error(svg), "");
  const std::string balanced = test::attribute_after(svg, "<path class=\"h4\"", "d");
  EXPECT_EQ(std::count(balanced.begin(), balanced.end(), 'M'), 3) << balanced;
  const std::string doubled = test::attribute_after(svg, "<path class=\"h7\"", "d");
  EXPECT_EQ(std::count(doubled.begin(), doubled.end(), 'M'), 3) << doubled;
  EXPECT_NE(doubled.find(" 1h"), std::string::npos) << "row 1: " << doubled;
  const std::string empty = test::attribute_after(svg, "<path class=\"h9\"", "d");
  EXPECT_EQ(std::count(empty.begin(), empty.end(), 'M'), 1) << empty;
}

TEST(Plot, TheLegendNamesEveryLevel) {
  const std::string legend = render_heat_legend();
  EXPECT_EQ(test::markup_error(legend), "");
  for (int level = 0; level <= kHeatZero; ++level) {
    EXPECT_NE(legend.find("class=\"h" + std::to_string(level) + "\""), std::string::npos) << level;
  }
  for (const char* text : {"no rows", "&le; 0.4<", ">0.5<", ">1<", ">2<", "&ge; 2.5<"}) {
    EXPECT_NE(legend.find(text), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace amoeba::train
