#include "train/plain/guard.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

constexpr double kFloor = 0.01;  // of the median: deviations below it are no spread to measure by

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

void keep_newest(std::vector<double>& values, int64_t count) {
  const auto size = static_cast<int64_t>(values.size());
  if (size > count) values.erase(values.begin(), values.begin() + (size - count));
}

template <typename Number>
formats::Value list_of(const std::vector<Number>& numbers) {
  formats::Value value;
  formats::Array& list = value.data.emplace<formats::Array>();
  for (const Number number : numbers) list.emplace_back().data = number;
  return value;
}

int64_t count_at(const formats::Value& value, std::string_view key, std::string_view what) {
  const int64_t count = value.integer_at(key, what);
  AMOEBA_CHECK_KIND(kData, count >= 0, what, ": ", key, " is ", count, ", want at least 0");
  return count;
}

std::vector<double> numbers_at(const formats::Value& value, std::string_view key,
                               std::string_view what) {
  std::vector<double> numbers;
  for (const formats::Value& item : value.array_at(key, what)) {
    const double* number = item.get_if<double>();
    AMOEBA_CHECK_KIND(kData, number != nullptr && std::isfinite(*number), what, ": ", key,
                      " holds ", item.type_name(), ", want finite numbers");
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace

double spike_limit(std::vector<double> values, double threshold) {
  AMOEBA_ASSERT(!values.empty());
  const double center = median(values);
  for (double& value : values) value = std::abs(value - center);
  return center + threshold * std::max(median(values), kFloor * std::abs(center));
}

Guard::Guard(const GuardSection& section, int64_t max_rejected_in_a_row)
    : section_(section), max_rejected_in_a_row_(max_rejected_in_a_row) {}

StepLimits Guard::limits() const {
  if (!section_.enable) return {};
  if (static_cast<int64_t>(losses_.size()) < section_.window) {
    return {section_.cold_loss, section_.cold_grad_norm};
  }
  return {spike_limit(losses_, section_.loss_threshold),
          spike_limit(grad_norms_, section_.grad_norm_threshold)};
}

GuardAction Guard::add(int64_t step, double loss, double grad_norm, bool rejected) {
  std::erase_if(skipped_steps_,
                [&](int64_t skipped) { return skipped <= step - section_.skip_interval; });
  if (!rejected) {
    rejected_in_a_row_ = 0;
    losses_.push_back(loss);
    grad_norms_.push_back(grad_norm);
    keep_newest(losses_, section_.window);
    keep_newest(grad_norms_, section_.window);
    return GuardAction::kGoOn;
  }
  skipped_steps_.push_back(step);
  ++rejected_in_a_row_;
  if (rejected_in_a_row_ >= max_rejected_in_a_row_) return GuardAction::kEnd;
  if (!section_.enable || num_skips() <= section_.max_skips) return GuardAction::kGoOn;
  return num_rollbacks_ < section_.max_rollbacks ? GuardAction::kRollBack : GuardAction::kEnd;
}

void Guard::roll_back(const Guard& to) {
  losses_ = to.losses_;
  grad_norms_ = to.grad_norms_;
  skipped_steps_.clear();
  rejected_in_a_row_ = 0;
  ++num_rollbacks_;
}

formats::Value Guard::to_value() const {
  return {formats::Object{{"losses", list_of(losses_)},
                          {"grad_norms", list_of(grad_norms_)},
                          {"skipped_steps", list_of(skipped_steps_)},
                          {"rejected_in_a_row", {rejected_in_a_row_}},
                          {"rollbacks", {num_rollbacks_}}}};
}

void Guard::restore(const formats::Value& value, std::string_view what) {
  Guard read(section_, max_rejected_in_a_row_);
  read.losses_ = numbers_at(value, "losses", what);
  read.grad_norms_ = numbers_at(value, "grad_norms", what);
  AMOEBA_CHECK_KIND(kData, read.losses_.size() == read.grad_norms_.size(), what, ": losses has ",
                    read.losses_.size(), " numbers and grad_norms ", read.grad_norms_.size(),
                    ", want as many");
  keep_newest(read.losses_, section_.window);
  keep_newest(read.grad_norms_, section_.window);
  int64_t last = 0;
  for (const formats::Value& item : value.array_at("skipped_steps", what)) {
    const int64_t* step = item.get_if<int64_t>();
    AMOEBA_CHECK_KIND(kData, step != nullptr && *step > last, what,
                      ": skipped_steps holds no ascending steps from 1 on");
    last = *step;
    read.skipped_steps_.push_back(*step);
  }
  read.rejected_in_a_row_ = count_at(value, "rejected_in_a_row", what);
  read.num_rollbacks_ = count_at(value, "rollbacks", what);
  *this = std::move(read);
}

}  // namespace amoeba::train
