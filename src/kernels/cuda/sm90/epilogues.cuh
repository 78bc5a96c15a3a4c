// What a computing warp does with its 16 x 256 of c on sm_90a: through its own part of shared
// memory, by the copy engine, so that stores run while the next tile is computed.
//
// A warp handles c in pieces of 16 rows by 64 columns (128 bytes of 16-bit elements, 2 KiB, with
// the 128-byte swizzle of the tensor maps). Whole pieces leave by the copy engine; rows past the
// end of an expert's are another's, so a piece with such rows is written by its lanes. One lane
// issues and waits for all stores of a warp. `begin` runs early in a tile's main loop.
//
// Sm90Strips is the other way: the epilogues of epilogues.cuh, for every option and output.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device/epilogues.cuh"
#include "kernels/cuda/sm90/pipeline.cuh"
#include "kernels/cuda/sm90/tensor_map.h"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace amoeba::kernels::cuda::device {

inline constexpr int kPieceRows = 16;
inline constexpr uint32_t kPieceBytes = kPieceRows * 128;

// What a computing warp owns in shared memory.
struct WarpSpace {
  char* bytes;
  uint32_t address;
};

__device__ inline void store_matrices(uint32_t to, const uint32_t (&word)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

__device__ inline void store_pair(uint32_t to, float first, float second) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

__device__ inline uint4 load_shared(uint32_t from) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

__device__ inline uint32_t chunk_address(uint32_t piece, int row, int chunk) {
  return piece + static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// This lane's row for load_matrices and store_matrices of two 8-column blocks from `block` on:
// words are (rows 0-7, rows 8-15) of the first, then of the second.
__device__ inline uint32_t blocks_address(uint32_t piece, int block, int lane) {
  return chunk_address(piece, lane & 15, block + (lane >> 4));
}

// 16 x 64 of c, rounded.
template <typename T>
__device__ inline void put_piece(uint32_t piece, const float (&c)[8][4], int lane) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    store_matrices(blocks_address(piece, j, lane),
                   {pack<T>(c[j][0], c[j][1]), pack<T>(c[j][2], c[j][3]),
                    pack<T>(c[j + 1][0], c[j + 1][1]), pack<T>(c[j + 1][2], c[j + 1][3])});
  }
}

// 16 x 32 of c in fp32, from block 4 kPart on.
template <int kPart>
__device__ inline void put_fp32_piece(uint32_t piece, const float (&c)[8][4], int lane) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t chunk = chunk_address(piece, lane / 4 + 8 * r, 2 * j + lane % 4 / 2);
      const float* pair = &c[4 * kPart + j][2 * r];
      store_pair(chunk + lane % 2 * 8, pair[0], pair[1]);
    }
  }
}

// Two pieces of a warp, in turn.
class PieceRing {
 public:
  explicit __device__ PieceRing(uint32_t base) : base_(base) {}

  // A piece that no store reads any more.
  __device__ uint32_t next(int lane) {
    if (lane == 0) wait_stores_read<1>();
    __syncwarp();
    turn_ ^= 1;
    return base_ + turn_ * kPieceBytes;
  }

 private:
  uint32_t base_;
  uint32_t turn_ = 0;
};

// Where a piece goes: in memory and in a map, whose third coordinate is the half, if any.
struct PiecePlace {
  char* out;
  int64_t row_stride;
  int32_t row;
  int32_t column;
  int32_t half;
  int32_t valid_rows;
  int32_t columns_left;
};

// After a fence and a barrier of the warp.
__device__ inline void send_piece(const CUtensorMap& map, uint32_t piece, const PiecePlace& place,
                                  int lane) {
  if (place.valid_rows >= kPieceRows) {
    if (lane == 0) store_box(&map, piece, place.column, place.row, place.half);
    return;
  }
#pragma unroll 1
  for (int i = lane; i < kPieceRows * 8; i += 32) {
    const int chunk = i % 8;
    if (i / 8 >= place.valid_rows || chunk * 8 >= place.columns_left) continue;
    *reinterpret_cast<uint4*>(place.out + i / 8 * place.row_stride + chunk * 16) =
        load_shared(chunk_address(piece, i / 8, chunk));
  }
  __syncwarp();
}

