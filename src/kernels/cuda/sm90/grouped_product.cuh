// Grouped products for sm_90a: wgmma fed by a group of four warps that copies.
//
// A persistent block of three groups of four warps on every multiprocessor. Group 0 copies both
// operands into four stages of 48 KiB (128 x 64 of a, 256 x 64 of b): rows of tokens, gathered or
// not, with cp.async, whole experts' weights with the copy engine. Groups 1 and 2 compute 64 x 256
// of c each and store it while group 0 copies for the next tile.
// 128 of a computing thread's registers are accumulators.
#pragma once

#include "kernels/cuda/device/epilogues.cuh"
#include "kernels/cuda/device/tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/sm90/tensor_map.h"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace amoeba::kernels::cuda {

namespace device {

struct Sm90 {
  static constexpr int kColumns = 256;
  static constexpr int kDepth = 64;
  static constexpr int kStages = 4;
  static constexpr int kGroupThreads = 128;
  static constexpr int kThreads = 3 * kGroupThreads;
  static constexpr int kComputingWarps = 8;
  static constexpr int kBytesA = kTileRows * kDepth * 2;
  static constexpr int kBytesB = kColumns * kDepth * 2;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kBlockBytes = 64 * kDepth * 2;  // 64 columns of an mn-major operand
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kSharedBytes =
      1024 + kStages * kStageBytes + kBarrierBytes + kComputingWarps * device::kStageBytes;
  // A copying thread says that a stage is full when its copies of that stage have landed, this many
  // stages later: so many are under way.
  static constexpr int kLag = 2;
};

// Registers of a thread that copies and one that computes; together what the block starts with.
template <Grouping kGrouping>
struct Sm90Registers {
  static constexpr int kCopy = kGrouping == Grouping::kByRows ? 56 : 104;
  static constexpr int kCompute = kGrouping == Grouping::kByRows ? 224 : 200;
  static_assert(kCopy + 2 * kCompute <= 3 * 168);
};

// Where a chunk lies in an operand of a stage: rows of 128 bytes with the 128-byte swizzle,
// mn-major in blocks of 64 columns.
template <bool kMnMajor>
__device__ inline uint32_t sm90_place(uint32_t base, int row, int chunk) {
  const int block = kMnMajor ? chunk / 8 : 0;
  return base + block * Sm90::kBlockBytes + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

template <typename T, int kTile, bool kMnMajor, bool kGathers>
using Sm90Copy =
    std::conditional_t<kMnMajor, MnMajorCopy<T, kTile, Sm90::kDepth, Sm90::kGroupThreads, kGathers>,
                       KMajorCopy<T, kTile, Sm90::kDepth, Sm90::kGroupThreads, kGathers>>;

// Stages of both sides: `count` steps so far.
struct Sm90Pipeline {
  uint32_t stages;    // shared addresses
  uint32_t barriers;  // full [kStages], empty [kStages]
  uint32_t count = 0;

  __device__ uint32_t full(uint32_t step) const { return barriers + step % Sm90::kStages * 8; }
  __device__ uint32_t empty(uint32_t step) const { return full(step) + Sm90::kStages * 8; }
  __device__ uint32_t stage(uint32_t step) const {
    return stages + step % Sm90::kStages * Sm90::kStageBytes;
  }
  static __device__ uint32_t parity(uint32_t step) { return step / Sm90::kStages & 1; }
};

// ---- group 0

// kColumns (mn-major) or 256 rows (k-major) of an operand of a stage by the copy engine.
template <bool kMnMajor, int kColumns>
__device__ void copy_boxes(const CUtensorMap& map, Pairing pairing, int32_t expert, int32_t first,
                           int32_t depth, uint32_t to, uint32_t barrier) {
#pragma unroll
  for (int i = 0; i < (kMnMajor ? kColumns / 64 : 1); ++i) {
    const int32_t column = kMnMajor ? first + 64 * i : depth;
    const int32_t row = kMnMajor ? depth : first;
    if (pairing == Pairing::kRowBlocks) {
      copy_box(to + i * Sm90::kBlockBytes, &map, barrier, column, 0, 0, row / 16, expert);
    } else {
      copy_box(to + i * Sm90::kBlockBytes, &map, barrier, column, row, expert);
    }
  }
}

// By depth, rows past an expert's end are another's or nobody's: only whole steps may come by the
// copy engine, and only rows without an index.
template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping>
__device__ void copy_tiles(const GroupedProduct& p, const CUtensorMap& map_a,
                           const CUtensorMap& map_b, uint32_t row_tiles, Sm90Pipeline pipeline) {
  constexpr bool kByDepth = kGrouping == Grouping::kByDepth;
  const int thread = threadIdx.x;
  Sm90Copy<T, kTileRows, kMnMajorA, true> copy_a;
  Sm90Copy<T, Sm90::kColumns, kMnMajorB, true> copy_b;
  const auto announce = [&](uint32_t step) {
    fence_shared_for_products();
    arrive(pipeline.full(step));
  };
  Tile tile;
  for (uint32_t index = blockIdx.x;
       find_tile<kGrouping, Sm90::kColumns>(p, row_tiles, index, &tile); index += gridDim.x) {
    copy_a.start(p.a, tile.expert, tile.row, tile.row_end, tile.depth_end, thread);
    copy_a.prepare(p.a, tile.depth);
    if constexpr (kByDepth) {
      copy_b.start(p.b, tile.expert, tile.column, static_cast<int32_t>(p.n), tile.depth_end,
                   thread);
      copy_b.prepare(p.b, tile.depth);
    }
    for (int32_t depth = tile.depth; depth < tile.depth_end; depth += Sm90::kDepth) {
      const uint32_t step = pipeline.count++;
      wait(pipeline.empty(step), Sm90Pipeline::parity(step) ^ 1);
      const uint32_t a = pipeline.stage(step);
      const uint32_t b = a + Sm90::kBytesA;
      const bool is_whole = kByDepth && depth + Sm90::kDepth <= tile.depth_end;
      const bool boxes_a = is_whole && p.a.row_index == nullptr;
      const bool boxes_b = !kByDepth || (is_whole && p.b.row_index == nullptr);
      if (thread == 0) {
        const uint32_t full = pipeline.full(step);
        arrive_expecting(full, (boxes_a ? Sm90::kBytesA : 0) + (boxes_b ? Sm90::kBytesB : 0));
        if (boxes_b) {
          copy_boxes<kMnMajorB, Sm90::kColumns>(map_b, p.b.pairing, kByDepth ? 0 : tile.expert,
                                                tile.column, depth, b, full);
        }
        if constexpr (kByDepth) {
          if (boxes_a) {
            copy_boxes<kMnMajorA, kTileRows>(map_a, Pairing::kNone, 0, tile.row, depth, a, full);
          }
        }
      }
      if constexpr (kByDepth) {
        if (!boxes_b) {
          copy_b.copy(p.b, depth,
                      [b](int row, int chunk) { return sm90_place<kMnMajorB>(b, row, chunk); });
        }
      }
      if (!boxes_a) {
        copy_a.copy(p.a, depth,
                    [a](int row, int chunk) { return sm90_place<kMnMajorA>(a, row, chunk); });
      }
      copy_async_commit();
      copy_a.prepare(p.a, depth + Sm90::kDepth);
      if constexpr (kByDepth) copy_b.prepare(p.b, depth + Sm90::kDepth);
      if (step >= Sm90::kLag) {
        copy_async_wait<Sm90::kLag>();
        announce(step - Sm90::kLag);
      }
    }
  }
  copy_async_wait<0>();
  for (uint32_t left = min(pipeline.count, uint32_t{Sm90::kLag}); left > 0; --left) {
    announce(pipeline.count - left);
  }
}

// ---- groups 1 and 2

template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__device__ void compute_tiles(const GroupedProduct& p, const typename Epilogue::Params& epilogue,
                              uint32_t row_tiles, Sm90Pipeline pipeline, char* stages) {
  const auto stage = reinterpret_cast<float4(*)[32]>(
      stages + (threadIdx.x / 32 - Sm90::kGroupThreads / 32) * kStageBytes);
  const int group = threadIdx.x / Sm90::kGroupThreads - 1;
  const int warp = threadIdx.x / 32 % 4;
  const bool is_first_lane = threadIdx.x % 32 == 0;
  // Both storage orders keep 64 rows (or columns) of a in 8 KiB.
  const uint32_t offset_a = group * Sm90::kBlockBytes;
  constexpr uint32_t kAdvanceA = (kMnMajorA ? 16 * 128 : 16 * 2) >> 4;  // 16 of the sum
  constexpr uint32_t kAdvanceB = (kMnMajorB ? 16 * 128 : 16 * 2) >> 4;
  Tile tile;
  for (uint32_t index = blockIdx.x;
       find_tile<kGrouping, Sm90::kColumns>(p, row_tiles, index, &tile); index += gridDim.x) {
    const int32_t first_row = tile.row + 64 * group;
    const uint32_t begin = pipeline.count;
    const uint32_t end =
        begin +
        static_cast<uint32_t>((tile.depth_end - tile.depth + Sm90::kDepth - 1) / Sm90::kDepth);
    pipeline.count = end;
    if (first_row >= tile.row_end) {  // the whole group has no row
      for (uint32_t step = begin; step < end; ++step) {
        wait(pipeline.full(step), Sm90Pipeline::parity(step));
        if (is_first_lane) arrive(pipeline.empty(step));
      }
      continue;
    }
    Epilogue::prefetch(epilogue, tile, static_cast<int32_t>(p.n), Sm90::kColumns,
                       threadIdx.x - Sm90::kGroupThreads, 2 * Sm90::kGroupThreads);
    float acc[4][8][4];
    if (begin == end) {
#pragma unroll
      for (int i = 0; i < 128; ++i) acc[i / 32][i / 4 % 8][i % 4] = 0;
    }
    for (uint32_t step = begin; step < end; ++step) {
      wait(pipeline.full(step), Sm90Pipeline::parity(step));
      const uint64_t a = matrix_descriptor(pipeline.stage(step) + offset_a, Sm90::kBlockBytes);
      const uint64_t b = matrix_descriptor(pipeline.stage(step) + Sm90::kBytesA, Sm90::kBlockBytes);
      begin_products();
#pragma unroll
      for (int k = 0; k < Sm90::kDepth / 16; ++k) {
        multiply_group<T, kMnMajorA, kMnMajorB>(acc, a + k * kAdvanceA, b + k * kAdvanceB,
                                                step > begin || k > 0);
      }
      commit_products();
      wait_products<1>();  // those of the step before are done, and its stage is free
      if (step > begin && is_first_lane) arrive(pipeline.empty(step - 1));
    }
    wait_products<0>();
    if (end > begin && is_first_lane) arrive(pipeline.empty(end - 1));
    run_epilogue<Epilogue, true>(epilogue, tile, static_cast<int32_t>(p.n), acc, stage, [&](int i) {
      return Place{first_row + 16 * warp, tile.column + kPieceColumns * i};
    });
  }
}

template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__global__ void __launch_bounds__(Sm90::kThreads, 1)
    sm90_grouped_product(const __grid_constant__ GroupedProduct p,
                         const __grid_constant__ CUtensorMap map_a,
                         const __grid_constant__ CUtensorMap map_b,
                         const __grid_constant__ typename Epilogue::Params epilogue) {
  extern __shared__ char shared[];
  Sm90Pipeline pipeline;
  pipeline.stages = (shared_address(shared) + 1023) / 1024 * 1024;
  pipeline.barriers = pipeline.stages + Sm90::kStages * Sm90::kStageBytes;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Sm90::kStages; ++stage) {
      init_barrier(pipeline.full(stage), Sm90::kGroupThreads + 1);
      init_barrier(pipeline.empty(stage), Sm90::kComputingWarps);
    }
    fence_shared_for_products();
  }
  __syncthreads();
  const uint32_t row_tiles = kGrouping == Grouping::kByRows ? *p.num_tiles : 0;
  if (threadIdx.x < Sm90::kGroupThreads) {
    give_registers<Sm90Registers<kGrouping>::kCopy>();
    copy_tiles<T, kMnMajorA, kMnMajorB, kGrouping>(p, map_a, map_b, row_tiles, pipeline);
  } else {
    take_registers<Sm90Registers<kGrouping>::kCompute>();
    compute_tiles<T, kMnMajorA, kMnMajorB, kGrouping, Epilogue>(
        p, epilogue, row_tiles, pipeline,
        shared + (pipeline.barriers - shared_address(shared)) + Sm90::kBarrierBytes);
  }
}

}  // namespace device

