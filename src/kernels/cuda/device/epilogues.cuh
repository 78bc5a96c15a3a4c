// What happens to a product before it leaves the registers. Every epilogue takes strips of 8 rows
// by kStrip columns in the fragment order that mma.m16n8 and wgmma share: lane l holds, of each of
// the 8 x 8 blocks, row l / 4 and columns 2 (l % 4) and the next.
//
// `prefetch` brings what the epilogue of a tile will read to the second-level cache, `ahead` reads
// what a strip needs, after the one before is computed. Code is straight-line, so
// one copy of it serves every strip, and options are selects where they can be.
//
// Legend: H expert hidden width; z [R, 2H] what is kept of gate and up, in the order of blocks or
// pairs (matrix.cuh), or all of one, then all of the other ("in halves"): the pre-activation x
// Wgu^T + bias, or with a weight before the experts the product x Wgu^T alone; a [R, H] the
// activation.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "matrix.cuh"
#include "ptx.cuh"

namespace amoeba::kernels::cuda::device {

inline constexpr int kPieceColumns = 64;  // a warp holds its part of c in pieces of 16 rows
inline constexpr int kScoreColumns = 32;  // columns of a part of a score gradient
inline constexpr int kScaleColumns = 32;  // columns of z that share one fp8 scale

// z in the element type or in fp8 (e4m3, one power-of-two scale for each row's 32 columns).
struct StoredProduct {
  void* data = nullptr;
  uint8_t* scales = nullptr;  // [R, 2H / 32 rounded up] biased exponents; nullptr: element type
  int64_t columns = 0;        // 2H

  __device__ int64_t scale_at(int64_t row, int64_t column) const {
    return row * ((columns + kScaleColumns - 1) / kScaleColumns) + column / kScaleColumns;
  }
};

// The smallest power of two s with largest / s <= 448, as a biased exponent that has an inverse.
__device__ inline uint32_t scale_exponent(float largest) {
  const uint32_t bits = __float_as_uint(largest);
  const int exponent = static_cast<int>(bits >> 23) - 8 + ((bits & 0x7fffff) > 0x600000 ? 1 : 0);
  return static_cast<uint32_t>(min(max(exponent, 1), 253));
}

// One 16-byte chunk of a row of z a lane, the quad's four are 32 columns in a row.
template <typename T>
__device__ inline void store_product_chunk(const StoredProduct& z, int64_t row, int64_t column,
                                           bool valid, const uint32_t (&word)[4]) {
  if (z.scales == nullptr) {
    if (valid) {
      *reinterpret_cast<uint4*>(static_cast<T*>(z.data) + row * z.columns + column) =
          make_uint4(word[0], word[1], word[2], word[3]);
    }
    return;
  }
  float largest = 0;
  float2 value[4];
  for (int i = 0; i < 4; ++i) {
    value[i] = unpack<T>(word[i]);
    largest = fmaxf(largest, fmaxf(fabsf(value[i].x), fabsf(value[i].y)));
  }
  const uint32_t exponent = scale_exponent(max_quad(largest));
  if (!valid) return;
  const float inverse = __uint_as_float((254 - exponent) << 23);
  uint32_t packed[4];
  for (int i = 0; i < 4; ++i) {
    packed[i] = __nv_cvt_float2_to_fp8x2(make_float2(value[i].x * inverse, value[i].y * inverse),
                                         __NV_NOSAT, __NV_E4M3);
  }
  *reinterpret_cast<uint2*>(static_cast<uint8_t*>(z.data) + row * z.columns + column) =
      make_uint2(packed[0] | packed[1] << 16, packed[2] | packed[3] << 16);
  z.scales[z.scale_at(row, column)] = static_cast<uint8_t>(exponent);
}

// 16 columns of a row of z, as stored.
struct StoredSixteen {
  uint4 low;
  uint4 high;  // fp8: x is the exponent of the scale
};

template <typename T>
__device__ inline StoredSixteen load_product(const StoredProduct& z, int64_t row, int64_t column,
                                             bool valid) {
  StoredSixteen stored = {};
  if (!valid) return stored;
  if (z.scales == nullptr) {
    const uint4* from =
        reinterpret_cast<const uint4*>(static_cast<const T*>(z.data) + row * z.columns + column);
    stored.low = __ldg(from);
    stored.high = __ldg(from + 1);
  } else {
    stored.low = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(z.data) +
                                                      row * z.columns + column));
    stored.high.x = __ldg(z.scales + z.scale_at(row, column));
  }
  return stored;
}

