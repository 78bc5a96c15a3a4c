// NEON, which every 64-bit Arm CPU has: fp32, and bf16 widened to fp32.
#include <arm_neon.h>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

struct Neon {
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Words __attribute__((vector_size(16)));
  typedef uint16_t Shorts __attribute__((vector_size(8)));
  static constexpr int64_t kLanes = 4;
  static constexpr int64_t kRows = 4;  // 4 x 6 sums, 6 vectors and a broadcast of 32 registers
  static constexpr int64_t kMaxVectors = 6;

  static Vec fill(float value) { return vdupq_n_f32(value); }
  static Vec fma(Vec a, Vec b, Vec sum) { return vfmaq_f32(sum, a, b); }
  // Never past the caches: a vector is a quarter of a line.
  static void store(bool, float* to, Vec value) { vst1q_f32(to, value); }
  static void finish_streams() {}
};

}  // namespace

const FusedKernels kNeonFp32 = kernels_of<Fp32<Neon>>();
const FusedKernels kNeonBf16 = kernels_of<WidenedBf16<Neon>>();

}  // namespace amoeba::kernels::cpu