template <typename T, bool kMnMajorA, bool kMnMajorB, device::Grouping kGrouping, typename Epilogue>
void launch_sm90(const device::GroupedProduct& p, const typename Epilogue::Params& epilogue,
                 const ProductLaunch& launch) {
  using device::Sm90;
  const auto kernel = device::sm90_grouped_product<T, kMnMajorA, kMnMajorB, kGrouping, Epilogue>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Sm90::kSharedBytes),
      "sm90_grouped_product: shared memory");
  const int64_t tiles = device::max_tiles<kGrouping, Sm90::kColumns>(p, launch.max_tiles);
  check_tiles(tiles);
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(tiles, launch.multiprocessors));
  constexpr bool kIsBf16 = std::is_same_v<T, device::bf16>;
  CUtensorMap map_a = {};
  CUtensorMap map_b = {};
  if constexpr (kGrouping == device::Grouping::kByRows) {
    map_b = make_tensor_map(p.b, kIsBf16, p.num_experts, kMnMajorB ? p.k : p.n,
                            kMnMajorB ? p.n : p.k, kMnMajorB ? Sm90::kDepth : Sm90::kColumns);
  } else if (p.k > 0) {
    map_a = make_tensor_map(p.a, kIsBf16, 1, p.k, p.m, Sm90::kDepth);
    map_b = make_tensor_map(p.b, kIsBf16, 1, p.k, p.n, Sm90::kDepth);
  }
  kernel<<<blocks, Sm90::kThreads, Sm90::kSharedBytes, launch.stream>>>(p, map_a, map_b, epilogue);
  check_launch("sm90_grouped_product");
}