// The same with them, as a group of stores.
__device__ inline void store_piece(const CUtensorMap& map, uint32_t piece, const PiecePlace& place,
                                   int lane) {
  fence_shared_for_products();
  __syncwarp();
  send_piece(map, piece, place, lane);
  if (lane == 0) commit_stores();
}

// What epilogues have in common that send c by a ring of pieces.
struct Sm90Pieces {
  static constexpr bool kReadsStages = false;
  static constexpr int kStages = 4;
  static constexpr int kWarpBytes = 2 * kPieceBytes;
};

// ---- rows out: c [rows, n] (+ bias)

template <typename T>
class Sm90Rows : public Sm90Pieces {
 public:
  using Arguments = typename RowsEpilogue<T>::Params;
  struct Params {
    Arguments rows;
    CUtensorMap out;
  };
  static Params make_params(const GroupedProduct& p, const Arguments& rows) {
    return {rows,
            make_tensor_map({rows.out, 0, rows.row_stride}, kDTypeOf<T>, 1, p.m, p.n, kPieceRows)};
  }

  __device__ Sm90Rows(const Params& p, const WarpSpace& space) : p_(p), ring_(space.address) {}

  __device__ void run(const Tile& tile, int32_t row, int32_t n, float (&acc)[4][8][4]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = tile.column + kPieceColumns * i;
      if (row >= tile.row_end || column >= n) return;
      if (p_.rows.bias != nullptr) add_bias(tile, column, n, acc[i]);
      const uint32_t piece = ring_.next(lane);
      put_piece<T>(piece, acc[i], lane);
      store_piece(
          p_.out, piece,
          {p_.rows.out + row * p_.rows.row_stride + column * static_cast<int64_t>(sizeof(T)),
           p_.rows.row_stride, row, column, 0, tile.row_end - row, n - column},
          lane);
    }
  }

 private:
  __device__ void add_bias(const Tile& tile, int32_t column, int32_t n, float (&acc)[8][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t at = column + 8 * j + 2 * (threadIdx.x & 3) + c;
        const T* from =
            p_.rows.bias + tile.expert * p_.rows.bias_expert_stride + at * p_.rows.bias_stride;
        const float value = at < n ? static_cast<float>(*from) : 0.0f;
        acc[j][c] += value;
        acc[j][2 + c] += value;
      }
    }
  }

  const Params& p_;
  PieceRing ring_;
};

// z or dz [R, 2H] in boxes of `box_rows`; in halves the map's third dimension is the half.
template <typename T>
CUtensorMap make_gate_up_map(const GroupedProduct& p, void* data, int64_t hidden, bool halves,
                             int box_rows) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  const Matrix rows = {static_cast<char*>(data), hidden * kBytes, 2 * hidden * kBytes};
  return halves ? make_tensor_map(rows, kDTypeOf<T>, 2, p.m, hidden, box_rows)
                : make_tensor_map(rows, kDTypeOf<T>, 1, p.m, 2 * hidden, box_rows);
}

// Piece `index` of four of z or dz over 128 columns of a from `h` on.
template <typename T, bool kHalves>
__device__ inline PiecePlace gate_up_place(void* data, int64_t hidden, int32_t row, int32_t h,
                                           int index, int32_t row_end) {
  constexpr int64_t kBytes = sizeof(T);
  const auto width = static_cast<int32_t>(kHalves ? hidden : 2 * hidden);
  const int32_t column = kHalves ? h + kPieceColumns * (index / 2) : 2 * h + kPieceColumns * index;
  const int32_t half = kHalves ? index % 2 : 0;
  return {static_cast<char*>(data) + (2 * hidden * row + hidden * half + column) * kBytes,
          2 * hidden * kBytes,
          row,
          column,
          half,
          row_end - row,
          width - column};
}

