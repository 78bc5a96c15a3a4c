// Grouped products for sm_90a: wgmma fed by the copy engine.
//
// Blocks in pairs (clusters of two), one block a multiprocessor, persistent. A pair computes two
// tiles of 128 x 256 of c that mostly share their columns: then each block copies half of b's
// part to both. A block is three groups of four warps. One thread of group 0 has the copy engine
// fill stages of 48 KiB (128 x 64 of a, 256 x 64 of b); groups 1 and 2 compute 64 x 256 of c each,
// and store it through shared memory (epilogues.cuh) while stages for the next tile fill.
// 128 of a computing thread's registers are accumulators.
#pragma once

#include <algorithm>

#include "kernels/cuda/device/tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/sm90/epilogues.cuh"
#include "kernels/cuda/sm90/turns.cuh"

namespace amoeba::kernels::cuda {

namespace device {

template <typename Epilogue>
constexpr int sm90_shared_bytes() {
  constexpr int kBytes = 1024 + Epilogue::kStages * Sm90::kStageBytes + Sm90::kBarrierBytes +
                         Sm90::kComputingWarps * Epilogue::kWarpBytes;
  static_assert(kBytes <= 227 * 1024);
  return kBytes;
}

struct PairTile {
  Tile tile;     // of this block; past the last one: that of the other without rows
  bool shares;   // expert and columns are those of the other block
  bool is_wide;  // more than kHalf columns
};

// Both blocks of a pair take tiles of equal depth. Tiles are numbered as find_tile does.
template <Grouping kGrouping>
__device__ bool find_pair(const GroupedProduct& p, uint32_t row_tiles, uint32_t index,
                          uint32_t rank, PairTile* found) {
  const auto column_tiles = static_cast<uint32_t>(num_column_tiles<Sm90::kColumns>(p));
  Tile& tile = found->tile;
  if constexpr (kGrouping == Grouping::kByDepth) {
    const auto tiles_m = static_cast<uint32_t>((p.m + kTileRows - 1) / kTileRows);
    const uint32_t tiles = tiles_m * column_tiles;
    const uint32_t pairs = (tiles + 1) / 2;
    const uint32_t expert = index / pairs;
    if (expert >= static_cast<uint32_t>(p.num_experts)) return false;
    const uint32_t first = (index - expert * pairs) * 2;
    const bool is_past = first + rank >= tiles;
    const uint32_t mine = is_past ? first : first + rank;
    tile.expert = static_cast<int32_t>(expert);
    tile.row_end = static_cast<int32_t>(p.m);
    tile.row = is_past ? tile.row_end : static_cast<int32_t>(mine % tiles_m * kTileRows);
    tile.column = static_cast<int32_t>(mine / tiles_m * Sm90::kColumns);
    tile.depth = p.offsets[expert];
    tile.depth_end = p.offsets[expert + 1];
    found->shares = first + 1 >= tiles || first / tiles_m == (first + 1) / tiles_m;
  } else {
    const uint32_t pairs = (row_tiles + 1) / 2;
    const uint32_t group = index / (Sm90::kRasterPairs * column_tiles) * Sm90::kRasterPairs;
    if (group >= pairs) return false;
    const uint32_t size = min(Sm90::kRasterPairs, pairs - group);
    const uint32_t in_group = index - group * column_tiles;
    if (in_group >= size * column_tiles) return false;
    const uint32_t first = (group + in_group % size) * 2;
    const bool is_past = first + rank >= row_tiles;
    const int2 mine = p.tiles[is_past ? first : first + rank];
    const int2 other = p.tiles[min(first + 1 - rank, row_tiles - 1)];
    tile.expert = mine.x;
    tile.row_end = p.offsets[mine.x + 1];
    tile.row = is_past ? tile.row_end : mine.y;
    tile.column = static_cast<int32_t>(in_group / size * Sm90::kColumns);
    tile.depth = 0;
    tile.depth_end = static_cast<int32_t>(p.k);
    found->shares = mine.x == other.x;
  }
  found->is_wide = p.n - tile.column > Sm90::kHalf;
  return true;
}

// ---- group 0: one thread

// A box of an operand from `row` and `column` on, as stored.
template <bool kToPair>
__device__ inline void copy_operand(uint32_t to, const CUtensorMap& map, Pairing pairing,
                                    uint32_t barrier, int32_t column, int32_t row, int32_t expert) {
  if (pairing == Pairing::kRowBlocks) {
    copy_box<kToPair>(to, &map, barrier, column, 0, 0, row / 16, expert);
  } else if (pairing == Pairing::kColumnBlocks) {
    copy_box<kToPair>(to, &map, barrier, column_in_half(column), row, half_of(column), expert, 0);
  } else {
    copy_box<kToPair>(to, &map, barrier, column, row, expert);
  }
}

// kHalf columns of b, by 64 columns where they lie along a row.
template <bool kMnMajor, bool kToPair>
__device__ void copy_half(const CUtensorMap& map, Pairing pairing, int32_t expert, int32_t first,
                          int32_t depth, uint32_t to, uint32_t barrier) {
#pragma unroll
  for (int i = 0; i < (kMnMajor ? Sm90::kHalf / 64 : 1); ++i) {
    copy_operand<kToPair>(to + i * Sm90::kBlockBytes, map, pairing, barrier,
                          kMnMajor ? first + 64 * i : depth, kMnMajor ? depth : first, expert);
  }
}

template <bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__device__ void copy_tiles(const GroupedProduct& p, const CUtensorMap& map_a,
                           const CUtensorMap& map_b, const typename Epilogue::Params& params,
                           uint32_t row_tiles, uint32_t rank,
                           Sm90Pipeline<Epilogue::kStages> pipeline, Sm90Turns<kGrouping> turns) {
  PairTile found;
  for (uint32_t index = turns.first(); find_pair<kGrouping>(p, row_tiles, index, rank, &found);
       index = turns.next_to_copy(index, rank)) {
    const Tile& tile = found.tile;
    const int32_t expert = kGrouping == Grouping::kByDepth ? 0 : tile.expert;
    const int num_halves = found.is_wide ? 2 : 1;
    for (int32_t depth = tile.depth; depth < tile.depth_end; depth += Sm90::kDepth) {
      wait(pipeline.empty(), pipeline.parity ^ 1);
      const uint32_t full = pipeline.full();
      const uint32_t a = pipeline.stage();
      arrive_expecting(full, Sm90::kBytesA + num_halves * Sm90::kBytesHalf);
      if constexpr (kMnMajorA) {
#pragma unroll
        for (int i = 0; i < kTileRows / 64; ++i) {
          copy_operand<false>(a + i * Sm90::kBlockBytes, map_a, p.a.pairing, full,
                              tile.row + 64 * i, depth, 0);
        }
      } else {
        copy_operand<false>(a, map_a, p.a.pairing, full, depth, tile.row, 0);
      }
      for (int half = 0; half < num_halves; ++half) {
        const int32_t column = tile.column + half * Sm90::kHalf;
        const uint32_t b = a + Sm90::kBytesA + half * Sm90::kBytesHalf;
        if (!found.shares) {
          copy_half<kMnMajorB, false>(map_b, p.b.pairing, expert, column, depth, b, full);
        } else if (half == static_cast<int>(rank)) {
          copy_half<kMnMajorB, true>(map_b, p.b.pairing, expert, column, depth, b, full);
        }
      }
      pipeline.advance();
    }
    if constexpr (Epilogue::kReadsStages) {
      Epilogue::copy(params, tile, static_cast<int32_t>(p.n), pipeline);
    }
  }
}

// ---- groups 1 and 2

// Zeros the rows of the sum from `valid` on in this group's part of both operands, both mn-major:
// they are another expert's, or nobody's.
__device__ inline void clear_tail(uint32_t stage, int group, int32_t valid) {
  const int thread = threadIdx.x % Sm90::kGroupThreads;
  const int32_t chunks = (Sm90::kDepth - valid) * 8;
  const uint32_t blocks[3] = {stage + group * Sm90::kBlockBytes,
                              stage + Sm90::kBytesA + (2 * group) * Sm90::kBlockBytes,
                              stage + Sm90::kBytesA + (2 * group + 1) * Sm90::kBlockBytes};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    for (int32_t chunk = thread; chunk < chunks; chunk += Sm90::kGroupThreads) {
      const float zeros[4] = {0, 0, 0, 0};
      store_shared<0>(blocks[i] + valid * 128 + chunk * 16, zeros);
    }
  }
  fence_shared_for_products();
  // Groups reach it in different copies of the code: one may have no rows.
  asm volatile("barrier.sync 1, %0;" ::"n"(2 * Sm90::kGroupThreads) : "memory");
}

// The sum over a tile's depth. kColumns == 0: no rows, but the stages pass.
template <typename T, int kColumns, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, int kStages,
          typename Begin>
__device__ void multiply_tile(const Tile& tile, int group, Sm90Pipeline<kStages>& pipeline,
                              float (&acc)[4][8][4], const Begin& begin) {
  constexpr uint32_t kAdvanceA = (kMnMajorA ? 16 * 128 : 16 * 2) >> 4;  // 16 of the sum
  constexpr uint32_t kAdvanceB = (kMnMajorB ? 16 * 128 : 16 * 2) >> 4;
  if constexpr (kColumns > 0) {
#pragma unroll
    for (int i = 0; i < 128; ++i) acc[i / 32][i / 4 % 8][i % 4] = 0;
  }
  uint32_t before = 0;
  for (int32_t depth = tile.depth; depth < tile.depth_end; depth += Sm90::kDepth) {
    wait(pipeline.full(), pipeline.parity);
    if constexpr (kGrouping == Grouping::kByDepth) {
      const int32_t left = tile.depth_end - depth;
      if (left < Sm90::kDepth) clear_tail(pipeline.stage(), group, left);
    }
    if constexpr (kColumns > 0) {
      // Both storage orders keep 64 rows (or columns) of a in 8 KiB.
      const uint64_t a =
          matrix_descriptor(pipeline.stage() + group * Sm90::kBlockBytes, Sm90::kBlockBytes);
      const uint64_t b = matrix_descriptor(pipeline.stage() + Sm90::kBytesA, Sm90::kBlockBytes);
      begin_products();
#pragma unroll
      for (int k = 0; k < Sm90::kDepth / 16; ++k) {
        multiply_group<T, kColumns, kMnMajorA, kMnMajorB>(acc, a + k * kAdvanceA,
                                                          b + k * kAdvanceB);
      }
      commit_products();
      wait_products<1>();  // those of the step before are done, and its stage is free
      if (depth > tile.depth) {
        release(pipeline, before);
      } else {
        begin();
      }
      before = pipeline.index;
    } else {
      if (depth == tile.depth) begin();
      release(pipeline, pipeline.index);
    }
    pipeline.advance();
  }
  if constexpr (kColumns > 0) {
    wait_products<0>();
    if (tile.depth < tile.depth_end) release(pipeline, before);
  }
}

template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__device__ void compute_tiles(const GroupedProduct& p, const typename Epilogue::Params& params,
                              uint32_t row_tiles, uint32_t rank,
                              Sm90Pipeline<Epilogue::kStages> pipeline, Sm90Turns<kGrouping> turns,
                              const WarpSpace& space) {
  const int group = threadIdx.x / Sm90::kGroupThreads - 1;
  const int warp = threadIdx.x / 32 % 4;
  const auto n = static_cast<int32_t>(p.n);
  Epilogue epilogue(params, space);
  PairTile found;
  for (uint32_t index = turns.first(); find_pair<kGrouping>(p, row_tiles, index, rank, &found);
       index = turns.next_to_compute(index)) {
    const Tile& tile = found.tile;
    const int32_t row = tile.row + 64 * group + kPieceRows * warp;
    float acc[4][8][4];
    const auto begin = [&] {
      if constexpr (Epilogue::kReadsStages) epilogue.begin(pipeline);
    };
    if (tile.row + 64 * group >= tile.row_end) {
      multiply_tile<T, 0, kMnMajorA, kMnMajorB, kGrouping>(tile, group, pipeline, acc, begin);
    } else if (found.is_wide) {
      multiply_tile<T, Sm90::kColumns, kMnMajorA, kMnMajorB, kGrouping>(tile, group, pipeline, acc,
                                                                        begin);
    } else {
      multiply_tile<T, Sm90::kHalf, kMnMajorA, kMnMajorB, kGrouping>(tile, group, pipeline, acc,
                                                                     begin);
    }
    if constexpr (Epilogue::kReadsStages) {
      epilogue.run(tile, row, n, acc, pipeline);
    } else {
      epilogue.run(tile, row, n, acc);
    }
  }
  if (threadIdx.x % 32 == 0) wait_stores_read<0>();
}

template <typename T, bool kMnMajorA, bool kMnMajorB, Grouping kGrouping, typename Epilogue>
__global__ void __cluster_dims__(Sm90::kPair, 1, 1) __launch_bounds__(Sm90::kThreads, 1)
    sm90_grouped_product(const __grid_constant__ GroupedProduct p,
                         const __grid_constant__ CUtensorMap map_a,
                         const __grid_constant__ CUtensorMap map_b,
                         const __grid_constant__ typename Epilogue::Params epilogue) {
  constexpr int kStages = Epilogue::kStages;
  extern __shared__ char shared[];
  Sm90Pipeline<kStages> pipeline;
  pipeline.stages = (shared_address(shared) + 1023) / 1024 * 1024;
  pipeline.barriers = pipeline.stages + kStages * Sm90::kStageBytes;
  const Sm90Turns<kGrouping> turns(pipeline.barriers + Sm90::kBarrierBytes / 2, p.drawn);
  if (threadIdx.x == 0) {
    turns.init();
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(pipeline.barriers + stage * 8, 1);
      init_barrier(pipeline.empty(stage), Sm90::kPair * Sm90::kComputingWarps);
    }
    fence_shared_for_products();
  }
  synchronize_pair();
  const uint32_t rank = block_rank();
  const uint32_t row_tiles = kGrouping == Grouping::kByRows ? *p.num_tiles : 0;
  if (threadIdx.x < Sm90::kGroupThreads) {
    give_registers<Sm90::kCopyRegisters>();
    if (threadIdx.x == 0) {
      copy_tiles<kMnMajorA, kMnMajorB, kGrouping, Epilogue>(p, map_a, map_b, epilogue, row_tiles,
                                                            rank, pipeline, turns);
    }
  } else {
    take_registers<Sm90::kComputeRegisters>();
    const int warp = threadIdx.x / 32 - Sm90::kGroupThreads / 32;
    WarpSpace space;
    space.address = pipeline.barriers + Sm90::kBarrierBytes + warp * Epilogue::kWarpBytes;
    space.bytes = shared + (space.address - shared_address(shared));
    compute_tiles<T, kMnMajorA, kMnMajorB, kGrouping, Epilogue>(p, epilogue, row_tiles, rank,
                                                                pipeline, turns, space);
  }
  __syncwarp();
  synchronize_pair();  // the other block may still arrive here
}

}  // namespace device