template <typename T>
__device__ inline uint32_t decode_fp8(uint32_t pair, float scale) {
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  const float2 value = __half22float2(__half2(raw));
  return pack<T>(value.x * scale, value.y * scale);
}

template <typename T>
__device__ inline void decode_product(const StoredProduct& z, const StoredSixteen& stored,
                                      uint32_t (&word)[8]) {
  if (z.scales == nullptr) {
    word[0] = stored.low.x, word[1] = stored.low.y, word[2] = stored.low.z, word[3] = stored.low.w;
    word[4] = stored.high.x, word[5] = stored.high.y, word[6] = stored.high.z;
    word[7] = stored.high.w;
    return;
  }
  const float scale = __uint_as_float(stored.high.x << 23);
  const uint32_t packed[4] = {stored.low.x, stored.low.y, stored.low.z, stored.low.w};
  for (int i = 0; i < 4; ++i) {
    word[2 * i] = decode_fp8<T>(packed[i] & 0xffff, scale);
    word[2 * i + 1] = decode_fp8<T>(packed[i] >> 16, scale);
  }
}

// From z to pre-activations: z, or weight * z + bias when the rows are weighted before the experts.
template <typename T>
struct GateUpRule {
  ActivationRule activation;
  const T* bias[2] = {nullptr, nullptr};  // of gate and up [E, H]; nullptr: none
  int64_t bias_expert_stride = 0;         // elements
  int64_t bias_stride = 0;
  const float* row_weight = nullptr;  // nullptr: 1
  int64_t hidden = 0;                 // H
  bool pairs = false;                 // order of z
  bool up_first = false;              // in the order of blocks, up comes before gate
  // dz is in halves; so is z where the rule is plain, otherwise it keeps the order of blocks.
  bool halves = false;

  // Between the order of z and (gate, up).
  __device__ void order(float& first, float& second) const {
    const float kept = first;
    first = up_first ? second : first;
    second = up_first ? kept : second;
  }

  // The common case: silu(gate) * up, no bias, no weight before the experts, order of blocks.
  bool is_plain() const {
    return !activation.clamped && bias[0] == nullptr && row_weight == nullptr && !pairs;
  }

  __device__ float bias_at(int64_t expert, int64_t h, bool up) const {
    if (h >= hidden) return 0.0f;
    return static_cast<float>(bias[up ? 1 : 0][expert * bias_expert_stride + h * bias_stride]);
  }
  // Of h0 + 8 i + offset and the next `step` away: gate, up.
  __device__ void load_bias(int64_t expert, int64_t h0, int offset, int step, float (&gate)[4][2],
                            float (&up)[4][2]) const {
    if (bias[0] == nullptr) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t h = h0 + 8 * i + offset + c * step;
        gate[i][c] = bias_at(expert, h, false);
        up[i][c] = bias_at(expert, h, true);
      }
    }
  }
};

template <typename T>
__device__ inline float round_to(float value) {
  return unpack<T>(pack<T>(value, 0.0f)).x;
}

// z rounded to T, moved by one step where rounding would carry the pre-activation over the limit of
// a clamp: backward must find the side that forward took.
template <typename T, typename IsClamped>
__device__ inline float keep_side(float z, float weight, float bias, const IsClamped& is_clamped) {
  const float rounded = round_to<T>(z);
  if (is_clamped(fmaf(weight, z, bias)) == is_clamped(fmaf(weight, rounded, bias))) return z;
  uint32_t bits = pack<T>(rounded, 0.0f) & 0xffff;
  bits += (fabsf(z) > fabsf(rounded)) ? 1 : -1;
  return unpack<T>(bits).x;
}

// ---- rows out: c [rows, n] (+ bias)

template <typename T>
struct RowsEpilogue {
  static constexpr int kStrip = 64;

  struct Params {
    char* out = nullptr;
    int64_t row_stride = 0;          // bytes
    const T* bias = nullptr;         // [E, n]; nullptr: none
    int64_t bias_expert_stride = 0;  // elements
    int64_t bias_stride = 0;
  };

  static __device__ void prefetch(const Params&, const Tile&, int32_t, int, int, int) {}
  struct Ahead {};
  static __device__ Ahead ahead(const Params&, const Tile&, int32_t, int32_t, int32_t) {
    return {};
  }