// ---- up: z and a of silu(gate) * up. In halves, gate and up are pieces 0 and 1, and 2 and 3

template <typename T, bool kHalves>
class Sm90Up : public Sm90Pieces {
 public:
  using Arguments = UpParams<T>;
  struct Params {
    Arguments up;
    CUtensorMap z;
  };
  static Params make_params(const GroupedProduct& p, const Arguments& up) {
    Params params = {up, {}};
    if (up.z.data != nullptr) {
      params.z = make_gate_up_map<T>(p, up.z.data, up.rule.hidden, kHalves, kPieceRows);
    }
    return params;
  }

  __device__ Sm90Up(const Params& p, const WarpSpace& space) : p_(p), ring_(space.address) {}

  __device__ void run(const Tile& tile, int32_t row, int32_t, float (&acc)[4][8][4]) {
    if (row >= tile.row_end) return;
    const int lane = threadIdx.x & 31;
    const bool up_first = p_.up.rule.up_first;
    const int32_t h0 = tile.column / 2;
    // Of rows lane / 4 and lane / 4 + 8. Stored last: a fence waits for the stores before it.
    uint32_t activated[4][2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const PiecePlace place =
          gate_up_place<T, kHalves>(p_.up.z.data, p_.up.rule.hidden, row, h0, i, tile.row_end);
      if (place.columns_left <= 0) break;
      const bool keeps = p_.up.z.data != nullptr;
      const uint32_t piece = keeps ? ring_.next(lane) : 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&first)[4] = kHalves ? acc[i / 2 * 2][i % 2 * 4 + j] : acc[i][2 * j];
        const float(&second)[4] = kHalves ? acc[i / 2 * 2 + 1][i % 2 * 4 + j] : acc[i][2 * j + 1];
        float a[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          a[c] = activate<true>(p_.up.rule.activation, up_first ? second[c] : first[c],
                                up_first ? first[c] : second[c]);
        }
        activated[i][0][j] = pack<T>(a[0], a[1]);
        activated[i][1][j] = pack<T>(a[2], a[3]);
      }
      if (!keeps) continue;
      put_piece<T>(piece, acc[i], lane);
      store_piece(p_.z, piece, place, lane);
    }
    if (p_.up.activated == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t h = h0 + 32 * i;
      if (h >= p_.up.rule.hidden) return;
      store_activated(activated[i][0], row + lane / 4, h, tile.row_end);
      store_activated(activated[i][1], row + lane / 4 + 8, h, tile.row_end);
    }
  }

 private:
  __device__ void store_activated(uint32_t (&word)[4], int32_t row, int32_t h0, int32_t row_end) {
    transpose_quad(word);
    const int32_t h = h0 + 8 * (threadIdx.x & 3);
    if (row >= row_end || h >= p_.up.rule.hidden) return;
    *reinterpret_cast<uint4*>(p_.up.activated + row * p_.up.rule.hidden + h) =
        make_uint4(word[0], word[1], word[2], word[3]);
  }

  const Params& p_;
  PieceRing ring_;
};

// ---- hidden gradient of silu(gate) * up: z comes through the stages after a tile's operands, 64
// columns of a at a time, as two boxes (gate and up in halves); dz takes its place, and a that of
// the other operand