// In the order of halves the last 64 columns of each are filled up with zeros.
inline device::GroupedProduct fill_halves(device::GroupedProduct p, device::Grouping grouping,
                                          bool mn_major_b) {
  const auto fill = [](const device::Matrix& matrix, int64_t& columns) {
    if (matrix.pairing != device::Pairing::kColumnBlocks) return;
    columns = ceil_div(columns, 2 * device::kHalvesColumns) * 2 * device::kHalvesColumns;
  };
  fill(p.b, mn_major_b ? p.n : p.k);
  if (grouping == device::Grouping::kByDepth) fill(p.a, p.m);
  return p;
}

template <typename T, bool kMnMajorA, bool kMnMajorB, device::Grouping kGrouping, typename Epilogue>
void launch_sm90(const device::GroupedProduct& p, const typename Epilogue::Arguments& arguments,
                 const ProductLaunch& launch) {
  using device::Sm90;
  constexpr bool kByRows = kGrouping == device::Grouping::kByRows;
  constexpr DType kDType = kDTypeOf<T>;
  constexpr int kSharedBytes = device::sm90_shared_bytes<Epilogue>();
  const auto kernel = device::sm90_grouped_product<T, kMnMajorA, kMnMajorB, kGrouping, Epilogue>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "sm90_grouped_product: shared memory");
  const int64_t tiles = device::max_tiles<kGrouping, Sm90::kColumns>(p, launch.max_tiles + 1);
  check_tiles(tiles + p.num_experts);
  const int64_t blocks = std::min<int64_t>(ceil_div(tiles, Sm90::kPair) * Sm90::kPair,
                                           launch.multiprocessors / Sm90::kPair * Sm90::kPair);
  CUtensorMap map_a = {};
  CUtensorMap map_b = {};
  if constexpr (kByRows) {
    map_a = make_tensor_map(p.a, kDType, 1, p.m, p.k, device::kTileRows);
    map_b = make_tensor_map(p.b, kDType, p.num_experts, kMnMajorB ? p.k : p.n,
                            kMnMajorB ? p.n : p.k, kMnMajorB ? Sm90::kDepth : Sm90::kHalf);
  } else if (p.k > 0) {
    map_a = make_tensor_map(p.a, kDType, 1, p.k, p.m, Sm90::kDepth);
    map_b = make_tensor_map(p.b, kDType, 1, p.k, p.n, Sm90::kDepth);
  }
  kernel<<<static_cast<unsigned>(blocks), Sm90::kThreads, kSharedBytes, launch.stream>>>(
      fill_halves(p, kGrouping, kMnMajorB), map_a, map_b, Epilogue::make_params(p, arguments));
  check_launch("sm90_grouped_product");
}

