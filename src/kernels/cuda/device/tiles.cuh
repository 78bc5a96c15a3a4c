// Which tile of a grouped product a block of threads computes, and the copies of its operands.
#pragma once

#include "matrix.cuh"
#include "ptx.cuh"

namespace amoeba::kernels::cuda::device {

enum class Grouping { kByRows, kByDepth };

// Blocks of rows that are near in time share their expert's weights in the second-level cache.
inline constexpr uint32_t kRasterRows = 16;

template <int kColumns>
__host__ __device__ int64_t num_column_tiles(const GroupedProduct& p) {
  return (p.n + kColumns - 1) / kColumns;
}

// Tiles that any routing can need, for at most `row_tiles` blocks of rows.
template <Grouping kGrouping, int kColumns>
int64_t max_tiles(const GroupedProduct& p, int64_t row_tiles) {
  if (kGrouping == Grouping::kByRows) return row_tiles * num_column_tiles<kColumns>(p);
  return p.num_experts * ((p.m + kTileRows - 1) / kTileRows) * num_column_tiles<kColumns>(p);
}

// Tile number `index` of at most `row_tiles` blocks of rows. False: past the end. Tiles are counted
// in 32 bits, which max_tiles() is checked for.
template <Grouping kGrouping, int kColumns>
__device__ bool find_tile(const GroupedProduct& p, uint32_t row_tiles, uint32_t index, Tile* tile) {
  const auto column_tiles = static_cast<uint32_t>(num_column_tiles<kColumns>(p));
  if constexpr (kGrouping == Grouping::kByDepth) {
    const auto tiles_m = static_cast<uint32_t>((p.m + kTileRows - 1) / kTileRows);
    const uint32_t expert = index / (tiles_m * column_tiles);
    if (expert >= static_cast<uint32_t>(p.num_experts)) return false;
    const uint32_t in_expert = index - expert * (tiles_m * column_tiles);
    tile->expert = static_cast<int32_t>(expert);
    tile->row = static_cast<int32_t>(in_expert % tiles_m * kTileRows);
    tile->row_end = static_cast<int32_t>(p.m);
    tile->column = static_cast<int32_t>(in_expert / tiles_m * kColumns);
    tile->depth = p.offsets[expert];
    tile->depth_end = p.offsets[expert + 1];
    return true;
  } else {
    const uint32_t first = index / (kRasterRows * column_tiles) * kRasterRows;
    if (first >= row_tiles) return false;
    const uint32_t rows = min(kRasterRows, row_tiles - first);
    const uint32_t in_group = index - first * column_tiles;
    const int2 found = p.tiles[first + in_group % rows];
    tile->expert = found.x;
    tile->row = found.y;
    tile->row_end = p.offsets[found.x + 1];
    tile->column = static_cast<int32_t>(in_group / rows * kColumns);
    tile->depth = 0;
    tile->depth_end = static_cast<int32_t>(p.k);
    return in_group < rows * column_tiles;
  }
}

// Copies a tile of `kTile` rows of an operand by kDepth columns of the sum, whose rows are stored
// with the sum's columns next to each other ("k-major"). A row is kDepth / 8 chunks. kGathers: rows
// of tokens, which may have an index and have no pairing; otherwise the rows of a thread are
// equally far apart in every pairing.
template <typename T, int kTile, int kDepth, int kThreads, bool kGathers>
struct KMajorCopy {
  static constexpr int kRowChunks = kDepth / 8;
  static constexpr int kRowStep = kThreads / kRowChunks;
  static constexpr int kCopies = kTile / kRowStep;
  static_assert(kRowStep % 16 == 0);  // a whole number of blocks of gate and up

  const char* row[kGathers ? kCopies : 1];  // without an index: the thread's first
  uint32_t valid_rows;                      // a bit a copy
  int32_t stride;                           // of kRowStep rows; without an index
  int32_t depth_end;
  int row_lane;
  int chunk;

