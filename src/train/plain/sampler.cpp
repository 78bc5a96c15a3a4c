#include "train/plain/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

bool is_less_likely(const Candidate& a, const Candidate& b) { return is_likelier(b, a); }

// The likeliest token; of equal ones the first.
int32_t check_logits(std::span<const float> logits) {
  size_t best = 0;
  for (size_t v = 0; v < logits.size(); ++v) {
    AMOEBA_CHECK_KIND(kNumeric, logits[v] < kInfinity, "sample: the logit of token ", v, " is ",
                      logits[v], ", want a number");
    if (logits[v] > logits[best]) best = v;
  }
  AMOEBA_CHECK_KIND(kNumeric, logits[best] > -kInfinity, "sample: the logits of all ",
                    logits.size(), " tokens are -inf, want a number");
  return static_cast<int32_t>(best);
}

double sum_of_weights(const std::vector<Candidate>& tokens) {
  double sum = 0.0;
  for (const Candidate& token : tokens) sum += token.weight;
  return sum;
}

// A heap gives the likeliest ones in order without sorting the others.
void keep_top_p(std::vector<Candidate>& tokens, double top_p) {
  const double wanted = top_p * sum_of_weights(tokens);
  std::make_heap(tokens.begin(), tokens.end(), is_less_likely);
  auto rest = tokens.end();
  for (double sum = 0.0; rest != tokens.begin() && sum < wanted; sum += rest->weight) {
    std::pop_heap(tokens.begin(), rest, is_less_likely);
    --rest;
  }
  tokens.erase(tokens.begin(), rest);
  std::reverse(tokens.begin(), tokens.end());
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  AMOEBA_CHECK(options.temperature >= 0 && std::isfinite(options.temperature),
               "sample: temperature is ", options.temperature, ", want a number >= 0");
  AMOEBA_CHECK(options.top_k >= 0, "sample: top_k is ", options.top_k, ", want >= 0");
  AMOEBA_CHECK(options.top_p > 0 && options.top_p <= 1, "sample: top_p is ", options.top_p,
               ", want above 0 and at most 1");
}

std::vector<Candidate> kept_tokens(std::span<const float> logits, const SamplingOptions& options) {
  check_sampling(options);
  AMOEBA_CHECK(!logits.empty(), "sample: there are no logits, want at least one");
  const auto best = static_cast<size_t>(check_logits(logits));
  if (options.temperature == 0.0) return {{static_cast<int32_t>(best), logits[best], 1.0}};
  std::vector<Candidate> tokens(logits.size());
  for (size_t v = 0; v < logits.size(); ++v) tokens[v] = {static_cast<int32_t>(v), logits[v], 0.0};
  const auto top_k = static_cast<size_t>(options.top_k);
  if (top_k > 0 && top_k < tokens.size()) {
    std::nth_element(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(top_k - 1),
                     tokens.end(), is_likelier);
    tokens.resize(top_k);
    std::sort(tokens.begin(), tokens.end(), is_likelier);
  }
  const auto largest = static_cast<double>(logits[best]);
  for (Candidate& token : tokens) {
    token.weight = std::exp((static_cast<double>(token.logit) - largest) / options.temperature);
  }
  if (options.top_p < 1.0) keep_top_p(tokens, options.top_p);
  return tokens;
}

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                     double uniform) {
  const std::vector<Candidate> tokens = kept_tokens(logits, options);
  const double wanted = uniform * sum_of_weights(tokens);
  double sum = 0.0;
  for (const Candidate& token : tokens) {
    sum += token.weight;
    if (wanted < sum) return token.id;
  }
  // Reached by rounding only: uniform is below 1.
  return std::max_element(tokens.begin(), tokens.end(), is_less_likely)->id;
}

}  // namespace amoeba::train