template <typename T, typename Epilogue>
void launch_sm90_by_rows(const device::GroupedProduct& p, const typename Epilogue::Params& epilogue,
                         const ProductLaunch& launch) {
  constexpr auto kByRows = device::Grouping::kByRows;
  launch.mn_major_b ? launch_sm90<T, false, true, kByRows, Epilogue>(p, epilogue, launch)
                    : launch_sm90<T, false, false, kByRows, Epilogue>(p, epilogue, launch);
}

// Up and hidden gradient: the plain case has its own code.
template <typename T, template <typename, bool> typename Epilogue>
void launch_sm90_gated(const device::GroupedProduct& p,
                       const typename Epilogue<T, true>::Params& epilogue,
                       const ProductLaunch& launch) {
  epilogue.rule.is_plain() ? launch_sm90_by_rows<T, Epilogue<T, true>>(p, epilogue, launch)
                           : launch_sm90_by_rows<T, Epilogue<T, false>>(p, epilogue, launch);
}

template <typename T>
const Products<T>& sm90_products() {
  static const Products<T> products = {
      launch_sm90_by_rows<T, device::RowsEpilogue<T>>,
      launch_sm90_gated<T, device::UpEpilogue>,
      launch_sm90_gated<T, device::HiddenGradientEpilogue>,
      launch_sm90<T, true, true, device::Grouping::kByDepth, device::WeightGradientEpilogue<T>>,
  };
  return products;
}

}  // namespace amoeba::kernels::cuda
