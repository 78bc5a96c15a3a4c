#include "train/plain/report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/axis.h"
#include "train/plain/page.h"
#include "train/plain/plain_text.h"
#include "train/plain/plot.h"

namespace amoeba::train {
namespace {

constexpr int64_t kMaxHeatCells = 200'000;  // of all layers together: below 2 MB of paths
constexpr int64_t kMaxHeatColumns = 160;
constexpr int64_t kMinHeatColumns = 16;
// Widths of charts in pixels, as the page shows them on a wide screen.
constexpr double kFullPanel = 1100;
constexpr double kHalfPanel = 520;
constexpr double kNarrowPanel = 250;
constexpr std::size_t kFewLayers = 6;  // that get half panels
constexpr int64_t kSmoothing = 50;  // the loss is smoothed over a 50th of the records on each side

using Getter = std::function<double(const StepRecord&)>;

std::vector<Point> points_of(const std::vector<StepRecord>& steps, const Getter& get) {
  std::vector<Point> points;
  points.reserve(steps.size());
  for (const StepRecord& record : steps) {
    points.push_back({static_cast<double>(record.step), get(record)});
  }
  return points;
}

double median_of(const std::vector<StepRecord>& steps, const Getter& get) {
  std::vector<double> values;
  for (const StepRecord& record : steps) {
    if (std::isfinite(get(record))) values.push_back(get(record));
  }
  if (values.empty()) return kMissing;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int64_t largest_of(const std::vector<StepRecord>& steps, int64_t StepRecord::*field) {
  int64_t largest = 0;
  for (const StepRecord& record : steps) largest = std::max(largest, record.*field);
  return largest;
}

std::string plural(int64_t count, std::string_view noun) {
  return cat(format_count(count), " ", noun, count == 1 ? "" : "s");
}

// The steps that the charts show: from before the first record to the last.
struct Span {
  double low = 0.0;
  double high = 1.0;
};

Span span_of(const RunHistory& history) {
  const auto& steps = history.steps;
  if (steps.empty()) {
    if (history.validations.empty()) return {};
    return {0.0, static_cast<double>(history.validations.back().step)};
  }
  const int64_t first = steps.front().step;
  const int64_t interval = steps.size() > 1 ? steps[1].step - first : 1;
  int64_t last = steps.back().step;
  if (!history.validations.empty()) last = std::max(last, history.validations.back().step);
  return {static_cast<double>(std::max<int64_t>(0, first - interval)), static_cast<double>(last)};
}

// ---------------------------------------------------------------------------- cards

std::string validation_card(const std::vector<ValidationRecord>& validations) {
  if (validations.empty()) return "";
  const ValidationRecord& last = validations.back();
  const auto best =
      std::min_element(validations.begin(), validations.end(), [](const auto& a, const auto& b) {
        return std::isfinite(a.bits_per_byte) &&
               (!std::isfinite(b.bits_per_byte) || a.bits_per_byte < b.bits_per_byte);
      });
  if (!std::isfinite(best->bits_per_byte)) {
    return card("Validation loss", fixed(last.loss, 4), cat("at step ", last.step));
  }
  const std::string note = best->step == last.step ? cat("best, at step ", format_count(last.step))
                                                   : cat("best ", fixed(best->bits_per_byte, 4),
                                                         " at step ", format_count(best->step));
  return card("Validation bits per byte", fixed(last.bits_per_byte, 4), note);
}

std::string loss_card(const std::vector<StepRecord>& steps) {
  const auto last = std::find_if(steps.rbegin(), steps.rend(), [](const StepRecord& record) {
    return std::isfinite(record.loss);
  });
  if (last == steps.rend()) return "";
  return card("Training loss", fixed(last->loss, 4), cat("at step ", format_count(last->step)));
}

std::string speed_card(const std::vector<StepRecord>& steps) {
  const double speed = median_of(steps, [](const auto& r) { return r.tokens_per_second; });
  if (!std::isfinite(speed)) return "";
  const double tflops = median_of(steps, [](const auto& r) { return r.tflops; });
  const double mfu = median_of(steps, [](const auto& r) { return r.mfu; });
  std::string note = "median";
  if (std::isfinite(tflops)) note += cat(", ", short_number(tflops), " TFLOP/s");
  if (std::isfinite(mfu)) note += cat(", MFU ", fixed(mfu, 1), " %");
  return card("Tokens per second", format_count(std::llround(speed)), note);
}

std::string time_card(const RunHistory& history) {
  double seconds = 0.0;
  for (const EndRecord& end : history.ends) {
    if (std::isfinite(end.seconds)) seconds += end.seconds;
  }
  const auto num_sessions = static_cast<int64_t>(history.starts.size());
  const auto num_open = num_sessions - static_cast<int64_t>(history.ends.size());
  if (history.ends.empty()) return card("Time", "not known", "no session has ended in order");
  std::string note = plural(num_sessions, "session");
  if (num_open > 0) note += cat(", ", num_open, " of them not ended in order and not counted");
  return card("Time", format_duration(seconds), note);
}

std::string memory_card(const std::vector<StepRecord>& steps) {
  const int64_t peak = largest_of(steps, &StepRecord::memory_peak_bytes);
  if (peak == 0) return "";
  double percent = kMissing;
  for (const StepRecord& record : steps) percent = std::fmax(percent, record.memory_percent);
  return card("Peak memory", format_bytes(peak),
              std::isfinite(percent) ? cat(fixed(percent, 1), " % of the device") : "");
}

std::string cards(const RunHistory& history) {
  std::string out = "<section class=\"cards\">";
  out += validation_card(history.validations) + loss_card(history.steps);
  out += speed_card(history.steps) + time_card(history);
  if (!history.starts.empty()) {
    const StartRecord& start = history.starts.back();
    const double active_share = 100.0 * static_cast<double>(start.params_active) /
                                static_cast<double>(std::max<int64_t>(1, start.params_total));
    out += card("Parameters", short_number(static_cast<double>(start.params_total)),
                cat(short_number(static_cast<double>(start.params_active)), " active (",
                    fixed(active_share, 0), " %)"));
    if (!history.steps.empty()) {
      const auto tokens = static_cast<double>(history.steps.back().tokens_seen);
      out += card("Tokens seen", short_number(tokens),
                  cat(short_number(static_cast<double>(start.flops_per_token)), " FLOP a token"));
    }
    out += memory_card(history.steps);
    out += card("Expert backend", start.backend, start.backend_reason);
    out += card("Device", start.device, cat("Amoeba ", start.version));
  }
  return out + "</section>";
}

// ---------------------------------------------------------------------------- charts

LineChart chart_of(std::string_view title, Span span) {
  LineChart chart;
  chart.title = title;
  chart.x_low = span.low;
  chart.x_high = span.high;
  return chart;
}

bool has_values(const std::vector<Point>& points) {
  return std::any_of(points.begin(), points.end(),
                     [](const Point& point) { return std::isfinite(point.y); });
}

// The records as they are, and smoothed on top; `label` names the smoothed line.
std::vector<Series> raw_and_smoothed(const std::vector<StepRecord>& steps, const Getter& get,
                                     const std::string& label) {
  const std::vector<Point> raw = points_of(steps, get);
  const int64_t half_window = 1 + static_cast<int64_t>(raw.size()) / kSmoothing;
  return {{"logged", "", "raw", raw}, {"smoothed", label, "main", smooth(raw, half_window)}};
}

std::vector<double> rejected_steps(const std::vector<StepRecord>& steps) {
  std::vector<double> rejected;
  for (const StepRecord& record : steps) {
    if (record.rejected) rejected.push_back(static_cast<double>(record.step));
  }
  return rejected;
}

std::string loss_panel(const RunHistory& history, Span span) {
  LineChart chart = chart_of("Loss over steps", span);
  chart.width = kFullPanel;
  chart.height = 340;
  chart.series = raw_and_smoothed(
      history.steps, [](const auto& r) { return r.loss; }, "training");
  std::vector<Point> validation;
  for (const ValidationRecord& record : history.validations) {
    validation.push_back({static_cast<double>(record.step), record.loss});
  }
  if (has_values(validation))
    chart.series.push_back({"validation", "validation", "dots", validation});
  chart.marked = rejected_steps(history.steps);
  std::string note = "nats a token; the strong line is smoothed";
  if (!chart.marked.empty()) {
    const auto num_rejected = static_cast<int64_t>(chart.marked.size());
    note += cat("; ", plural(num_rejected, "rejected step"), " (dashed)");
  }
  return panel("Loss", note, render_line_chart(chart));
}

std::string learning_rate_panel(const RunHistory& history, Span span) {
  LineChart chart = chart_of("Learning rate over steps", span);
  chart.from_zero = true;
  chart.series = {
      {"learning rate", "", "main", points_of(history.steps, [](const auto& r) { return r.lr; })}};
  return panel("Learning rate", "", render_line_chart(chart));
}

std::string grad_norm_panel(const RunHistory& history, Span span) {
  LineChart chart = chart_of("Gradient norm over steps", span);
  chart.series = raw_and_smoothed(
      history.steps, [](const auto& r) { return r.grad_norm; }, "");
  chart.marked = rejected_steps(history.steps);
  const std::string_view note =
      chart.marked.empty() ? "before clipping" : "before clipping; rejected steps dashed";
  return panel("Gradient norm", note, render_line_chart(chart));
}

std::string speed_panel(const RunHistory& history, Span span) {
  LineChart chart = chart_of("Tokens per second over steps", span);
  chart.from_zero = true;
  chart.series = raw_and_smoothed(
      history.steps, [](const auto& r) { return r.tokens_per_second; }, "");
  return panel("Tokens per second", "", render_line_chart(chart));
}

std::string data_panel(const RunHistory& history, Span span) {
  LineChart chart = chart_of("Share of a step spent waiting for data", span);
  chart.from_zero = true;
  const auto share = [](const auto& r) { return 100.0 * r.data_seconds / r.step_seconds; };
  chart.series = raw_and_smoothed(history.steps, share, "");
  return panel("Waiting for data", "per cent of the step", render_line_chart(chart));
}

std::string curves(const RunHistory& history, Span span) {
  if (history.steps.empty() && history.validations.empty()) return "";
  std::string out = "<h2>Training</h2>" + loss_panel(history, span);
  if (history.steps.empty()) return out;
  out += "<div class=\"pair\">";
  out += learning_rate_panel(history, span) + grad_norm_panel(history, span);
  out += speed_panel(history, span) + data_panel(history, span);
  return out + "</div>";
}

std::string guard(const RunHistory& history) {
  std::string rows;
  for (const GuardRecord& record : history.guard) {
    const std::string what =
        record.action == "rollback"
            ? cat("back to step ", format_count(record.to_step), ": ", record.reason)
            : cat("rejected: ", record.reason);
    rows += row(cat("step ", format_count(record.step)), what);
  }
  return table_panel("Guard: rejected steps and roll-backs", rows);
}

// ---------------------------------------------------------------------------- experts

using Records = std::vector<const StepRecord*>;

// Loads of one layer summed over consecutive records and divided by their mean.
std::vector<double> relative_load(const Records& records, std::size_t begin, std::size_t end,
                                  int64_t layer) {
  std::vector<double> sum;
  double total = 0.0;
  for (std::size_t i = begin; i < end; ++i) {
    for (const ExpertLoad& experts : records[i]->experts) {
      if (experts.layer != layer) continue;
      sum.resize(std::max(sum.size(), experts.load.size()));
      for (std::size_t e = 0; e < experts.load.size(); ++e) {
        sum[e] += static_cast<double>(experts.load[e]);
        total += static_cast<double>(experts.load[e]);
      }
    }
  }
  if (total == 0.0) return {};
  for (double& rows : sum) rows *= static_cast<double>(sum.size()) / total;
  return sum;
}

std::string layer_panel(const Records& records, Span span, int64_t layer, int64_t num_experts,
                        int64_t max_columns, double width) {
  HeatMap map;
  map.title = cat("Expert load of layer ", layer);
  map.width = width;
  map.height = 26 + std::clamp(static_cast<double>(num_experts) * 15, 60.0,
                               width > kNarrowPanel ? 260.0 : 160.0);
  map.x_low = span.low;
  map.x_high = span.high;
  map.num_rows = num_experts;
  const std::size_t num_columns =
      std::min(records.size(), static_cast<std::size_t>(std::max<int64_t>(1, max_columns)));
  double previous_end = span.low;
  for (std::size_t column = 0; column < num_columns; ++column) {
    const std::size_t begin = records.size() * column / num_columns;
    const std::size_t end = records.size() * (column + 1) / num_columns;
    const auto last_step = static_cast<double>(records[end - 1]->step);
    map.columns.push_back({previous_end, last_step, relative_load(records, begin, end, layer)});
    previous_end = last_step;
  }
  const std::vector<double>& last = map.columns.back().values;
  const std::string note =
      last.empty() ? "" : cat("max/mean ", fixed(*std::max_element(last.begin(), last.end()), 2));
  return panel(cat("Layer ", layer), note, render_heat_map(map));
}

std::string imbalance_panel(const RunHistory& history, Span span, std::size_t num_layers) {
  LineChart chart = chart_of("Largest load over mean load", span);
  chart.width = kFullPanel;
  const auto mean = [](const StepRecord& record) {
    double sum = 0.0;
    int64_t count = 0;
    for (const ExpertLoad& experts : record.experts) {
      const double value = max_over_mean(experts);
      if (!std::isfinite(value)) continue;
      sum += value;
      ++count;
    }
    return count == 0 ? kMissing : sum / static_cast<double>(count);
  };
  chart.series = {{"worst layer", num_layers == 1 ? "" : "worst layer", "main",
                   points_of(history.steps, worst_max_over_mean)}};
  if (num_layers > 1) {
    chart.series.insert(chart.series.begin(), {"mean of layers", "mean of layers", "raw",
                                               points_of(history.steps, mean)});
  }
  return panel("Largest load over mean load", "1 is balanced", render_line_chart(chart));
}

std::string experts(const RunHistory& history, Span span) {
  Records records;
  std::map<int64_t, int64_t> layers;  // number -> experts
  for (const StepRecord& record : history.steps) {
    if (!record.experts.empty()) records.push_back(&record);
    for (const ExpertLoad& layer : record.experts) {
      int64_t& num_experts = layers[layer.layer];
      num_experts = std::max(num_experts, static_cast<int64_t>(layer.load.size()));
    }
  }
  int64_t num_rows = 0;
  for (const auto& [layer, num_experts] : layers) num_rows += num_experts;
  if (num_rows == 0) return "";
  const int64_t max_columns =
      std::clamp(kMaxHeatCells / num_rows, kMinHeatColumns, kMaxHeatColumns);
  const double width = layers.size() == 1            ? kFullPanel
                       : layers.size() <= kFewLayers ? kHalfPanel
                                                     : kNarrowPanel;

  std::string out =
      "<h2>Expert load</h2><p class=\"note\">Rows routed to each expert relative to the "
      "mean of its layer; 1 is balanced. Experts from top to bottom, steps from left "
      "to right.</p>";
  out += render_heat_legend() + imbalance_panel(history, span, layers.size());
  out += cat("<div class=\"layers", width > kNarrowPanel ? "" : " many", "\">");
  for (const auto& [layer, num_experts] : layers) {
    out += layer_panel(records, span, layer, num_experts, max_columns, width);
  }
  return out + "</div>";
}

// ---------------------------------------------------------------------------- text

std::string sample(const RunHistory& history) {
  if (history.ends.empty() || history.ends.back().sample.empty()) return "";
  const EndRecord& end = history.ends.back();
  std::string_view text = end.sample;
  std::string prompt;
  if (text.starts_with(end.prompt)) {
    prompt = cat("<b>", escape_html(end.prompt), "</b>");
    text.remove_prefix(end.prompt.size());
  }
  return cat("<h2>Generated sample</h2><div class=\"panel\"><pre>", prompt, escape_html(text),
             "</pre></div>");
}

std::string text_of(const formats::Value& value) {
  if (const std::string* text = value.get_if<std::string>()) return *text;
  return formats::write_json(value);
}

std::string configuration(const formats::Value& config) {
  const formats::Object* sections = config.get_if<formats::Object>();
  if (sections == nullptr || sections->empty()) return "";
  std::string tables;
  std::string top_level;
  for (const auto& [name, section] : *sections) {
    const formats::Object* keys = section.get_if<formats::Object>();
    if (keys == nullptr) {
      top_level += row(name, text_of(section));
      continue;
    }
    std::string rows;
    for (const auto& [key, value] : *keys) rows += row(key, text_of(value));
    tables += table_panel(name, rows);
  }
  return cat("<h2>Configuration</h2><div class=\"tables\">", table_panel("run", top_level), tables,
             "</div>");
}

std::string facts(const RunHistory& history) {
  const std::vector<StepRecord>& steps = history.steps;
  if (steps.empty()) return "";
  int64_t dropped = 0;
  for (const StepRecord& record : steps) dropped += record.dropped_rows;
  const double padding = median_of(steps, [](const auto& r) { return r.padding_ratio; });
  const double aux_loss = steps.back().aux_loss, z_loss = steps.back().z_loss;
  std::string rows = row("logged steps", format_count(static_cast<int64_t>(steps.size())));
  if (std::isfinite(aux_loss)) rows += row("auxiliary loss, last", short_number(aux_loss, 4));
  if (std::isfinite(z_loss)) rows += row("router z-loss, last", short_number(z_loss, 4));
  rows += row("rows dropped, logged steps", format_count(dropped));
  if (std::isfinite(padding)) rows += row("padding ratio, median", fixed(padding, 3));
  rows += row("host syncs a step, most", format_count(largest_of(steps, &StepRecord::host_syncs)));
  rows +=
      row("saved for backward, most", format_bytes(largest_of(steps, &StepRecord::saved_bytes)));
  rows += row("memory reserved, most",
              format_bytes(largest_of(steps, &StepRecord::memory_reserved_bytes)));
  return table_panel("Cost of a step", rows);
}

std::string machine(const RunHistory& history) {
  std::string rows;
  if (!history.starts.empty()) {
    const StartRecord& start = history.starts.back();
    rows += row("amoeba", start.version) + row("device", start.device);
    for (const auto& [name, value] : start.machine) rows += row(name, text_of(value));
  }
  if (!history.ends.empty()) {
    const EndRecord& end = history.ends.back();
    if (!end.checkpoint.empty()) rows += row("last checkpoint", end.checkpoint);
  }
  return table_panel("Machine", rows);
}

std::string origin(const RunHistory& history) {
  std::string out = "<h2>How it was made</h2>";
  for (const StartRecord& start : history.starts) {
    out += panel(
        start.step == 0 ? "Command" : cat("Command, resumed from step ", format_count(start.step)),
        "", cat("<pre>", escape_html(start.command), "</pre>"));
  }
  return out + "<div class=\"pair\">" + machine(history) + facts(history) + "</div>";
}

std::string subtitle(const RunHistory& history) {
  std::string text =
      history.steps.empty() ? "no steps yet" : plural(history.steps.back().step, "step");
  const bool ended = !history.ends.empty() && history.ends.size() == history.starts.size();
  if (!history.steps.empty() && history.steps.back().tokens_seen > 0) {
    text += cat(", ", format_count(history.steps.back().tokens_seen), " tokens");
  }
  text += ended ? cat(", ", history.ends.back().reason) : ", not ended in order";
  return text;
}

}  // namespace

std::string render_report(const RunHistory& history, const ReportOptions& options) {
  const Span span = span_of(history);
  std::string body = cards(history) + "\n" + curves(history, span) + "\n";
  body += guard(history) + "\n" + experts(history, span);
  body += "\n" + sample(history) + "\n";
  if (!history.starts.empty()) body += configuration(history.starts.back().config) + "\n";
  body += origin(history);
  return render_page(options.title, subtitle(history), body);
}

}  // namespace amoeba::train