  static __device__ void strip(const Params& p, const Tile& tile, int32_t n, int32_t row,
                               int32_t column, const Ahead&, float (&acc)[8][2]) {
    const int q = threadIdx.x & 3;
    if (p.bias != nullptr) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int32_t at = column + 8 * j + 2 * q + i;
          const T* from = p.bias + tile.expert * p.bias_expert_stride + at * p.bias_stride;
          acc[j][i] += at < n ? static_cast<float>(*from) : 0.0f;
        }
      }
    }
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) word[j] = pack<T>(acc[4 * group + j][0], acc[4 * group + j][1]);
      transpose_quad(word);
      const int32_t at = column + 32 * group + 8 * q;
      if (row < tile.row_end && at < n) {
        *reinterpret_cast<uint4*>(p.out + row * p.row_stride + at * sizeof(T)) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
};

// ---- up: z and a

template <typename T>
struct UpParams {
  GateUpRule<T> rule;
  StoredProduct z;         // data == nullptr: not kept
  T* activated = nullptr;  // [R, H]; nullptr: not wanted
};

// kPlain: the rule is, and code for its options is left out.
template <typename T, bool kPlain>
struct UpEpilogue {
  static constexpr int kStrip = 64;

  using Params = UpParams<T>;

  static __device__ void prefetch(const Params&, const Tile&, int32_t, int, int, int) {}
  struct Ahead {};
  static __device__ Ahead ahead(const Params&, const Tile&, int32_t, int32_t, int32_t) {
    return {};
  }

  static __device__ void strip(const Params& p, const Tile& tile, int32_t n, int32_t row,
                               int32_t column, const Ahead&, float (&acc)[8][2]) {
    const int q = threadIdx.x & 3;
    const bool pairs = !kPlain && p.rule.pairs;
    const bool weighted = !kPlain && p.rule.row_weight != nullptr;
    const bool in_rows = row < tile.row_end;
    const int32_t h0 = column / 2;
    float gate_bias[4][2] = {}, up_bias[4][2] = {};
    if (!kPlain)
      p.rule.load_bias(tile.expert, h0, pairs ? q : 2 * q, pairs ? 4 : 1, gate_bias, up_bias);
    const float weight = in_rows && weighted ? p.rule.row_weight[row] : 1.0f;
    uint32_t word[4];
    // Registers of h (c = 0, 1) in blocks 2 i and 2 i + 1: [gate gate | up up] or, in pairs,
    // [gate up | gate up].
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float(&first)[2] = acc[2 * i];
      float(&second)[2] = acc[2 * i + 1];
      float gate[2] = {first[0], pairs ? second[0] : first[1]};
      float up[2] = {pairs ? first[1] : second[0], second[1]};
      float a[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        p.rule.order(gate[c], up[c]);
        if (!weighted) gate[c] += gate_bias[i][c], up[c] += up_bias[i][c];
        const float bias_g = weighted ? gate_bias[i][c] : 0.0f;
        const float bias_u = weighted ? up_bias[i][c] : 0.0f;
        a[c] = activate<kPlain>(p.rule.activation, fmaf(weight, gate[c], bias_g),
                                fmaf(weight, up[c], bias_u));
        if (!kPlain && p.rule.activation.clamped) {
          const ActivationRule& rule = p.rule.activation;
          gate[c] = keep_side<T>(gate[c], weight, bias_g,
                                 [&](float v) { return rule.gate_is_clamped(v); });
          up[c] =
              keep_side<T>(up[c], weight, bias_u, [&](float v) { return rule.up_is_clamped(v); });
        }
        p.rule.order(gate[c], up[c]);
      }
      first[0] = gate[0];
      first[1] = pairs ? up[0] : gate[1];
      second[0] = pairs ? gate[1] : up[0];
      second[1] = up[1];
      word[i] = pack<T>(a[0], a[1]);
    }
    if (p.activated != nullptr) {
      transpose_quad(word);
      if (pairs) {  // word i: h = 8 q + i and 8 q + i + 4
        const uint32_t low0 = __byte_perm(word[0], word[1], 0x5410);
        const uint32_t low1 = __byte_perm(word[2], word[3], 0x5410);
        const uint32_t high0 = __byte_perm(word[0], word[1], 0x7632);
        const uint32_t high1 = __byte_perm(word[2], word[3], 0x7632);
        word[0] = low0, word[1] = low1, word[2] = high0, word[3] = high1;
      }
      const int32_t h = h0 + 8 * q;
      if (in_rows && h < p.rule.hidden) {
        *reinterpret_cast<uint4*>(p.activated + row * p.rule.hidden + h) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
    if (p.z.data == nullptr) return;
#pragma unroll
    for (int group = 0; group < 2; ++group) {
#pragma unroll
      for (int j = 0; j < 4; ++j) word[j] = pack<T>(acc[4 * group + j][0], acc[4 * group + j][1]);
      transpose_quad(word);
      const int32_t at = column + 32 * group + 8 * q;
      store_product_chunk<T>(p.z, row, at, in_rows && at < n, word);
    }
  }
};

// ---- hidden gradient: from da = dy Wd (columns are h) to dz, the weighted activation and parts of
// the score gradient

template <typename T>
struct HiddenGradientParams {
  GateUpRule<T> rule;
  StoredProduct z;
  const float* row_weight_after = nullptr;  // weights the rows after the experts; nullptr: 1
  // [R, 2H]: the gradient of the pre-activation, times the weight before the experts if wanted.
  T* dz = nullptr;
  bool weigh_dz = true;
  T* activated = nullptr;        // [R, H]: a times the weight after; nullptr: not wanted
  float* score_parts = nullptr;  // [R, num_parts]: one of kStrip columns; nullptr: not wanted
  int64_t num_parts = 0;
};

template <typename T, bool kPlain>
struct HiddenGradientEpilogue {
  static constexpr int kStrip = kScoreColumns;

