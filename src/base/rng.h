// Counter-based randomness: a value is a pure function of (seed, stream, counter), so resuming
// needs no saved generator state.
#pragma once

#include <cstdint>

namespace amoeba {

// 64 well-mixed bits of (seed, stream, counter): three rounds of the splitmix64 finaliser
// (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);

// Uniform in [0, 1) with 53 bits.
double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

// A pseudo-random bijection of [0, size) evaluated one element at a time in O(1) memory:
// a balanced Feistel network over the next even power of two, walked until it falls inside.
class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, uint64_t stream);
  int64_t operator()(int64_t index) const;  // index in [0, size)
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  uint64_t seed_;
  uint64_t stream_;
  int half_bits_;
};

}  // namespace amoeba
