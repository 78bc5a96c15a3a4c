// AVX-512 with products of bf16 pairs.
#include <immintrin.h>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {
namespace {

#include "kernels/cpu/fused/lanes_avx512.inc"
#include "kernels/cpu/fused/pairs_avx512.inc"

}  // namespace

const FusedKernels kAvx512Bf16Pairs = kernels_of<Bf16Pairs<Avx512Pairs>>();

}  // namespace amoeba::kernels::cpu
