// Vector arithmetic that is the same at every width, on the vector types of GCC and Clang. `L`
// names the lanes of one instruction set and lives in an anonymous namespace, so that everything
// here is private to the file that uses it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace amoeba::kernels::cpu {

template <typename L>
struct Vectors {
  using Vec = typename L::Vec;        // kLanes floats
  using Words = typename L::Words;    // kLanes int32
  using Shorts = typename L::Shorts;  // kLanes uint16
  static constexpr int64_t kLanes = L::kLanes;

  template <typename V>
  static V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  template <typename V>
  static void store(void* to, V value) {
    std::memcpy(to, &value, sizeof value);
  }
  static Vec fill(float value) { return L::fill(value); }

  // -- bf16
  // -----------------------------------------------------------------------------------------
  static Words widen_words(Shorts values) { return __builtin_convertvector(values, Words); }
  static Vec widen(Shorts values) { return (Vec)(widen_words(values) << 16); }

  // The nearest bf16 in the upper half of each word; NaN stays NaN.
  static Words round_bf16(Vec value) {
    const Words bits = (Words)value;
    const Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return (value == value ? rounded : bits | 0x400000) & static_cast<int32_t>(0xffff0000);
  }
  static Shorts narrow(Vec value) {
    return __builtin_convertvector(round_bf16(value) >> 16, Shorts);
  }
  // Two vectors as bf16 one after the other.
  static Vec narrow(Vec first, Vec second) {
    return join(narrow(first), narrow(second), std::make_integer_sequence<int64_t, 2 * kLanes>());
  }
  template <int64_t... kLane>
  static Vec join(Shorts first, Shorts second, std::integer_sequence<int64_t, kLane...>) {
    return (Vec)__builtin_shufflevector(first, second, kLane...);
  }
  // Two vectors as pairs of bf16, `low` first in memory.
  static Words pair(Vec low, Vec high) {
    return ((round_bf16(low) >> 16) & 0xffff) | round_bf16(high);
  }
  static Vec low_half(Words pairs) { return (Vec)(pairs << 16); }
  static Vec high_half(Words pairs) { return (Vec)(pairs & static_cast<int32_t>(0xffff0000)); }

  // -- Functions
  // ------------------------------------------------------------------------------------ e^x to
  // about 1.5 ulp: range reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes
  // expf. Saturates outside [-87, 88]; NaN stays NaN.
  static Vec exp(Vec x) {
    const Vec low = fill(-87.0f), high = fill(88.0f);
    const Vec clamped = x < low ? low : (x > high ? high : x);
    const Vec n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23 rounds
    Vec r = L::fma(n, fill(-0.693359375f), clamped);
    r = L::fma(n, fill(2.12194440e-4f), r);
    Vec p = fill(1.9875691500e-4f);
    p = L::fma(p, r, fill(1.3981999507e-3f));
    p = L::fma(p, r, fill(8.3334519073e-3f));
    p = L::fma(p, r, fill(4.1665795894e-2f));
    p = L::fma(p, r, fill(1.6666665459e-1f));
    p = L::fma(p, r, fill(5.0000001201e-1f));
    p = L::fma(p * r, r, r) + 1.0f;
    const Words power = (__builtin_convertvector(n, Words) + 127) << 23;
    return p * (Vec)power;
  }
  static Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

  // -- Transposition of kLanes x kLanes words, by swapping ever larger blocks across the diagonal
  // ---
  template <int64_t kStep, int64_t... kLane>
  static void swap_blocks(Words& a, Words& b, std::integer_sequence<int64_t, kLane...>) {
    const Words first =
        __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kLane - kStep + kLanes : kLane)...);
    b = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kLane + kLanes : kLane + kStep)...);
    a = first;
  }
  template <int64_t kStep = 1>
  static void transpose(Words (&rows)[kLanes]) {
    if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        if ((i & kStep) == 0) {
          swap_blocks<kStep>(rows[i], rows[i + kStep],
                             std::make_integer_sequence<int64_t, kLanes>());
        }
      }
      transpose<kStep * 2>(rows);
    }
  }
};

}  // namespace amoeba::kernels::cpu
