// Grouped products for sm_80 and later: cp.async, ldmatrix and mma.m16n8k16.
//
// A block of four warps computes 128 x 128 of c, a warp 64 x 64, over 32 of the sum at a time in
// four stages. 64 KiB of shared memory and at most 255 registers a thread: two blocks on a
// multiprocessor, so that one computes while the other stores.
#pragma once

#include "kernels/cuda/device/epilogues.cuh"
#include "kernels/cuda/device/ptx.cuh"
#include "kernels/cuda/device/tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/products.h"

namespace amoeba::kernels::cuda {

namespace device {

struct Sm80 {
  static constexpr int kColumns = 128;
  static constexpr int kDepth = 32;
  static constexpr int kStages = 4;
  static constexpr int kThreads = 128;
  static constexpr int kOperandBytes = 128 * kDepth * 2;
  static constexpr int kSharedBytes = kStages * 2 * kOperandBytes;
};

// Where a chunk lies in a stage, so that eight rows of one chunk fall into eight different groups
// of banks. K-major: rows of four chunks; mn-major: rows of sixteen.
template <bool kMnMajor>
__device__ inline uint32_t sm80_place(uint32_t base, int row, int chunk) {
  if constexpr (kMnMajor) return base + row * 256 + ((chunk ^ (row & 7)) << 4);
  return base + row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4);
}

template <typename T, bool kMnMajor, bool kGathers>
using Sm80Copy =
    std::conditional_t<kMnMajor, MnMajorCopy<T, 128, Sm80::kDepth, Sm80::kThreads, kGathers>,
                       KMajorCopy<T, 128, Sm80::kDepth, Sm80::kThreads, kGathers>>;

template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__global__ void __launch_bounds__(Sm80::kThreads, 2)
    sm80_grouped_product(const __grid_constant__ GroupedProduct p,
                         const __grid_constant__ typename Epilogue::Params epilogue) {
  extern __shared__ __align__(128) char shared[];
  Tile tile;
  const uint32_t row_tiles = kGrouping == Grouping::kByRows ? *p.num_tiles : 0;
  if (!find_tile<kGrouping, Sm80::kColumns>(p, row_tiles, blockIdx.x, &tile)) return;

  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp_row = (thread >> 5 & 1) * 64;
  const int warp_column = (thread >> 6) * 64;
  const uint32_t base = shared_address(shared);
  Sm80Copy<T, kMnMajorA, true> copy_a;
  Sm80Copy<T, kMnMajorB, kGrouping == Grouping::kByDepth> copy_b;
  copy_a.start(p.a, tile.expert, tile.row, tile.row_end, tile.depth_end, thread);
  copy_b.start(p.b, tile.expert, tile.column, static_cast<int32_t>(p.n), tile.depth_end, thread);
  const int32_t steps = (tile.depth_end - tile.depth + Sm80::kDepth - 1) / Sm80::kDepth;

  const auto load_stage = [&](int32_t step) {
    if (step < steps) {
      const int32_t depth = tile.depth + step * Sm80::kDepth;
      const uint32_t a = base + step % Sm80::kStages * 2 * Sm80::kOperandBytes;
      const uint32_t b = a + Sm80::kOperandBytes;
      copy_a.copy(p.a, depth,
                  [a](int row, int chunk) { return sm80_place<kMnMajorA>(a, row, chunk); });
      copy_b.copy(p.b, depth,
                  [b](int row, int chunk) { return sm80_place<kMnMajorB>(b, row, chunk); });
      copy_a.prepare(p.a, depth + Sm80::kDepth);
      copy_b.prepare(p.b, depth + Sm80::kDepth);
    }
    copy_async_commit();
  };

  Epilogue::prefetch(epilogue, tile, static_cast<int32_t>(p.n), Sm80::kColumns, thread,
                     Sm80::kThreads);
  float acc[4][8][4] = {};
  copy_a.prepare(p.a, tile.depth);
  copy_b.prepare(p.b, tile.depth);
  for (int step = 0; step < Sm80::kStages - 1; ++step) load_stage(step);
  for (int32_t step = 0; step < steps; ++step) {
    copy_async_wait<Sm80::kStages - 2>();
    __syncthreads();
    load_stage(step + Sm80::kStages - 1);
    const uint32_t a = base + step % Sm80::kStages * 2 * Sm80::kOperandBytes;
    const uint32_t b = a + Sm80::kOperandBytes;
#pragma unroll
    for (int part = 0; part < Sm80::kDepth / 16; ++part) {
      uint32_t fragment_a[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // matrices: row halves first, then halves of the sum
        const int row = warp_row + 16 * i + (lane >> 3 & 1) * 8;
        const int k = part * 16 + (lane >> 4) * 8;
        load_matrices<kMnMajorA>(fragment_a[i],
                                 kMnMajorA ? sm80_place<true>(a, k + (lane & 7), row / 8)
                                           : sm80_place<false>(a, row + (lane & 7), k / 8));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // matrices: halves of the sum first, then column halves
        uint32_t fragment_b[4];
        const int column = warp_column + 16 * j + (lane >> 4) * 8;
        const int k = part * 16 + (lane >> 3 & 1) * 8;
        load_matrices<kMnMajorB>(fragment_b,
                                 kMnMajorB ? sm80_place<true>(b, k + (lane & 7), column / 8)
                                           : sm80_place<false>(b, column + (lane & 7), k / 8));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          multiply_warp<T>(acc[i][2 * j], fragment_a[i], fragment_b[0], fragment_b[1]);
          multiply_warp<T>(acc[i][2 * j + 1], fragment_a[i], fragment_b[2], fragment_b[3]);
        }
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();  // no warp reads the stages any more
  const auto stage = reinterpret_cast<float4(*)[32]>(shared + thread / 32 * kStageBytes);
  run_epilogue<Epilogue>(epilogue, tile, static_cast<int32_t>(p.n), acc, stage, [&](int i) {
    return Place{tile.row + warp_row + 16 * i, tile.column + warp_column};
  });
}

}  // namespace device

template <typename T, bool kMnMajorA, bool kMnMajorB, device::Grouping kGrouping, typename Epilogue>
void launch_sm80(const device::GroupedProduct& p, const typename Epilogue::Params& epilogue,
                 const ProductLaunch& launch) {
  using device::Sm80;
  const auto kernel = device::sm80_grouped_product<T, kMnMajorA, kMnMajorB, kGrouping, Epilogue>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Sm80::kSharedBytes),
      "sm80_grouped_product: shared memory");
  const int64_t tiles = device::max_tiles<kGrouping, Sm80::kColumns>(p, launch.max_tiles);
  check_tiles(tiles);
  const unsigned blocks = static_cast<unsigned>(tiles);
  kernel<<<blocks, Sm80::kThreads, Sm80::kSharedBytes, launch.stream>>>(p, epilogue);
  check_launch("sm80_grouped_product");
}

