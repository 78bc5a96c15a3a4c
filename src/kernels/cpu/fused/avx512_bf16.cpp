// AVX-512 with products of bf16 pairs: vdpbf16ps, which adds both products of a pair to fp32. It
// takes subnormal inputs as zero.
#include <immintrin.h>

#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

#include "kernels/cpu/fused/lanes_avx512.inc"

struct Bf16Pairs {
  using Lanes = Avx512;
  using Storage = uint16_t;
  static constexpr int64_t kValuesPerUnit = 2;
  static constexpr bool kReadsInPlace = true;
  static Lanes::Vec multiply_add(Lanes::Vec a, Lanes::Vec b, Lanes::Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

}  // namespace

const FusedKernels kAvx512Bf16Pairs = kernels_of<Bf16Pairs>();

}  // namespace amoeba::kernels::cpu
