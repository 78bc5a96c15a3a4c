// AVX2 with FMA: fp32, and bf16 widened to fp32.
#include <immintrin.h>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

struct Avx2 {
  typedef float Vec __attribute__((vector_size(32)));
  typedef int32_t Words __attribute__((vector_size(32)));
  typedef uint16_t Shorts __attribute__((vector_size(16)));
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRows = 4;  // 4 x 3 sums, 3 vectors and a broadcast of 16 registers
  static constexpr int64_t kMaxVectors = 3;

  static Vec fill(float value) { return _mm256_set1_ps(value); }
  static Vec fma(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }
  // Never past the caches: a vector is half a line, and halves written apart cost more than they
  // save.
  static void store(bool, float* to, Vec value) { _mm256_storeu_ps(to, value); }
  static void finish_streams() {}
};

}  // namespace

const FusedKernels kAvx2Fp32 = kernels_of<Fp32<Avx2>>();
const FusedKernels kAvx2Bf16 = kernels_of<WidenedBf16<Avx2>>();

}  // namespace amoeba::kernels::cpu
