// Matrices as the products see them: 16-byte chunks of a row, by expert, row and column.
//
// The 2H columns (or rows) of gate and up have one order inside the kernels: eight of gate, eight
// of up, and so on ("blocks"), so that one thread holds matching gate and up values after a
// product; or eight of up first. Where a stored parameter alternates gate and up inside a row, that
// order is kept ("pairs"). Every stored layout is one of these three pairings. Gate and up that lie
// apart by column are taken 64 columns at a time in turn by sm_90a ("halves"): copies of 16 bytes
// are too small for its copy engine, and blocks of 64 meet in one thread as well.
#pragma once

#include <cstdint>

namespace amoeba::kernels::cuda::device {

enum class Pairing : int32_t { kNone, kRowBlocks, kColumnBlocks };

// Index within gate or up of a position in the order of blocks, and which of the two it is.
__device__ inline int64_t unblocked(int64_t position) {
  return (position >> 4) * 8 + (position & 7);
}
__device__ inline bool is_up(int64_t position) { return (position & 8) != 0; }

// The same in the order of halves: which of the two, and the column within it.
inline constexpr int kHalvesColumns = 64;
__device__ inline int32_t half_of(int32_t position) { return position / kHalvesColumns % 2; }
__device__ inline int32_t column_in_half(int32_t position) {
  return position / (2 * kHalvesColumns) * kHalvesColumns + position % kHalvesColumns;
}
// From there to the order of blocks.
__device__ inline int32_t blocked(int32_t position) {
  const int32_t column = column_in_half(position);
  return column / 8 * 16 + half_of(position) * 8 + column % 8;
}

inline constexpr int64_t kMaxRowStride = int64_t{1} << 26;

// Strides in bytes, that of a row at most kMaxRowStride. `row_index` maps a row of the product to a
// stored row, negative: zeros.
struct Matrix {
  char* base = nullptr;
  int64_t expert_stride = 0;
  int64_t row_stride = 0;
  int64_t up_offset = 0;  // from gate to up, with a pairing
  const int32_t* row_index = nullptr;
  Pairing pairing = Pairing::kNone;

  __device__ int64_t row_offset(int64_t row) const {
    if (pairing != Pairing::kRowBlocks) return row * row_stride;
    return unblocked(row) * row_stride + (is_up(row) ? up_offset : 0);
  }
  // `column` is a multiple of 8.
  __device__ int64_t column_offset(int64_t column, int element_bytes) const {
    if (pairing != Pairing::kColumnBlocks) return column * element_bytes;
    return unblocked(column) * element_bytes + (is_up(column) ? up_offset : 0);
  }
  __device__ char* at(int64_t expert, int64_t row, int64_t column, int element_bytes) const {
    return base + expert * expert_stride + row_offset(row) + column_offset(column, element_bytes);
  }
};

// A vector by expert and position in the kernels' order of gate and up, or plain; strides in
// bytes. dtype as in `load_scalar`.
struct Vector {
  char* base = nullptr;
  int64_t expert_stride = 0;
  int64_t stride = 0;
  int64_t up_offset = 0;
  int32_t dtype = 0;

  __device__ char* at(int64_t expert, int64_t index, bool up = false) const {
    return base + expert * expert_stride + index * stride + (up ? up_offset : 0);
  }
};

// One product c[e] = a[e] b[e]^T for every expert.
//   By rows: rows [offsets[e], offsets[e+1]) of the m of a, n rows (columns) of b, k columns in
//   common.
//   By depth: c[e] is [m, n], the sum runs over the rows [offsets[e], offsets[e+1]) of the k rows
//   of a and b.
struct GroupedProduct {
  Matrix a;
  Matrix b;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 0;
  const int32_t* offsets = nullptr;    // [E+1], valid
  const int2* tiles = nullptr;         // (expert, first row) of each block of kTileRows rows
  const int32_t* num_tiles = nullptr;  // [1]
  uint32_t* drawn = nullptr;           // [1], by depth: 0 at the start; see sm90/turns.cuh
};

inline constexpr int kTileRows = 128;

// What a tile of a product covers, in rows of a and of c. All below 2^31 - 256 (kMaxIndex), so that
// stepping over an end does not overflow.
struct Tile {
  int32_t expert;
  int32_t row;      // first row of c
  int32_t row_end;  // rows of c end here
  int32_t column;   // first column of c
  int32_t depth;    // by depth: the sum's first row; by rows: 0
  int32_t depth_end;
};

inline constexpr int64_t kMaxIndex = (int64_t{1} << 31) - 256;

}  // namespace amoeba::kernels::cuda::device