template <typename T, bool kHalves>
class Sm90HiddenGradient {
 public:
  static constexpr bool kReadsStages = true;
  static constexpr int kStages = 4;
  static constexpr int kWarpBytes = 0;
  using Arguments = HiddenGradientParams<T>;
  struct Params {
    Arguments gradient;
    CUtensorMap z;
    CUtensorMap dz;
    CUtensorMap activated;
  };
  static Params make_params(const GroupedProduct& p, const Arguments& g) {
    const auto map = [&](void* data, int box_rows) {
      return make_gate_up_map<T>(p, data, p.n, kHalves, box_rows);
    };
    Params params = {g, map(g.z.data, kTileRows), map(g.dz, kPieceRows), {}};
    if (g.activated != nullptr) {
      const Matrix rows = {reinterpret_cast<char*>(g.activated), 0,
                           p.n * static_cast<int64_t>(sizeof(T))};
      params.activated = make_tensor_map(rows, kDTypeOf<T>, 1, p.m, p.n, kPieceRows);
    }
    return params;
  }

  // By the thread that copies.
  template <typename Pipeline>
  static __device__ void copy(const Params& p, const Tile& tile, int32_t n, Pipeline& pipeline) {
    const int count = num_pieces(tile, n);
    for (int i = 0; i < count; ++i) {
      wait(pipeline.empty(), pipeline.parity ^ 1);
      arrive_expecting(pipeline.full(), 2 * Sm90::kBytesHalf);
      for (int half = 0; half < 2; ++half) {
        const int32_t h = tile.column + kPieceColumns * i;
        copy_box<false>(pipeline.stage() + Sm90::kBytesA + half * Sm90::kBytesHalf, &p.z,
                        pipeline.full(), kHalves ? h : 2 * h + kPieceColumns * half, tile.row,
                        kHalves ? half : 0);
      }
      pipeline.advance();
    }
  }

  __device__ Sm90HiddenGradient(const Params& p, const WarpSpace&) : p_(p) {}

  // Early in a tile's main loop: its stages need the last one of the tile before.
  template <typename Pipeline>
  __device__ void begin(const Pipeline& pipeline) {
    if (pending_ < 0) return;
    if ((threadIdx.x & 31) == 0) wait_stores_read<0>();
    __syncwarp();
    release(pipeline, static_cast<uint32_t>(pending_));
    pending_ = -1;
  }