  __device__ void start(const Matrix& m, int32_t expert, int32_t first_row, int32_t row_end,
                        int32_t end, int thread) {
    depth_end = end;
    row_lane = thread / kRowChunks;
    chunk = thread % kRowChunks;
    const char* base = m.base + expert * m.expert_stride;
    const int32_t first = first_row + row_lane;
    valid_rows = 0;
    stride = static_cast<int32_t>(m.row_offset(kRowStep));
    row[0] = base + m.row_offset(first);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      int32_t at = first + i * kRowStep;
      bool valid = at < row_end;
      if constexpr (kGathers) {
        if (valid && m.row_index != nullptr) {
          at = m.row_index[at];
          valid = at >= 0;
        }
        row[i] = valid ? base + at * m.row_stride : base;
      }
      valid_rows |= (valid ? 1u : 0u) << i;
    }
  }

  __device__ void prepare(const Matrix&, int32_t) {}

  // `place(row, chunk)` is the address in shared memory.
  template <typename Place>
  __device__ void copy(const Matrix& m, int32_t depth, const Place& place) const {
    const int32_t column = depth + chunk * 8;
    const int64_t offset = m.column_offset(column, sizeof(T));
    const uint32_t valid = column < depth_end ? valid_rows : 0;
    const char* from = row[0] + offset;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if constexpr (kGathers) from = row[i] + offset;
      copy_async(place(row_lane + i * kRowStep, chunk), from, (valid >> i & 1) != 0);
      from += stride;
    }
  }
};

// The same for an operand stored with the sum's index as its row ("mn-major"): kDepth rows of
// kTile columns. A thread copies kCopies rows that follow each other, so that they lie in one block
// of eight of gate or up, or two.
template <typename T, int kTile, int kDepth, int kThreads, bool kGathers>
struct MnMajorCopy {
  static constexpr int kRowChunks = kTile / 8;
  static constexpr int kCopies = kDepth / (kThreads / kRowChunks);
  static_assert(kCopies == 4 || kCopies % 8 == 0);

  const char* column;
  int32_t stride;
  int32_t index[kGathers ? kCopies : 1];  // of the rows of the next copy
  int32_t depth_end;
  int first;  // of the thread's rows
  int chunk;
  bool is_gathered;

  __device__ void start(const Matrix& m, int32_t expert, int32_t first_column, int32_t column_end,
                        int32_t end, int thread) {
    chunk = thread % kRowChunks;
    first = thread / kRowChunks * kCopies;
    stride = static_cast<int32_t>(m.row_stride);
    is_gathered = kGathers && m.row_index != nullptr;
    const int32_t at = first_column + chunk * 8;
    column = m.base + expert * m.expert_stride + m.column_offset(at, sizeof(T));
    depth_end = at < column_end ? end : 0;  // outside: all zeros
  }

  // Reads the row indices ahead of the copy that needs them.
  __device__ void prepare(const Matrix& m, int32_t depth) {
    if constexpr (kGathers) {
      if (!is_gathered) return;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int32_t row = depth + first + i;
        index[i] = row < depth_end ? m.row_index[row] : -1;
      }
    }
  }

  template <typename Place>
  __device__ void copy(const Matrix& m, int32_t depth, const Place& place) const {
    if constexpr (kGathers) {
      if (is_gathered) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          copy_async(place(first + i, chunk), column + int64_t{max(index[i], 0)} * stride,
                     index[i] >= 0);
        }
        return;
      }
    }
    const int32_t left = depth_end - depth - first;
#pragma unroll 1
    for (int block = 0; block < (kCopies + 7) / 8; ++block) {
      const char* from = column + m.row_offset(depth + first + 8 * block);
#pragma unroll
      for (int i = 0; i < (kCopies < 8 ? kCopies : 8); ++i) {
        copy_async(place(first + 8 * block + i, chunk), from, 8 * block + i < left);
        from += stride;
      }
    }
  }
};

}  // namespace amoeba::kernels::cuda::device
