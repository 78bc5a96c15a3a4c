#include "train/plain/progress.h"

#include <cmath>
#include <iomanip>
#include <locale>
#include <sstream>
#include <utility>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {
namespace {

constexpr std::string_view kEraseToEndOfLine = "\x1b[K";
constexpr double kBytesPerGib = 1024.0 * 1024.0 * 1024.0;

std::string or_na(double value, int decimals, std::string_view unit = "") {
  if (std::isnan(value)) return "N/A";
  return cat(fixed(value, decimals), unit);
}

std::string scientific(double value) {
  if (std::isnan(value)) return "N/A";
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << std::scientific << std::setprecision(2) << value;
  return out.str();
}

std::string step_of(int64_t step, int64_t num_steps) { return cat("step: ", step, "/", num_steps); }

// Terminals draw most characters from U+1000 on two columns wide; counting a narrow one as wide
// only cuts the line a little earlier.
int columns_of(unsigned char lead) { return lead >= 0xE1 ? 2 : 1; }

}  // namespace

std::string format_step(const StepRecord& record, int64_t num_steps, double eta_seconds) {
  const double gib = static_cast<double>(record.memory_peak_bytes) / kBytesPerGib;
  const bool has_speed = std::isfinite(record.tokens_per_second);
  std::string out =
      cat(step_of(record.step, num_steps), "  loss: ", fixed(record.loss, 4),
          "  grad_norm: ", fixed(record.grad_norm, 4), "  memory: ", fixed(gib, 2), "GiB(",
          or_na(record.memory_percent, 2, "%"),
          ")  tps: ", has_speed ? format_count(std::llround(record.tokens_per_second)) : "N/A",
          "  tflops: ", or_na(record.tflops, 2), "  mfu: ", or_na(record.mfu, 2, "%"),
          "  lr: ", scientific(record.lr));
  const double imbalance = worst_max_over_mean(record);
  if (!std::isnan(imbalance)) out += "  experts max/mean: " + fixed(imbalance, 2);
  if (record.rejected) out += "  rejected: not finite";
  if (std::isfinite(eta_seconds)) out += "  eta: " + format_duration(eta_seconds);
  return out;
}

std::string format_validation(const ValidationRecord& record, int64_t num_steps) {
  return cat(step_of(record.step, num_steps), "  validation loss: ", fixed(record.loss, 4),
             "  bits_per_byte: ", or_na(record.bits_per_byte, 4),
             "  windows: ", format_count(record.windows));
}

std::string format_work(std::string_view verb, int64_t done, int64_t total, std::string_view unit) {
  if (total > 0) return cat(verb, " ", format_count(done), "/", format_count(total), " ", unit);
  if (unit.empty()) return std::string(verb);
  return cat(verb, " ", format_count(done), " ", unit);
}

double eta_seconds(int64_t done, int64_t total, double elapsed_seconds) {
  if (done <= 0) return kMissing;
  return elapsed_seconds / static_cast<double>(done) * static_cast<double>(total - done);
}

std::string fit_to_columns(std::string_view text, int columns) {
  const std::string valid = replace_invalid_utf8(text);
  std::string_view rest = valid;
  std::string out;
  while (!rest.empty()) {
    const auto lead = static_cast<unsigned char>(rest.front());
    columns -= columns_of(lead);
    if (columns < 0) break;
    const std::size_t length = utf8_sequence_length(rest);
    const bool is_c1_control = lead == 0xC2 && static_cast<unsigned char>(rest[1]) < 0xA0;
    if (lead < 0x20 || lead == 0x7F || is_c1_control) {
      out += ' ';
    } else {
      out += rest.substr(0, length);
    }
    rest.remove_prefix(length);
  }
  return out;
}

Progress::Progress(Sink sink, ProgressOptions options)
    : sink_(std::move(sink)), options_(options) {}

void Progress::line(std::string_view text) {
  clear();
  sink_(cat(text, "\n"));
}

void Progress::live(std::string_view text, double now_seconds) {
  if (!options_.terminal) return;
  const double since = now_seconds - painted_at_;
  if (since >= 0 && since < options_.min_interval) return;
  painted_at_ = now_seconds;
  shown_ = true;
  // The last column stays free: a cursor waiting to wrap there would be erased with the rest.
  sink_(cat("\r", fit_to_columns(text, options_.columns - 1), kEraseToEndOfLine));
}

void Progress::clear() {
  if (!shown_) return;
  shown_ = false;
  sink_(cat("\r", kEraseToEndOfLine));
}

}  // namespace amoeba::train
