// What may be drawn, how often it is, and what is refused. tests/agreement/sampler_test.py compares
// the kept tokens with those of transformers.
#include "train/plain/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"
#include "support/errors.h"

namespace amoeba::train {
namespace {

using test::error_message;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<int32_t> kept(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<int32_t> ids;
  for (const Candidate& token : kept_tokens(logits, options)) ids.push_back(token.id);
  return ids;
}

// Probabilities 0.4, 0.3, 0.2, 0.1 of the tokens 2, 0, 3, 1.
std::vector<float> tenths() { return {std::log(3.f), 0.f, std::log(4.f), std::log(2.f)}; }

TEST(Sampler, KeepsTheLikeliest) {
  struct Case {
    SamplingOptions options;
    std::vector<int32_t> want;
  };
  const Case cases[] = {
      {{1.0, 0, 1.0}, {0, 1, 2, 3}},  // all, by id
      {{1.0, 9, 1.0}, {0, 1, 2, 3}},  // more than there are
      {{1.0, 4, 1.0}, {0, 1, 2, 3}},
      {{1.0, 3, 1.0}, {2, 0, 3}},
      {{1.0, 1, 1.0}, {2}},
      {{0.0, 3, 0.5}, {2}},
      {{1.0, 0, 0.01}, {2}},  // never none
      {{1.0, 0, 0.39}, {2}},
      {{1.0, 0, 0.41}, {2, 0}},
      {{1.0, 0, 0.69}, {2, 0}},
      {{1.0, 0, 0.71}, {2, 0, 3}},
      {{1.0, 0, 0.91}, {2, 0, 3, 1}},
      // Top-p counts what top-k left: 0.4 of 0.7 is 0.571.
      {{1.0, 2, 0.56}, {2}},
      {{1.0, 2, 0.58}, {2, 0}},
      // The temperature comes first: squares 16, 9, 4, 1 of 30, the likeliest is 0.533.
      {{0.5, 0, 0.53}, {2}},
      {{0.5, 0, 0.54}, {2, 0}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(kept(tenths(), c.options), c.want)
        << c.options.temperature << " " << c.options.top_k << " " << c.options.top_p;
  }
}

TEST(Sampler, TiesGoToTheLowerId) {
  const std::vector<float> logits = {0, 7, 7, 1, 7, 7};
  EXPECT_EQ(kept(logits, {0.0, 0, 1.0}), (std::vector<int32_t>{1}));
  EXPECT_EQ(kept(logits, {1.0, 2, 1.0}), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(kept(logits, {1.0, 3, 0.99}), (std::vector<int32_t>{1, 2, 4}));
  EXPECT_EQ(kept(logits, {1.0, 0, 0.3}), (std::vector<int32_t>{1, 2}));
}

// A plain sort of everything as the oracle, on sizes where the heap and the selection do work.
TEST(Sampler, EqualsAPlainSort) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const size_t size = 1 + random_bits(seed, 1, 0) % 300;
    std::vector<float> logits(size);
    for (size_t v = 0; v < size; ++v) {  // many ties
      logits[v] = static_cast<float>(random_bits(seed, 2, v) % 40) / 4;
      if (random_bits(seed, 3, v) % 10 == 0) logits[v] = -kInf;
    }
    logits[size / 2] = 1;
    const auto top_k = static_cast<int64_t>(random_bits(seed, 4, 0) % (size + 2));
    const double top_p = 0.05 + 0.9 * random_uniform(seed, 5, 0);
    const double temperature = 0.3 + random_uniform(seed, 6, 0);
    std::vector<int32_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    const auto at = [&](int32_t id) {
      return static_cast<double>(logits[static_cast<size_t>(id)]);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return at(a) > at(b); });
    if (top_k > 0 && top_k < static_cast<int64_t>(size)) order.resize(static_cast<size_t>(top_k));
    double total = 0;
    for (const int32_t id : order) total += std::exp((at(id) - at(order[0])) / temperature);
    double before = 0;
    std::vector<int32_t> want;
    for (const int32_t id : order) {
      if (!want.empty() && before >= top_p * total * (1 + 1e-12)) break;
      want.push_back(id);
      before += std::exp((at(id) - at(order[0])) / temperature);
    }
    EXPECT_EQ(kept(logits, {temperature, top_k, top_p}), want) << seed;
  }
}

TEST(Sampler, DrawsByInverseTransform) {
  const SamplingOptions all{1.0, 0, 1.0};  // by id: 0.3, 0.1, 0.4, 0.2
  EXPECT_EQ(sample_token(tenths(), all, 0.0), 0);
  EXPECT_EQ(sample_token(tenths(), all, 0.299), 0);
  EXPECT_EQ(sample_token(tenths(), all, 0.301), 1);
  EXPECT_EQ(sample_token(tenths(), all, 0.401), 2);
  EXPECT_EQ(sample_token(tenths(), all, 0.801), 3);
  EXPECT_EQ(sample_token(tenths(), all, std::nextafter(1.0, 0.0)), 3);
  for (const double uniform : {0.0, 0.5, 0.999}) {
    EXPECT_EQ(sample_token(tenths(), {0.0, 0, 1.0}, uniform), 2);
    EXPECT_EQ(sample_token(tenths(), {1e-300, 0, 1.0}, uniform), 2);
  }
  // A token that cannot come never does, at either end.
  const std::vector<float> gaps = {-kInf, 0, -kInf, 0, -kInf};
  EXPECT_EQ(sample_token(gaps, all, 0.0), 1);
  EXPECT_EQ(sample_token(gaps, all, std::nextafter(1.0, 0.0)), 3);
}

// Chi-square of 20,000 draws against the exact probabilities; 32.9 is the 0.9999 quantile of 8
// degrees of freedom. The draws are a function of the seed, so this passes always or never.
TEST(Sampler, DrawsInProportion) {
  const std::vector<float> logits = {1.5f, -0.5f, 0.25f, 2.0f, -2.0f, 0.f, 1.f, -1.f, 0.75f};
  const auto chi_square = [&](double temperature, double assumed) {
    constexpr int kDraws = 20000;
    std::vector<double> expected(logits.size());
    double total = 0;
    for (size_t v = 0; v < logits.size(); ++v) total += expected[v] = std::exp(logits[v] / assumed);
    std::vector<int> counts(logits.size());
    for (uint64_t i = 0; i < kDraws; ++i) {
      const int32_t id = sample_token(logits, {temperature, 0, 1.0}, random_uniform(17, 3, i));
      ++counts[static_cast<size_t>(id)];
    }
    double sum = 0;
    for (size_t v = 0; v < logits.size(); ++v) {
      const double want = kDraws * expected[v] / total;
      sum += (counts[v] - want) * (counts[v] - want) / want;
    }
    return sum;
  };
  for (const double temperature : {0.6, 1.0, 1.7}) {
    EXPECT_LT(chi_square(temperature, temperature), 32.9) << temperature;
    EXPECT_GT(chi_square(temperature, temperature * 1.1), 32.9) << temperature;
  }
}

TEST(Sampler, DrawsOnlyWhatIsKept) {
  const std::vector<float> logits = {1, 3, 2, 3, 0, 2};
  std::vector<int> counts(logits.size());
  for (uint64_t i = 0; i < 2000; ++i) {
    ++counts[static_cast<size_t>(sample_token(logits, {1.0, 3, 0.99}, random_uniform(5, 3, i)))];
  }
  EXPECT_EQ(counts[0] + counts[4] + counts[5], 0);
  for (const size_t id : {1u, 2u, 3u}) EXPECT_GT(counts[id], 100) << id;
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions options{temperature, 2, 0.9};
    EXPECT_EQ(error_message(ErrorKind::kNumeric,
                            [&] {
                              sample_token(std::vector<float>{1, NAN, 2}, options, 0.5);
                            }),
              "sample: the logit of token 1 is nan, want a number");
    EXPECT_EQ(error_message(ErrorKind::kNumeric,
                            [&] {
                              sample_token(std::vector<float>{1, 2, kInf}, options, 0.5);
                            }),
              "sample: the logit of token 2 is inf, want a number");
    EXPECT_EQ(error_message(ErrorKind::kNumeric,
                            [&] {
                              sample_token(std::vector<float>{-kInf, -kInf}, options, 0.5);
                            }),
              "sample: the logits of all 2 tokens are -inf, want a number");
  }
}

TEST(Sampler, RefusesOptions) {
  const auto message = [](const SamplingOptions& options) {
    return error_message(ErrorKind::kUsage, [&] { check_sampling(options); });
  };
  EXPECT_EQ(message({-1, 0, 1}), "sample: temperature is -1, want a number >= 0");
  EXPECT_EQ(message({NAN, 0, 1}), "sample: temperature is nan, want a number >= 0");
  EXPECT_EQ(message({1, -1, 1}), "sample: top_k is -1, want >= 0");
  EXPECT_EQ(message({1, 0, 0}), "sample: top_p is 0, want above 0 and at most 1");
  EXPECT_EQ(message({1, 0, 1.01}), "sample: top_p is 1.01, want above 0 and at most 1");
}

}  // namespace
}  // namespace amoeba::train