template <typename T, typename Epilogue>
void launch_sm90_by_rows(const device::GroupedProduct& p,
                         const typename Epilogue::Arguments& arguments,
                         const ProductLaunch& launch) {
  constexpr auto kByRows = device::Grouping::kByRows;
  launch.mn_major_b ? launch_sm90<T, false, true, kByRows, Epilogue>(p, arguments, launch)
                    : launch_sm90<T, false, false, kByRows, Epilogue>(p, arguments, launch);
}

// Up and hidden gradient: the plain case has its own code.
template <typename Arguments>
bool is_plain(const Arguments& arguments) {
  return arguments.rule.is_plain() && arguments.z.scales == nullptr;
}

template <typename T>
void launch_sm90_up(const device::GroupedProduct& p, const typename Products<T>::Up& arguments,
                    const ProductLaunch& launch) {
  constexpr auto kByRows = device::Grouping::kByRows;
  if (!is_plain(arguments)) {
    using General = device::Sm90Strips<device::UpEpilogue<T, false>>;
    launch_sm90_by_rows<T, General>(p, arguments, launch);
  } else if (launch.mn_major_b) {  // without pairs gate and up are then apart by column
    launch_sm90<T, false, true, kByRows, device::Sm90Up<T, true>>(p, arguments, launch);
  } else {
    launch_sm90<T, false, false, kByRows, device::Sm90Up<T, false>>(p, arguments, launch);
  }
}

