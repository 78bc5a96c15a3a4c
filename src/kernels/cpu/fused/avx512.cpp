// AVX-512 without bf16 products: fp32, and bf16 widened to fp32.
#include <immintrin.h>

#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

#include "kernels/cpu/fused/lanes_avx512.inc"

struct Fp32 {
  using Lanes = Avx512;
  using Storage = float;
  static constexpr int64_t kValuesPerUnit = 1;
  static constexpr bool kReadsInPlace = true;
  static Lanes::Vec multiply_add(Lanes::Vec a, Lanes::Vec b, Lanes::Vec sum) {
    return Lanes::fma(a, b, sum);
  }
};

struct WidenedBf16 : Fp32 {
  using Storage = uint16_t;
  static constexpr bool kReadsInPlace = false;
};

}  // namespace

const FusedKernels kAvx512Fp32 = kernels_of<Fp32>();
const FusedKernels kAvx512Bf16 = kernels_of<WidenedBf16>();

}  // namespace amoeba::kernels::cpu
