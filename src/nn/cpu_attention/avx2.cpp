// Compiled for AVX2 and FMA.
#include "nn/cpu_attention/kernels.h"

namespace amoeba::nn::cpu_attention {
namespace {

struct Avx2 {
  typedef float Vec __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(32)));
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRows = 4;  // x 3 sums, 3 vectors and a broadcast of 16 registers
};

}  // namespace

const Kernels kAvx2 = kernels_of<Avx2>();

}  // namespace amoeba::nn::cpu_attention