template <typename T>
void launch_sm90_hidden_gradient(const device::GroupedProduct& p,
                                 const typename Products<T>::HiddenGradient& arguments,
                                 const ProductLaunch& launch) {
  if (!is_plain(arguments)) {
    using General = device::Sm90Strips<device::HiddenGradientEpilogue<T, false>>;
    launch_sm90_by_rows<T, General>(p, arguments, launch);
  } else if (arguments.rule.halves) {
    launch_sm90_by_rows<T, device::Sm90HiddenGradient<T, true>>(p, arguments, launch);
  } else {
    launch_sm90_by_rows<T, device::Sm90HiddenGradient<T, false>>(p, arguments, launch);
  }
}

template <typename T, typename Epilogue>
void launch_sm90_by_depth(const device::GroupedProduct& p,
                          const typename Epilogue::Arguments& arguments,
                          const ProductLaunch& launch) {
  launch_sm90<T, true, true, device::Grouping::kByDepth, Epilogue>(p, arguments, launch);
}

template <typename T, typename Out>
void launch_sm90_weight_gradient_as(const device::GroupedProduct& p,
                                    const typename Products<T>::WeightGradient& arguments,
                                    const ProductLaunch& launch) {
  using Stored = device::Sm90WeightGradient<T, Out, false>;
  using Added = device::Sm90WeightGradient<T, Out, true>;
  using General = device::Sm90Strips<device::WeightGradientEpilogue<T>>;
  !Stored::takes(p, arguments) ? launch_sm90_by_depth<T, General>(p, arguments, launch)
  : arguments.accumulate       ? launch_sm90_by_depth<T, Added>(p, arguments, launch)
                               : launch_sm90_by_depth<T, Stored>(p, arguments, launch);
}

template <typename T>
void launch_sm90_weight_gradient(const device::GroupedProduct& p,
                                 const typename Products<T>::WeightGradient& arguments,
                                 const ProductLaunch& launch) {
  arguments.fp32 ? launch_sm90_weight_gradient_as<T, float>(p, arguments, launch)
                 : launch_sm90_weight_gradient_as<T, T>(p, arguments, launch);
}

template <typename T>
const Products<T>& sm90_products() {
  static const Products<T> products = {
      false,
      true,
      launch_sm90_by_rows<T, device::Sm90Rows<T>>,
      launch_sm90_up<T>,
      launch_sm90_hidden_gradient<T>,
      launch_sm90_weight_gradient<T>,
  };
  return products;
}

}  // namespace amoeba::kernels::cuda
