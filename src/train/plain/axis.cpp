#include "train/plain/axis.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "amoeba/error.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {
namespace {

std::string significant(double value, int digits) {
  std::array<char, 32> buffer;
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                          std::chars_format::general, digits);
  AMOEBA_ASSERT(error == std::errc());
  std::string text(buffer.data(), end);
  const std::size_t exponent = text.find('e');
  if (exponent == std::string::npos) return text;
  // "5e-05" -> "5e-5", "1e+15" -> "1e15"
  std::size_t first = exponent + 2;
  while (first + 1 < text.size() && text[first] == '0') ++first;
  const std::string sign = text[exponent + 1] == '-' ? "-" : "";
  return text.substr(0, exponent + 1) + sign + text.substr(first);
}

double nice_step(double span, int max_ticks) {
  const double rough = span / std::max(1, max_ticks);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::vector<double> multiples(double low, double high, double step) {
  std::vector<double> out;
  const double slack = 1e-6;  // of a step, for rounding
  for (double i = std::ceil(low / step - slack); i <= high / step + slack; ++i) {
    out.push_back(i * step == 0 ? 0.0 : i * step);  // no minus zero
  }
  return out;
}

}  // namespace

std::string short_number(double value, int digits) {
  if (!std::isfinite(value)) return fixed(value, 0);
  struct Unit {
    double size;
    const char* name;
  };
  for (const Unit unit : {Unit{1e12, "T"}, Unit{1e9, "G"}, Unit{1e6, "M"}, Unit{1e3, "k"}}) {
    const double scaled = value / unit.size;
    if (std::abs(scaled) >= 1 && std::abs(scaled) < 1e4) {
      return significant(scaled, digits) + unit.name;
    }
  }
  return significant(value, digits);
}

Axis linear_axis(double low, double high, int max_ticks) {
  const double magnitude = std::max(std::abs(low), std::abs(high));
  if (high - low <= magnitude * 1e-9) {
    const double margin = magnitude > 0 ? 0.1 * magnitude : 1.0;
    low -= margin;
    high += margin;
  }
  const double step = nice_step(high - low, max_ticks);
  const double slack = 1e-6;
  Axis axis{.low = step * std::floor(low / step + slack),
            .high = step * std::ceil(high / step - slack),
            .logarithmic = false,
            .ticks = {}};
  axis.ticks = multiples(axis.low, axis.high, step);
  return axis;
}

Axis log_axis(double low, double high, int max_ticks) {
  // The ends are rounded outwards to one digit, so that they need not be whole decades.
  const double low_power = std::pow(10.0, std::floor(std::log10(low)));
  const double high_power = std::pow(10.0, std::floor(std::log10(high)));
  Axis axis{.low = low_power * std::max(1.0, std::floor(low / low_power)),
            .high = high_power * std::ceil(high / high_power),
            .logarithmic = true,
            .ticks = {}};
  const double first = std::ceil(std::log10(axis.low) - 1e-6);
  const double last = std::floor(std::log10(axis.high) + 1e-6);
  const double every = std::max(1.0, std::ceil((last - first) / std::max(1, max_ticks)));
  for (double power = first; power <= last; power += every) {
    axis.ticks.push_back(std::pow(10.0, power));
  }
  return axis;
}

Axis step_axis(double low, double high, int max_ticks) {
  if (high <= low) high = low + 1;
  const double step = std::max(1.0, nice_step(high - low, max_ticks));
  return {.low = low, .high = high, .logarithmic = false, .ticks = multiples(low, high, step)};
}

}  // namespace amoeba::train
