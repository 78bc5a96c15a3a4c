// AMX with products of bf16 tiles; what is too small for tiles, and everything elementwise, by
// AVX-512 with products of bf16 pairs.
#include <immintrin.h>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/fused/tiles.h"

namespace amoeba::kernels::cpu {
namespace {

#include "kernels/cpu/fused/lanes_avx512.inc"
#include "kernels/cpu/fused/pairs_avx512.inc"
#include "kernels/cpu/fused/tiles_amx.inc"

struct AmxLanes : Avx512Pairs {
  static constexpr int64_t kMaxVectors = 2;
};

}  // namespace

const FusedKernels kAmxBf16 = tile_kernels_of<Bf16Tiles<AmxLanes, AmxTiles>>();

}  // namespace amoeba::kernels::cpu
