// Rotary positions: a block has a token.
#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/layers.h"

namespace amoeba::kernels::cuda {

using device::kPiece;

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) rope_kernel(Rope p, const T* x, float direction, T* y) {
  const int64_t token = blockIdx.x;
  const int64_t position = p.positions[token];
  const bool valid = position >= 0 && position < p.num_positions;
  const int64_t fixed = p.width - 2 * p.half;
  const auto pieces = static_cast<unsigned>(p.width / kPiece);  // of a head
  const auto all = static_cast<unsigned>(p.num_heads) * pieces;
  for (unsigned piece = threadIdx.x; piece < all; piece += kThreads) {
    const int64_t at = token * p.num_heads * p.width + int64_t{piece} * kPiece;
    const int64_t pair = (int64_t{piece % pieces} * kPiece - fixed) / 2;  // the first of four
    float value[kPiece];
    device::load_piece(value, x + at, kPiece, true);
    if (pair >= 0) {
#pragma unroll
      for (int i = 0; i < kPiece; i += 2) {
        const int64_t entry = position * p.half + pair + i / 2;
        const float cos = valid ? p.cos[entry] : NAN;
        const float sin = valid ? p.sin[entry] * direction : NAN;
        const float a = value[i], b = value[i + 1];
        value[i] = a * cos - b * sin;
        value[i + 1] = a * sin + b * cos;
      }
    }
    device::store_piece(y + at, value, kPiece, true);
  }
}

}  // namespace

void rope(const Rope& p, float direction, void* y, Stream stream) {
  if (p.num_tokens == 0) return;
  with_type(p.dtype, "rope", [&]<typename T>(T) {
    rope_kernel<T>
        <<<grid_blocks(p.num_tokens, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            p, static_cast<const T*>(p.x), direction, static_cast<T*>(y));
  });
  check_launch("rope");
}

}  // namespace amoeba::kernels::cuda