  template <typename Pipeline>
  __device__ void run(const Tile& tile, int32_t row, int32_t n, float (&acc)[4][8][4],
                      Pipeline& pipeline) {
    const int lane = threadIdx.x & 31;
    const int32_t my_row = row + lane / 4;  // and 8 below it
    const float after[2] = {weight(my_row, tile.row_end), weight(my_row + 8, tile.row_end)};
    const int count = num_pieces(tile, n);
    // Of 32 columns lane % 4 of both pairs' four. Stored last: a fence waits for the stores before.
    float first_parts[2] = {0, 0}, parts[2] = {0, 0};
#pragma unroll 1
    for (int pair = 0; pair < 2; ++pair) {
      first_parts[0] = parts[0], first_parts[1] = parts[1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = 2 * pair + i;
        if (index >= count) break;
        wait(pipeline.full(), pipeline.parity);
        if (row < tile.row_end) {
          compute_piece(tile, row, n, index, pipeline.stage(), after, acc[i], parts);
        }
        if (lane == 0) commit_stores();
        if (pending_ >= 0) {  // all stores but those of this piece have read theirs
          if (lane == 0) wait_stores_read<1>();
          __syncwarp();
          release(pipeline, static_cast<uint32_t>(pending_));
        }
        pending_ = static_cast<int>(pipeline.index);
        pipeline.advance();
      }
      // Registers take constant indices only, and one copy of the code for two pairs of pieces
      // stays in the instruction cache.
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        acc[i / 32][i / 4 % 8][i % 4] = acc[i / 32 + 2][i / 4 % 8][i % 4];
      }
    }
    store_parts(tile, my_row, n, 0, first_parts);
    store_parts(tile, my_row, n, 4, parts);
  }

 private:
  static __device__ int num_pieces(const Tile& tile, int32_t n) {
    return min((n - tile.column + kPieceColumns - 1) / kPieceColumns, 4);
  }

  __device__ float weight(int32_t row, int32_t row_end) const {
    const float* weights = p_.gradient.row_weight_after;
    return weights != nullptr && row < row_end ? weights[row] : 1.0f;
  }

  // Of 32 columns number first + lane % 4.
  __device__ void store_parts(const Tile& tile, int32_t row, int32_t n, int first,
                              const float (&parts)[2]) {
    const Arguments& g = p_.gradient;
    const int index = first + threadIdx.x % 4;
    if (g.score_parts == nullptr || tile.column + kScoreColumns * index >= n) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = row + 8 * r;
      if (at >= tile.row_end) continue;
      g.score_parts[at * g.num_parts + tile.column / kScoreColumns + index] = parts[r];
    }
  }

  __device__ void compute_piece(const Tile& tile, int32_t row, int32_t n, int index, uint32_t stage,
                                const float (&after)[2], const float (&da)[8][4],
                                float (&parts)[2]) {
    const Arguments& g = p_.gradient;
    const int lane = threadIdx.x & 31;
    const uint32_t slab = (threadIdx.x - Sm90::kGroupThreads) / 32 * kPieceBytes;
    const uint32_t piece_a = stage + slab;
    uint32_t activated[8][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // This lane's row of 8 columns of gate or up, for load_matrices and store_matrices.
      const auto block_address = [&](int j) {
        const uint32_t boxes = stage + Sm90::kBytesA + slab;
        return kHalves
                   ? chunk_address(boxes + lane / 16 * Sm90::kBytesHalf, lane & 15, 4 * half + j)
                   : blocks_address(boxes + half * Sm90::kBytesHalf, 2 * j, lane);
      };
      float part[2] = {0, 0};
      uint32_t z[4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) load_matrices<false>(z[j], block_address(j));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        compute_block(da[4 * half + j], after, z[j], activated[4 * half + j], part);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) store_matrices(block_address(j), z[j]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float sum = sum_quad(part[r]);
        if ((2 * index + half) % 4 == lane % 4) parts[r] = sum;
      }
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      store_matrices(blocks_address(piece_a, j, lane),
                     {activated[j][0], activated[j][1], activated[j + 1][0], activated[j + 1][1]});
    }
    fence_shared_for_products();
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const PiecePlace place =
          gate_up_place<T, kHalves>(g.dz, n, row, tile.column, 2 * index + half, tile.row_end);
      if (place.columns_left <= 0) break;
      send_piece(p_.dz, stage + Sm90::kBytesA + half * Sm90::kBytesHalf + slab, place, lane);
    }
    if (g.activated == nullptr) return;
    const int32_t column = tile.column + kPieceColumns * index;
    send_piece(p_.activated, piece_a,
               {reinterpret_cast<char*>(g.activated + int64_t{row} * n + column),
                static_cast<int64_t>(n) * static_cast<int64_t>(sizeof(T)), row, column, 0,
                tile.row_end - row, n - column},
               lane);
  }

  // From z to dz of 8 columns of gate and up.
  __device__ void compute_block(const float (&da)[4], const float (&after)[2], uint32_t (&z)[4],
                                uint32_t (&activated)[2], float (&part)[2]) {
    const bool up_first = p_.gradient.rule.up_first;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 gate = unpack<T>(up_first ? z[2 + r] : z[r]);
      const float2 up = unpack<T>(up_first ? z[r] : z[2 + r]);
      const ActivationGradient x = activate_gradient<true>({}, gate.x, up.x);
      const ActivationGradient y = activate_gradient<true>({}, gate.y, up.y);
      const float dx = da[2 * r] * after[r];
      const float dy = da[2 * r + 1] * after[r];
      part[r] = fmaf(da[2 * r], x.value, fmaf(da[2 * r + 1], y.value, part[r]));
      activated[r] = pack<T>(x.value * after[r], y.value * after[r]);
      const uint32_t dgate = pack<T>(dx * x.dgate, dy * y.dgate);
      const uint32_t dup = pack<T>(dx * x.dup, dy * y.dup);
      z[r] = up_first ? dup : dgate;
      z[2 + r] = up_first ? dgate : dup;
    }
  }

  const Params& p_;
  int pending_ = -1;  // the stage whose stores may still read
};

