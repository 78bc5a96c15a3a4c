// The guard over curves: every planted spike is found, nearly nothing else is, and nothing that was
// rejected changes what comes after.
#include "train/plain/guard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <numbers>
#include <random>
#include <string>

#include "support/errors.h"

namespace amoeba::test {
namespace {

using train::Guard;
using train::GuardAction;
using train::GuardSection;
using train::StepLimits;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Never at the end of its patience.
GuardSection patient() {
  GuardSection section;
  section.max_skips = 1'000'000;
  return section;
}

// What the training step decides on the device.
bool is_rejected(double loss, double grad_norm, const StepLimits& limits) {
  return !std::isfinite(loss) || !std::isfinite(grad_norm) || loss > limits.loss ||
         grad_norm > limits.grad_norm;
}

// Sorting, and the definition written out.
double plain_median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double plain_mad(const std::vector<double>& values) {
  const double center = plain_median(values);
  std::vector<double> deviations;
  for (const double value : values) deviations.push_back(std::fabs(value - center));
  return plain_median(deviations);
}

TEST(SpikeLimit, IsTheMedianAndSoManyDeviations) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal(3.0, 0.5);
  for (size_t n : {1, 2, 3, 8, 127, 128}) {
    std::vector<double> values(n);
    for (double& value : values) value = normal(random);
    const double center = plain_median(values);
    const double spread = std::max(plain_mad(values), 0.01 * std::fabs(center));
    EXPECT_DOUBLE_EQ(train::spike_limit(values, 7.5), center + 7.5 * spread) << n;
  }
  EXPECT_DOUBLE_EQ(train::spike_limit({2, 2, 2, 2}, 6.0), 2 + 6 * 0.02) << "the floor";
  EXPECT_DOUBLE_EQ(train::spike_limit({-2, -2, -2}, 6.0), -2 + 6 * 0.02);
}

TEST(Guard, HasAbsoluteLimitsWhileItsWindowFills) {
  GuardSection section = patient();
  section.window = 8;
  section.cold_loss = 9;
  section.cold_grad_norm = 70;
  Guard guard(section, 10);
  for (int64_t step = 1; step <= 8; ++step) {
    EXPECT_EQ(guard.limits().loss, 9);
    EXPECT_EQ(guard.limits().grad_norm, 70);
    guard.add(step, 2, 1, false);
  }
  EXPECT_EQ(guard.limits().loss, 2 + section.loss_threshold * 0.02);
  EXPECT_EQ(guard.limits().grad_norm, 1 + section.grad_norm_threshold * 0.01);
  section.enable = false;
  EXPECT_EQ(Guard(section, 10).limits().loss, kInf);
  EXPECT_EQ(Guard(section, 10).limits().grad_norm, kInf);
}

// ---- Curves -------------------------------------------------------------------------------------

struct Point {
  double loss, grad_norm;
};
using Curve = std::vector<Point>;

// A falling loss with noise and a norm with a tail, five shapes of them.
Curve synthetic_curve(uint64_t index) {
  std::mt19937_64 random(index);
  std::normal_distribution<double> normal;
  const double noise = 0.02 + 0.01 * static_cast<double>(index % 7);
  const double tail = 0.1 + 0.05 * static_cast<double>(index % 4);
  Curve curve(2000);
  double drift = 0;
  for (size_t i = 0; i < curve.size(); ++i) {
    const double t = static_cast<double>(i);
    double trend = 2.0 + 3.5 * std::exp(-t / 90);
    if (index % 5 == 1) trend += 2.0 / std::sqrt(t + 4);
    if (index % 5 == 2 && i > 1200) trend -= 0.4;  // the learning rate fell
    if (index % 5 == 3) trend += 0.1 * std::sin(t * std::numbers::pi / 400);
    if (index % 5 == 4) drift = 0.9 * drift + 0.4 * noise * normal(random);
    curve[i].loss = (trend + drift) * (1 + noise * normal(random));
    curve[i].grad_norm = 0.5 * (1 + 4 * std::exp(-t / 60)) * std::exp(tail * normal(random));
  }
  return curve;
}

// "loss grad_norm" a line, as runs wrote them.
Curve recorded_curve(const std::string& name) {
  std::ifstream file(std::string(AMOEBA_SOURCE_DIR) + "/tests/train_plain/recorded_curves/" + name);
  Curve curve;
  for (Point point{}; file >> point.loss >> point.grad_norm;) curve.push_back(point);
  return curve;
}

struct Found {
  int64_t steps = 0, false_skips = 0, planted = 0, missed = 0;
};

enum class Spike { kSixSigma, kTenfoldLoss, kTenfoldNorm };

// Every 70th step a spike in place of the recorded value, of one kind after the other.
Found replay(const Curve& curve, bool plant) {
  constexpr double kSigmaOfMad = 1.4826;  // of normal noise
  Guard guard(patient(), 1'000'000);
  std::vector<double> losses, norms;  // accepted ones, all of them
  Found found;
  for (size_t i = 0; i < curve.size(); ++i) {
    Point point = curve[i];
    const bool planted = plant && i % 70 == 69 && losses.size() >= 128;
    if (planted) {
      const std::vector<double> loss(losses.end() - 128, losses.end());
      const std::vector<double> norm(norms.end() - 128, norms.end());
      switch (static_cast<Spike>(i / 70 % 3)) {
        case Spike::kSixSigma:
          point.loss = plain_median(loss) +
                       6 * kSigmaOfMad * std::max(plain_mad(loss), 0.01 * plain_median(loss));
          break;
        case Spike::kTenfoldLoss:
          point.loss = 10 * plain_median(loss);
          break;
        case Spike::kTenfoldNorm:
          point.grad_norm = 10 * plain_median(norm);
          break;
      }
    }
    const bool rejected = is_rejected(point.loss, point.grad_norm, guard.limits());
    guard.add(static_cast<int64_t>(i) + 1, point.loss, point.grad_norm, rejected);
    ++found.steps;
    found.planted += planted;
    found.missed += planted && !rejected;
    found.false_skips += !planted && rejected;
    if (rejected) continue;
    losses.push_back(point.loss);
    norms.push_back(point.grad_norm);
  }
  return found;
}

void add(Found& sum, const Found& more) {
  sum.steps += more.steps;
  sum.false_skips += more.false_skips;
  sum.planted += more.planted;
  sum.missed += more.missed;
}

TEST(Guard, FindsEverySpikeOfAHundredCurves) {
  Found found;
  for (uint64_t index = 0; index < 100; ++index) add(found, replay(synthetic_curve(index), true));
  EXPECT_EQ(found.steps, 200'000);
  std::cout << "100 synthetic curves: " << found.steps << " steps, " << found.planted
            << " planted spikes, " << found.missed << " missed, " << found.false_skips
            << " false skips\n";
  EXPECT_GT(found.planted, 2000);
  EXPECT_EQ(found.missed, 0);
  EXPECT_LE(found.false_skips * 10'000, found.steps);
}

// The steps of small_batches.txt have 128 tokens: step 1225 is 14 deviations up all by itself.
TEST(Guard, FindsEverySpikeOfRecordedCurves) {
  struct Recorded {
    const char* name;
    int64_t skips;  // of the curve as it was
  };
  for (const Recorded& row : {Recorded{"demo.txt", 0}, Recorded{"small_lr.txt", 0},
                              Recorded{"high_lr.txt", 0}, Recorded{"small_batches.txt", 1}}) {
    const Curve curve = recorded_curve(row.name);
    ASSERT_GE(curve.size(), 290u) << row.name;
    const Found clean = replay(curve, false), spiked = replay(curve, true);
    std::cout << row.name << ": " << clean.steps << " steps, " << clean.false_skips << " skipped; "
              << spiked.planted << " planted spikes, " << spiked.missed << " missed, "
              << spiked.false_skips << " false skips\n";
    EXPECT_EQ(clean.false_skips, row.skips) << row.name;
    EXPECT_EQ(spiked.false_skips, row.skips) << row.name;
    EXPECT_GT(spiked.planted, 0) << row.name;
    EXPECT_EQ(spiked.missed, 0) << row.name;
  }
}

// ---- What a NaN or a spike leaves behind --------------------------------------------------------

Guard warm_guard(const GuardSection& section = patient()) {
  Guard guard(section, 1'000'000);
  for (int64_t step = 1; step <= 128; ++step) {
    guard.add(step, 2 + 0.01 * static_cast<double>(step % 7),
              1 + 0.1 * static_cast<double>(step % 5), false);
  }
  return guard;
}

TEST(Guard, ANanIsRejectedAndThousandCleanStepsAreNot) {
  Guard guard = warm_guard();
  const StepLimits before = guard.limits();
  for (const Point bad : {Point{kNan, 1}, Point{2, kNan}, Point{kInf, 1}, Point{2, kInf}}) {
    EXPECT_TRUE(is_rejected(bad.loss, bad.grad_norm, guard.limits()));
    guard.add(129, bad.loss, bad.grad_norm, true);
    EXPECT_EQ(guard.limits().loss, before.loss);
    EXPECT_EQ(guard.limits().grad_norm, before.grad_norm);
  }
  for (int64_t step = 130; step < 1130; ++step) {
    const double loss = 2 + 0.01 * static_cast<double>(step % 7);
    ASSERT_FALSE(is_rejected(loss, 1, guard.limits())) << step;
    guard.add(step, loss, 1, false);
  }
  EXPECT_TRUE(is_rejected(200, 1, guard.limits())) << "a spike after the NaN";
}

// A sample inside its own window cannot be more than sqrt(127) = 11.27 deviations away.
TEST(Guard, AHighThresholdStillFires) {
  GuardSection section = patient();
  section.loss_threshold = section.grad_norm_threshold = 1000;
  const Guard guard = warm_guard(section);
  EXPECT_TRUE(is_rejected(1e5, 1, guard.limits()));
  EXPECT_TRUE(is_rejected(2, 1e5, guard.limits()));
  EXPECT_FALSE(is_rejected(2.1, 1.5, guard.limits()));
}

TEST(Guard, AColdWindowRejectsNanAndTheAbsurd) {
  Guard guard(patient(), 1'000'000);
  EXPECT_TRUE(is_rejected(kNan, 1, guard.limits()));
  guard.add(1, kNan, 1, true);
  EXPECT_TRUE(is_rejected(1e9, 1, guard.limits()));
  EXPECT_TRUE(is_rejected(5, 1e9, guard.limits()));
  EXPECT_FALSE(is_rejected(5, 60, guard.limits()));
}

// ---- Skips, roll-backs and the end --------------------------------------------------------------

TEST(Guard, TooManySkipsLeadBackAndAtLastToTheEnd) {
  GuardSection section;
  section.max_skips = 2;
  section.skip_interval = 100;
  section.max_rollbacks = 1;
  Guard guard(section, 50);
  const Guard early = guard;
  EXPECT_EQ(guard.first_skip(), 0);
  EXPECT_EQ(guard.add(10, kNan, 1, true), GuardAction::kGoOn);
  EXPECT_EQ(guard.add(20, 2, 1, false), GuardAction::kGoOn);
  EXPECT_EQ(guard.add(60, kNan, 1, true), GuardAction::kGoOn);
  EXPECT_EQ(guard.first_skip(), 10);
  EXPECT_EQ(guard.add(110, kNan, 1, true), GuardAction::kGoOn) << "step 10 is 100 steps ago";
  EXPECT_EQ(guard.first_skip(), 60);
  EXPECT_EQ(guard.add(159, kNan, 1, true), GuardAction::kRollBack);
  guard.roll_back(early);
  EXPECT_EQ(guard.num_skips(), 0);
  EXPECT_EQ(guard.num_rollbacks(), 1);
  for (int64_t step = 30; step < 32; ++step) {
    EXPECT_EQ(guard.add(step, kNan, 1, true), GuardAction::kGoOn);
  }
  EXPECT_EQ(guard.add(32, kNan, 1, true), GuardAction::kEnd);
}

TEST(Guard, RejectedStepsInARowEndTheRunWhateverElseIsAllowed) {
  for (const bool enable : {true, false}) {
    GuardSection section = patient();
    section.enable = enable;
    Guard guard(section, 3);
    EXPECT_EQ(guard.add(1, kNan, 1, true), GuardAction::kGoOn);
    EXPECT_EQ(guard.add(2, kNan, 1, true), GuardAction::kGoOn);
    EXPECT_EQ(guard.add(3, 2, 1, false), GuardAction::kGoOn);
    EXPECT_EQ(guard.add(4, kNan, 1, true), GuardAction::kGoOn);
    EXPECT_EQ(guard.add(5, kNan, 1, true), GuardAction::kGoOn);
    EXPECT_EQ(guard.add(6, kNan, 1, true), GuardAction::kEnd);
  }
}

// ---- Its state ----------------------------------------------------------------------------------

TEST(Guard, ContinuesFromItsStateBitForBit) {
  const Curve curve = synthetic_curve(3);
  Guard whole(patient(), 50), split(patient(), 50);
  for (size_t i = 0; i < 400; ++i) {
    const StepLimits limits = whole.limits();
    ASSERT_EQ(split.limits().loss, limits.loss) << i;
    ASSERT_EQ(split.limits().grad_norm, limits.grad_norm) << i;
    const Point point = i % 50 == 49 ? Point{kNan, 1} : curve[i];
    const bool rejected = is_rejected(point.loss, point.grad_norm, limits);
    const auto step = static_cast<int64_t>(i) + 1;
    EXPECT_EQ(whole.add(step, point.loss, point.grad_norm, rejected),
              split.add(step, point.loss, point.grad_norm, rejected));
    if (i % 7 != 0) continue;
    Guard next(patient(), 50);
    next.restore(formats::parse_json(formats::write_json(split.to_value()), "state"), "state");
    split = next;
    EXPECT_EQ(formats::write_json(split.to_value()), formats::write_json(whole.to_value()));
  }
  EXPECT_GT(whole.num_skips(), 4);
}

TEST(Guard, AShorterWindowKeepsTheNewestSteps) {
  GuardSection section = patient();
  section.window = 8;
  Guard shorter(section, 50), expected(section, 50);
  shorter.restore(warm_guard().to_value(), "state");
  for (int64_t step = 121; step <= 128; ++step) {
    expected.add(step, 2 + 0.01 * static_cast<double>(step % 7),
                 1 + 0.1 * static_cast<double>(step % 5), false);
  }
  EXPECT_EQ(shorter.limits().loss, expected.limits().loss);
  EXPECT_EQ(shorter.limits().grad_norm, expected.limits().grad_norm);
}

TEST(Guard, RefusesAStateThatIsNone) {
  const std::string good =
      R"({"losses":[2.0],"grad_norms":[1.0],"skipped_steps":[3,9],"rejected_in_a_row":0,"rollbacks":0})";
  const auto message = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return error_message(ErrorKind::kData, [&] {
      Guard(GuardSection(), 5).restore(formats::parse_json(text, "state"), "state");
    });
  };
  EXPECT_EQ(message("[2.0]", "[null]"), "state: losses holds null, want finite numbers");
  EXPECT_EQ(message("[2.0]", "[]"), "state: losses has 0 numbers and grad_norms 1, want as many");
  EXPECT_EQ(message("[3,9]", "[9,3]"), "state: skipped_steps holds no ascending steps from 1 on");
  EXPECT_EQ(message("\"rollbacks\":0", "\"rollbacks\":-1"),
            "state: rollbacks is -1, want at least 0");
  EXPECT_NE(message("\"losses\"", "\"loses\"").find("losses"), std::string::npos);
}

}  // namespace
}  // namespace amoeba::test