template <typename T, typename Epilogue>
void launch_sm80_by_rows(const device::GroupedProduct& p, const typename Epilogue::Params& epilogue,
                         const ProductLaunch& launch) {
  constexpr auto kByRows = device::Grouping::kByRows;
  launch.mn_major_b ? launch_sm80<T, false, true, kByRows, Epilogue>(p, epilogue, launch)
                    : launch_sm80<T, false, false, kByRows, Epilogue>(p, epilogue, launch);
}

// Up and hidden gradient: the plain case has its own code.
template <typename T, template <typename, bool> typename Epilogue>
void launch_sm80_gated(const device::GroupedProduct& p,
                       const typename Epilogue<T, true>::Params& epilogue,
                       const ProductLaunch& launch) {
  epilogue.rule.is_plain() ? launch_sm80_by_rows<T, Epilogue<T, true>>(p, epilogue, launch)
                           : launch_sm80_by_rows<T, Epilogue<T, false>>(p, epilogue, launch);
}

template <typename T>
const Products<T>& sm80_products() {
  static const Products<T> products = {
      true,
      false,
      launch_sm80_by_rows<T, device::RowsEpilogue<T>>,
      launch_sm80_gated<T, device::UpEpilogue>,
      launch_sm80_gated<T, device::HiddenGradientEpilogue>,
      launch_sm80<T, true, true, device::Grouping::kByDepth, device::WeightGradientEpilogue<T>>,
  };
  return products;
}

}  // namespace amoeba::kernels::cuda
