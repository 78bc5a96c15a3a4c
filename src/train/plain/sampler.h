// Which token comes next, given the logits of all.
//
// The order is that of Hugging Face's generate(): the temperature divides the logits, then top-k
// keeps the k likeliest tokens, then top-p of those the fewest that together have the probability
// p. Equal logits: the lower id counts as likelier, so that exactly k remain, whereas torch keeps
// every token that ties with the k-th.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace amoeba::train {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;        // of the probability that top-k left; 1: all
};

struct Candidate {
  int32_t id = 0;
  float logit = 0;
  double weight = 0;  // exp((logit - largest) / temperature)
};

// Error(kUsage) for a value that makes no sense.
void check_sampling(const SamplingOptions& options);

// The tokens that may come: likeliest first, or all by id where nothing is cut. logits [V], V >= 1.
// Error(kNumeric) for a logit that is NaN or infinite, but -infinity, or when all are -infinity.
std::vector<Candidate> kept_tokens(std::span<const float> logits, const SamplingOptions& options);

// Inverse transform over kept_tokens in fp64; `uniform` is in [0, 1).
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace amoeba::train