  using Params = HiddenGradientParams<T>;

  // By `num_threads` threads, for `columns` columns of the tile.
  static __device__ void prefetch(const Params& p, const Tile& tile, int32_t n, int columns,
                                  int thread, int num_threads) {
    constexpr int kLine = 128;
    const int bytes = p.z.scales == nullptr ? 2 : 1;
    const int row_lines = 2 * columns * bytes / kLine;
    const int32_t used = 2 * (n - tile.column) * bytes;  // bytes of a row from the tile's start on
    for (int i = thread; i < kTileRows * row_lines; i += num_threads) {
      const int32_t row = tile.row + i / row_lines;
      const int32_t at = i % row_lines * kLine;
      if (row >= tile.row_end || at >= used) continue;
      prefetch_line(static_cast<const char*>(p.z.data) +
                    (row * p.z.columns + 2 * tile.column) * bytes + at);
    }
  }
  using Ahead = StoredSixteen;

  static __device__ Ahead ahead(const Params& p, const Tile& tile, int32_t n, int32_t row,
                                int32_t column) {
    const int32_t h = column + 8 * (threadIdx.x & 3);
    return load_product<T>(p.z, row, 2 * h, row < tile.row_end && h < n);
  }

  static __device__ void strip(const Params& p, const Tile& tile, int32_t n, int32_t row,
                               int32_t column, const Ahead& stored, float (&acc)[4][2]) {
    const int q = threadIdx.x & 3;
    const bool pairs = !kPlain && p.rule.pairs;
    const bool weighted = !kPlain && p.rule.row_weight != nullptr;
    const bool in_rows = row < tile.row_end;
    const float before = in_rows && weighted ? p.rule.row_weight[row] : 1.0f;
    const float after = in_rows && p.row_weight_after != nullptr ? p.row_weight_after[row] : 1.0f;
    const float scale = !kPlain && p.weigh_dz ? before : 1.0f;
    const bool biased = weighted && p.rule.bias[0] != nullptr;
    uint32_t first[4], second[4], activated[4];
    load_quad(p, stored, first, second);
    float part = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 z0 = unpack<T>(first[i]);
      const float2 z1 = unpack<T>(second[i]);
      float gate[2] = {z0.x, pairs ? z1.x : z0.y};
      float up[2] = {pairs ? z0.y : z1.x, z1.y};
      float a[2], dgate[2], dup[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float da = acc[i][c];
        p.rule.order(gate[c], up[c]);
        const int32_t h = column + 8 * i + 2 * q + c;
        const float gate_bias = biased ? p.rule.bias_at(tile.expert, h, false) : 0.0f;
        const float up_bias = biased ? p.rule.bias_at(tile.expert, h, true) : 0.0f;
        const ActivationGradient g = activate_gradient<kPlain>(
            p.rule.activation, fmaf(before, gate[c], gate_bias), fmaf(before, up[c], up_bias));
        a[c] = g.value * after;
        dgate[c] = da * after * g.dgate;
        dup[c] = da * after * g.dup;
        // d/dweight of weight * row, or of weight * z.
        part += weighted ? dgate[c] * gate[c] + dup[c] * up[c] : da * g.value;
        p.rule.order(dgate[c], dup[c]);
      }
      activated[i] = pack<T>(a[0], a[1]);
      first[i] = pack<T>(scale * dgate[0], scale * (pairs ? dup[0] : dgate[1]));
      second[i] = pack<T>(scale * (pairs ? dgate[1] : dup[0]), scale * dup[1]);
    }
    const int32_t h = column + 8 * q;
    const bool valid = in_rows && h < n;
    const bool halves = !kPlain && p.rule.halves;
    T* dz = p.dz + 2 * int64_t{row} * n + (halves ? h : 2 * h);
    store_quad(p, first, second, dz, dz + (halves ? n : 8), valid);
    if (p.activated != nullptr) {
      transpose_quad(activated);
      if (valid) {
        *reinterpret_cast<uint4*>(p.activated + int64_t{row} * n + h) =
            make_uint4(activated[0], activated[1], activated[2], activated[3]);
      }
    }
    if (p.score_parts != nullptr) {
      part = sum_quad(part);
      if (q == 0 && in_rows && column < n) {
        p.score_parts[row * p.num_parts + column / kStrip] = part;
      }
    }
  }

