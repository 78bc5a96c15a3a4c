// The configurations of the kernels on the lanes `L` of any instruction set: two that multiply
// fp32, two that multiply bf16 pairs, of which one has tiles `T` too (tiles.h).
#pragma once

#include <cstdint>

namespace amoeba::kernels::cpu {

template <typename L>
struct Fp32 {
  using Lanes = L;
  using Storage = float;
  static constexpr int64_t kValuesPerUnit = 1;
  static constexpr bool kReadsInPlace = true;
  static typename L::Vec multiply_add(typename L::Vec a, typename L::Vec b, typename L::Vec sum) {
    return L::fma(a, b, sum);
  }
};

template <typename L>
struct WidenedBf16 : Fp32<L> {
  using Storage = uint16_t;
  static constexpr bool kReadsInPlace = false;
};

template <typename L>
struct Bf16Pairs {
  using Lanes = L;
  using Storage = uint16_t;
  static constexpr int64_t kValuesPerUnit = 2;
  static constexpr bool kReadsInPlace = true;
  static typename L::Vec multiply_add(typename L::Vec a, typename L::Vec b, typename L::Vec sum) {
    return L::multiply_add_pairs(a, b, sum);
  }
};

template <typename L, typename T>
struct Bf16Tiles : Bf16Pairs<L> {
  using Tiles = T;
};

}  // namespace amoeba::kernels::cpu
