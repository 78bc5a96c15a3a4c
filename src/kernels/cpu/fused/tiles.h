// The product by tiles: 16 x 16 sums in one register, to which one instruction adds 16 rows of 16
// pairs times 16 pairs of 16 columns. A panel's units are such pairs, so panels are what tiles of
// columns are loaded from; tiles of rows are loaded from weights where they lie, or packed output
// by output.
//
// `F::Tiles` names the tile instructions, of the CPU or emulated:
//   configure(shapes), release(): around all others, on each thread
//   zero<t>(), load<t>(from, stride), store<t>(to, stride): one register
//   multiply_add<sum, left, right>(): sum += left * right
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/weight_gradients.h"

namespace amoeba::kernels::cpu {

// The operand of LDTILECFG (Intel 64 and IA-32 Architectures Software Developer's Manual, volume
// 1, "Programming with Intel AMX").
struct alignas(64) TileShapes {
  uint8_t palette = 1;  // 8 registers of up to 16 rows of 64 bytes
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

constexpr int64_t kTileRows = 16, kTileRowBytes = 64;
constexpr TileShapes kFullTiles = {.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                   .num_rows = {16, 16, 16, 16, 16, 16, 16, 16}};

// A strip is 2 tiles of outputs and a block at most 2 tiles of lanes: 4 registers of sums, 2 of
// weights, 2 of lanes. Each tile that is loaded is used twice.
template <typename F>
requires requires { typename F::Tiles; }
struct Product<F> : VectorProduct<F> {
  using Base = VectorProduct<F>;
  using Tiles = typename F::Tiles;
  using typename Base::Segment;
  using typename Base::Side;
  using typename Base::Sums;
  using typename Base::V;
  using typename Base::Vec;
  static constexpr int64_t kUnits = kTileRowBytes / Base::kUnitBytes;  // of a tile's sum over k
  static constexpr int kLeft = 4, kRight = 6;  // registers; sum (i, v) is register 2 i + v
  static constexpr bool kPacksOutputs = false;
  // Fewer are left to vectors.
  static constexpr int64_t kMinUnits = kUnits / 2;
  static_assert(Base::kLanes == kTileRows && Base::kStrip == 2 * kTileRows);
  static_assert(Base::kMaxVectors == 2 && F::kValuesPerUnit == 2);

  // The units of an output lie side by side in `left`, which is what tiles of rows are.
  template <int64_t kVectors>
  static void add_tiles(const char* left, int64_t left_stride, const char* right,
                        int64_t right_stride) {
    Tiles::template load<kRight>(right, right_stride);
    Tiles::template load<kLeft>(left, left_stride);
    Tiles::template multiply_add<0, kLeft, kRight>();
    Tiles::template load<kLeft + 1>(left + kTileRows * left_stride, left_stride);
    Tiles::template multiply_add<2, kLeft + 1, kRight>();
    if constexpr (kVectors == 2) {
      Tiles::template load<kRight + 1>(right + kTileRowBytes, right_stride);
      Tiles::template multiply_add<1, kLeft, kRight + 1>();
      Tiles::template multiply_add<3, kLeft + 1, kRight + 1>();
    }
  }

  // The last units of a sum, copied between zeros: what follows them may be anything.
  template <int64_t kVectors>
  static void add_rest(const char* left, int64_t left_stride, const char* right,
                       int64_t right_stride, int64_t count) {
    alignas(64) char rows[Base::kStrip][kTileRowBytes] = {};
    alignas(64) char columns[kUnits][kVectors * kTileRowBytes] = {};
    for (int64_t i = 0; i < Base::kStrip; ++i) {
      std::memcpy(rows[i], left + i * left_stride, static_cast<size_t>(count * Base::kUnitBytes));
    }
    for (int64_t k = 0; k < count; ++k) {
      std::memcpy(columns[k], right + k * right_stride, sizeof columns[k]);
    }
    add_tiles<kVectors>(rows[0], sizeof rows[0], columns[0], sizeof columns[0]);
  }

  template <int64_t kVectors>
  static void store_tiles(Sums& sums) {
    constexpr int64_t kStride = sizeof sums.value[0];
    Tiles::template store<0>(sums.value[0], kStride);
    Tiles::template store<2>(sums.value[kTileRows], kStride);
    if constexpr (kVectors == 2) {
      Tiles::template store<1>(&sums.value[0][kTileRows], kStride);
      Tiles::template store<3>(&sums.value[kTileRows][kTileRows], kStride);
    }
  }

  template <int64_t kVectors>
  static void multiply(const Segment* segments, int64_t num_segments, bool add, Sums& sums) {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
    for (int64_t s = 0; s < num_segments; ++s) {
      const auto& [left, right, count] = segments[s];
      const char *a = left.data, *b = right.data;
      int64_t k = 0;
      for (; k + kUnits <= count; k += kUnits) {
        add_tiles<kVectors>(a, left.stride, b, right.k_stride);
        a += kTileRowBytes;
        b += kUnits * right.k_stride;
      }
      if (k < count) add_rest<kVectors>(a, left.stride, b, right.k_stride, count - k);
    }
    if (!add) return store_tiles<kVectors>(sums);
    Sums parts;  // added last, as vectors do
    store_tiles<kVectors>(parts);
    for (int64_t i = 0; i < Base::kStrip; ++i) {
      for (int64_t v = 0; v < kVectors * Base::kLanes; v += Base::kLanes) {
        float* at = &sums.value[i][v];
        V::store(at, V::template load<Vec>(at) + V::template load<Vec>(&parts.value[i][v]));
      }
    }
  }

  static void strip(const Segment* segments, int64_t num_segments, int64_t num_vectors, bool add,
                    Sums& sums) {
    int64_t num_units = 0;
    for (int64_t s = 0; s < num_segments; ++s) num_units += segments[s].count;
    if (num_units < kMinUnits) {
      return Base::template strip<>(segments, num_segments, num_vectors, add, sums);
    }
    num_vectors == 1 ? multiply<1>(segments, num_segments, add, sums)
                     : multiply<2>(segments, num_segments, add, sums);
  }
};

// A region on a thread whose tiles are in use until it ends.
template <typename F, Executor::Body kBody>
void run_with_tiles(void* context, int64_t begin, int64_t end) {
  F::Tiles::configure(kFullTiles);
  kBody(context, begin, end);
  F::Tiles::release();
}

template <typename F>
constexpr FusedKernels tile_kernels_of() {
  FusedKernels kernels = kernels_of<F>();
  kernels.gate_up = run_with_tiles<F, Forward<F>::gate_up>;
  kernels.down = run_with_tiles<F, Forward<F>::down>;
  kernels.dhidden = run_with_tiles<F, Backward<F>::dhidden>;
  kernels.dinput = run_with_tiles<F, Backward<F>::dinput>;
  kernels.dweights = run_with_tiles<F, WeightGradients<F>::dweights>;
  return kernels;
}

}  // namespace amoeba::kernels::cpu
