// Compiled for AVX-512.
#include "nn/cpu_attention/kernels.h"

namespace amoeba::nn::cpu_attention {
namespace {

struct Avx512 {
  typedef float Vec __attribute__((vector_size(64)));
  typedef int32_t Ints __attribute__((vector_size(64)));
  typedef uint32_t Words __attribute__((vector_size(64)));
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kRows = 8;  // x 3 sums, 3 vectors and a broadcast of 32 registers
};

}  // namespace

const Kernels kAvx512 = kernels_of<Avx512>();

}  // namespace amoeba::nn::cpu_attention