// ---- weight gradient: c [m, n] of an expert, written or added as Out (T or fp32). What it is
// added to is read 64 columns ahead. The copy engine could add fp32, but takes numbers below the
// smallest normal one for zero

template <typename T, typename Out, bool kAdds>
class Sm90WeightGradient : public Sm90Pieces {
 public:
  using Arguments = typename WeightGradientEpilogue<T>::Params;
  struct Params {
    CUtensorMap map;
    Matrix out;
    int32_t hidden;    // H, in halves
    int32_t is_below;  // 1: of gate and up the second lies below the first in memory
  };
  static Params make_params(const GroupedProduct& p, const Arguments& gradient) {
    const bool is_paired = gradient.out.pairing == Pairing::kRowBlocks;
    return {make_tensor_map(rising(gradient.out), kDTypeOf<Out>, p.num_experts, p.m, p.n,
                            is_paired ? kPieceRows / 2 : kPieceRows),
            gradient.out, static_cast<int32_t>(p.n / 2), gradient.out.up_offset < 0 ? 1 : 0};
  }
  // Rows or columns of c have to come as `out` has them.
  static bool takes(const GroupedProduct& p, const Arguments& gradient) {
    const bool in_halves = gradient.out.pairing == Pairing::kColumnBlocks;
    return !gradient.skip_gate && !gradient.skip_up && has_tensor_map(rising(gradient.out)) &&
           gradient.halved_rows == 0 && in_halves == (p.b.pairing == Pairing::kColumnBlocks);
  }

  __device__ Sm90WeightGradient(const Params& p, const WarpSpace& space)
      : p_(p), ring_(space.address) {}

  __device__ void run(const Tile& tile, int32_t row, int32_t n, float (&acc)[4][8][4]) {
    if (kAdds && tile.depth == tile.depth_end) return;  // nothing to add
    if constexpr (kAdds) load(tile, row, tile.column, n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = tile.column + kPieceColumns * i;
      if (row >= tile.row_end || column >= n) return;
      if constexpr (kAdds) {
        add(acc[i]);
        if (i < 3) load(tile, row, column + kPieceColumns, n);
      }
      if constexpr (kIsWide) {
        store(tile, row, column,
              [&](uint32_t piece, int lane) { put_fp32_piece<0>(piece, acc[i], lane); });
        store(tile, row, column + kPieceColumns / 2,
              [&](uint32_t piece, int lane) { put_fp32_piece<1>(piece, acc[i], lane); });
      } else {
        store(tile, row, column,
              [&](uint32_t piece, int lane) { put_piece<T>(piece, acc[i], lane); });
      }
    }
  }

 private:
  static constexpr bool kIsWide = sizeof(Out) == 4;
  using Pair = std::conditional_t<kIsWide, float2, uint32_t>;

  // With gate and up in the order of their addresses, as a tensor map wants them.
  static Matrix rising(Matrix out) {
    if (out.pairing != Pairing::kNone && out.up_offset < 0) {
      out.base += out.up_offset;
      out.up_offset = -out.up_offset;
    }
    return out;
  }

  __device__ bool in_halves() const { return p_.out.pairing == Pairing::kColumnBlocks; }
  __device__ int32_t columns_left(int32_t column, int32_t n) const {
    return in_halves() ? p_.hidden - column_in_half(column) : n - column;
  }
  __device__ const char* old_at(int32_t expert, int32_t row, int32_t column) const {
    if (!in_halves()) return p_.out.at(expert, row, column, sizeof(Out));
    return p_.out.at(expert, row, 0, sizeof(Out)) + (half_of(column) == 1 ? p_.out.up_offset : 0) +
           column_in_half(column) * static_cast<int64_t>(sizeof(Out));
  }

