// The two configurations of kernels that multiply fp32, on the lanes `L` of any instruction set.
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

}  // namespace amoeba::kernels::cpu