 private:
  // From 16 columns of z a lane to the lane's own two h of each of four blocks. In the order of
  // blocks: first gates, second ups; in the order of pairs: first (gate, up) of the even h, second
  // of the odd.
  static __device__ void load_quad(const Params& p, const StoredSixteen& stored,
                                   uint32_t (&first)[4], uint32_t (&second)[4]) {
    uint32_t word[8];
    decode_product<T>(p.z, stored, word);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      first[i] = !kPlain && p.rule.pairs ? word[2 * i] : word[i];
      second[i] = !kPlain && p.rule.pairs ? word[2 * i + 1] : word[4 + i];
    }
    transpose_quad(first);
    transpose_quad(second);
  }

  static __device__ void store_quad(const Params& p, uint32_t (&first)[4], uint32_t (&second)[4],
                                    T* to, T* next, bool valid) {
    transpose_quad(first);
    transpose_quad(second);
    if (!valid) return;
    const bool pairs = !kPlain && p.rule.pairs;
    *reinterpret_cast<uint4*>(to) =
        make_uint4(first[0], pairs ? second[0] : first[1], pairs ? first[1] : first[2],
                   pairs ? second[1] : first[3]);
    *reinterpret_cast<uint4*>(next) =
        make_uint4(pairs ? first[2] : second[0], pairs ? second[2] : second[1],
                   pairs ? first[3] : second[2], second[3]);
  }
};

// ---- weight gradient: c [m, n] of an expert, in the stored layout, written or added

template <typename T>
struct WeightGradientEpilogue {
  static constexpr int kStrip = 64;

  struct Params {
    Matrix out;
    bool fp32 = false;  // the dtype of out; otherwise T
    bool accumulate = false;
    bool skip_gate = false;  // with a pairing: that half has no gradient
    bool skip_up = false;
    int32_t halved_rows = 0;  // 2H: rows of c are in the order of halves

    __device__ bool wants(int64_t row, int64_t column) const {
      if (out.pairing == Pairing::kNone) return true;
      return !(is_up(out.pairing == Pairing::kRowBlocks ? row : column) ? skip_up : skip_gate);
    }
  };

  static __device__ void prefetch(const Params&, const Tile&, int32_t, int, int, int) {}
  struct Ahead {};
  static __device__ Ahead ahead(const Params&, const Tile&, int32_t, int32_t, int32_t) {
    return {};
  }

