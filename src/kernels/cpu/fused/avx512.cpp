// AVX-512 without bf16 products: fp32, and bf16 widened to fp32.
#include <immintrin.h>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

#include "kernels/cpu/fused/lanes_avx512.inc"

}  // namespace

const FusedKernels kAvx512Fp32 = kernels_of<Fp32<Avx512>>();
const FusedKernels kAvx512Bf16 = kernels_of<WidenedBf16<Avx512>>();

}  // namespace amoeba::kernels::cpu
