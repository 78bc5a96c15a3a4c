// Counter-based randomness: a value is a pure function of (seed, stream, counter), so resuming
// needs no saved generator state.
#pragma once

#include <cstdint>

namespace amoeba {

// 64 well-mixed bits. With S(state, n) = mix(state + (n + 1) * 0x9e3779b97f4a7c15), the n-th output
// of SplitMix64 (mix: xor-shift 30, * 0xbf58476d1ce4e5b9, xor-shift 27, * 0x94d049bb133111eb,
// xor-shift 31; Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), the
// value is S(S(S(seed, 0), stream), counter): one stream is a SplitMix64 sequence.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);

// Uniform in [0, 1) with 53 bits.
double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

// A pseudo-random bijection of [0, size) evaluated one element at a time in O(1) memory:
// a balanced Feistel network of 8 rounds over the next even power of two (at most 4 * size
// elements), walked until it falls inside. Round r xors in random_bits(seed, stream, r * 2^32 +
// right half).
class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, uint64_t stream);  // size >= 1
  int64_t operator()(int64_t index) const;                    // index in [0, size)
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  uint64_t seed_;
  uint64_t stream_;
  int half_bits_;
};

}  // namespace amoeba