  static __device__ void strip(const Params& p, const Tile& tile, int32_t n, int32_t row,
                               int32_t column, const Ahead&, float (&acc)[8][2]) {
    const int q = threadIdx.x & 3;
    if (p.accumulate && tile.depth == tile.depth_end) return;  // nothing to add
    if (p.halved_rows > 0) row = blocked(row);
    const bool in_rows = row < (p.halved_rows > 0 ? p.halved_rows : tile.row_end);
    if (p.fp32) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int32_t at = column + 8 * j;
        if (!in_rows || at >= n || !p.wants(row, at)) continue;
        float2* to = reinterpret_cast<float2*>(p.out.at(tile.expert, row, at, sizeof(float))) + q;
        float2 value = make_float2(acc[j][0], acc[j][1]);
        if (p.accumulate) {
          const float2 old = *to;
          value.x += old.x;
          value.y += old.y;
        }
        *to = value;
      }
      return;
    }
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const int32_t at = column + 32 * group + 8 * q;
      const bool valid = in_rows && at < n && p.wants(row, at);
      uint4* to =
          valid ? reinterpret_cast<uint4*>(p.out.at(tile.expert, row, at, sizeof(T))) : nullptr;
      uint32_t old[4] = {0, 0, 0, 0};
      if (p.accumulate) {
        const uint4 chunk = valid ? *to : make_uint4(0, 0, 0, 0);
        old[0] = chunk.x, old[1] = chunk.y, old[2] = chunk.z, old[3] = chunk.w;
        transpose_quad(old);
      }
      uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 before = unpack<T>(old[j]);
        const float(&value)[2] = acc[4 * group + j];
        word[j] = pack<T>(value[0] + before.x, value[1] + before.y);
      }
      transpose_quad(word);
      if (valid) *to = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};

struct Place {
  int32_t row;
  int32_t column;
};

// kPiece keeps the compiler from merging the copies of this code into one with an index.
template <int kPiece>
__device__ inline void stage_piece(const float (&acc)[8][4], float4 (*stage)[32], int lane) {
#pragma unroll
  for (int j = 0; j < 8; ++j) store_shared<kPiece>(shared_address(&stage[j][lane]), acc[j]);
}

// The epilogue over four pieces of 16 rows by 64 columns that a warp holds; `place(i)` gives the
// first row and column of one. Registers take constant indices only, so a piece goes through the
// warp's `stage` in shared memory, where each lane finds its own values again, and one copy of the
// epilogue serves every strip.
template <typename Epilogue, typename PlaceOf>
__device__ inline void run_epilogue(const typename Epilogue::Params& p, const Tile& tile, int32_t n,
                                    const float (&acc)[4][8][4], float4 (*stage)[32],
                                    const PlaceOf& place) {
  constexpr int kBlocks = Epilogue::kStrip / 8;
  constexpr int kParts = kPieceColumns / Epilogue::kStrip;
  constexpr int kStrips = 4 * 2 * kParts;
  const int lane = threadIdx.x & 31;
  const auto place_of = [&](int strip) {
    const Place piece = place(strip / (2 * kParts));
    return Place{piece.row + strip / kParts % 2 * 8 + lane / 4,
                 piece.column + strip % kParts * Epilogue::kStrip};
  };
  const auto ahead_of = [&](int strip) {
    const Place at = place_of(min(strip, kStrips - 1));
    return Epilogue::ahead(p, tile, n, at.row, at.column);
  };
  typename Epilogue::Ahead stored = ahead_of(0);
#pragma unroll 1
  for (int strip = 0; strip < kStrips; ++strip) {
    if (strip % (2 * kParts) == 0) {
      const int piece = strip / (2 * kParts);
      if (piece == 0) stage_piece<0>(acc[0], stage, lane);
      if (piece == 1) stage_piece<1>(acc[1], stage, lane);
      if (piece == 2) stage_piece<2>(acc[2], stage, lane);
      if (piece == 3) stage_piece<3>(acc[3], stage, lane);
    }
    float values[kBlocks][2];
    const int half = strip / kParts % 2;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      const float2 pair =
          reinterpret_cast<const float2*>(&stage[strip % kParts * kBlocks + j][lane])[half];
      values[j][0] = pair.x;
      values[j][1] = pair.y;
    }
    const Place at = place_of(strip);
    Epilogue::strip(p, tile, n, at.row, at.column, stored, values);
    stored = ahead_of(strip + 1);
  }
}

// Bytes of shared memory that a warp's stage takes.
inline constexpr int kStageBytes = 8 * 32 * static_cast<int>(sizeof(float4));

}  // namespace amoeba::kernels::cuda::device