  // This lane's part of 16 x 64 before the sum; zeros outside.
  __device__ void load(const Tile& tile, int32_t row, int32_t column, int32_t n) {
    const int lane = threadIdx.x & 31;
    const int32_t left = columns_left(column, n);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t at_row = row + lane / 4 + 8 * r;
      const Pair* from =
          reinterpret_cast<const Pair*>(old_at(tile.expert, at_row, column)) + lane % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        old_[j][r] = at_row < tile.row_end && 8 * j < left ? from[4 * j] : Pair{};
      }
    }
  }

  __device__ void add(float (&c)[8][4]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float2 old;
        if constexpr (kIsWide) {
          old = old_[j][r];
        } else {
          old = unpack<T>(old_[j][r]);
        }
        c[j][2 * r] += old.x;
        c[j][2 * r + 1] += old.y;
      }
    }
  }

  template <typename Put>
  __device__ void store(const Tile& tile, int32_t row, int32_t column, const Put& put) {
    const int lane = threadIdx.x & 31;
    const uint32_t piece = ring_.next(lane);
    put(piece, lane);
    fence_shared_for_products();
    __syncwarp();
    if (lane != 0) return;
    if (in_halves()) {
      store_box(&p_.map, piece, column_in_half(column), row, half_of(column) ^ p_.is_below,
                tile.expert, 0);
    } else if (p_.out.pairing == Pairing::kRowBlocks) {
      store_box(&p_.map, piece, column, 0, p_.is_below, row / 16, tile.expert);
      store_box(&p_.map, piece + kPieceBytes / 2, column, 0, 1 - p_.is_below, row / 16,
                tile.expert);
    } else {
      store_box(&p_.map, piece, column, row, tile.expert);
    }
    commit_stores();
  }

  const Params& p_;
  PieceRing ring_;
  Pair old_[kAdds ? 8 : 1][2];
};

// ---- every option, by strips

// From the order of halves to that of blocks.
__device__ inline void order_blocks(float (&acc)[4][8][4]) {
  float halves[4][8][4];
#pragma unroll
  for (int i = 0; i < 128; ++i) halves[i / 32][i / 4 % 8][i % 4] = acc[i / 32][i / 4 % 8][i % 4];
#pragma unroll
  for (int i = 0; i < 128; ++i) {
    const int block = i / 8;  // of gate and up
    const int half = i / 4 % 2;
    acc[i / 32][i / 4 % 8][i % 4] = halves[block / 8 * 2 + half][block % 8][i % 4];
  }
}

template <typename Epilogue>
class Sm90Strips {
 public:
  static constexpr bool kReadsStages = false;
  static constexpr int kStages = 4;
  static constexpr int kWarpBytes = kStageBytes;
  using Arguments = typename Epilogue::Params;
  struct Params {
    Arguments arguments;
    int32_t n;
    bool halves;  // columns of c come in that order
  };
  static Params make_params(const GroupedProduct& p, const Arguments& arguments) {
    return {arguments, static_cast<int32_t>(p.n), p.b.pairing == Pairing::kColumnBlocks};
  }

  __device__ Sm90Strips(const Params& p, const WarpSpace& space)
      : p_(p), stage_(reinterpret_cast<float4 (*)[32]>(space.bytes)) {}

  __device__ void run(const Tile& tile, int32_t row, int32_t, float (&acc)[4][8][4]) {
    if (p_.halves) order_blocks(acc);
    run_epilogue<Epilogue>(p_.arguments, tile, p_.n, acc, stage_, [&](int i) {
      return Place{row, tile.column + kPieceColumns * i};
    });
  }

 private:
  const Params& p_;
  float4 (*stage_)[32];
};

}  // namespace amoeba::kernels::cuda::device
