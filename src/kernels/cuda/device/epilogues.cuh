// What happens to a product before it leaves the registers. Every epilogue takes pieces of 16 rows
// by 64 columns in the fragment order that mma.m16n8 and wgmma share: lane l holds, of each of the
// eight 16 x 8 blocks, columns 2 (l % 4) and the next, of rows l / 4 and l / 4 + 8.
//
// Legend: H expert hidden width, z [R, 2H] the product x Wgu^T before weight and bias, in the order
// of blocks or pairs (matrix.cuh), a [R, H] the activation.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "matrix.cuh"
#include "scalar.cuh"

namespace amoeba::kernels::cuda::device {

inline constexpr int kPieceColumns = 64;
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
  uint4 high;  // unused for fp8
  uint32_t exponent;
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
    stored.exponent = __ldg(z.scales + z.scale_at(row, column));
  }
  return stored;
}

template <typename T>
__device__ inline uint32_t decode_fp8(uint32_t pair, float scale) {
  const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair),
                                                     __NV_E4M3);
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
  const float scale = __uint_as_float(stored.exponent << 23);
  const uint32_t packed[4] = {stored.low.x, stored.low.y, stored.low.z, stored.low.w};
  for (int i = 0; i < 4; ++i) {
    word[2 * i] = decode_fp8<T>(packed[i] & 0xffff, scale);
    word[2 * i + 1] = decode_fp8<T>(packed[i] >> 16, scale);
  }
}

// How gate and up values become pre-activations: weight * z + bias.
struct GateUpRule {
  ActivationRule activation;
  Vector bias;                        // base == nullptr: none
  const float* row_weight = nullptr;  // weights the rows before the experts; nullptr: 1
  int64_t hidden = 0;                 // H
  bool pairs = false;                 // order of z

  __device__ float bias_at(int64_t expert, int64_t h, bool up) const {
    if (bias.base == nullptr || h >= hidden) return 0;
    return load_scalar(bias.at(expert, h, up), bias.dtype);
  }
};

// ---- rows out: c [rows, n] (+ bias)

template <typename T>
struct RowsEpilogue {
  struct Params {
    char* out = nullptr;
    int64_t row_stride = 0;  // bytes
    Vector bias;
  };

  static __device__ void piece(const Params& p, const Tile& tile, int64_t n, int64_t row0,
                               int64_t column, float (&acc)[8][4]) {
    const int lane = threadIdx.x & 31;
    const int q = lane & 3;
    if (p.bias.base != nullptr) {
      for (int j = 0; j < 8; ++j) {
        for (int i = 0; i < 2; ++i) {
          const int64_t at = column + 8 * j + 2 * q + i;
          const float bias =
              at < n ? load_scalar(p.bias.at(tile.expert, at), p.bias.dtype) : 0.0f;
          acc[j][i] += bias;
          acc[j][2 + i] += bias;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + lane / 4 + 8 * half;
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        uint32_t word[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          word[j] = pack<T>(acc[4 * group + j][2 * half], acc[4 * group + j][2 * half + 1]);
        }
        transpose_quad(word);
        const int64_t at = column + 32 * group + 8 * q;
        if (row < tile.row_end && at < n) {
          *reinterpret_cast<uint4*>(p.out + row * p.row_stride + at * sizeof(T)) =
              make_uint4(word[0], word[1], word[2], word[3]);
        }
      }
    }
  }
};

// ---- up: z and a = act(weight * z + bias)

template <typename T>
struct UpEpilogue {
  struct Params {
    GateUpRule rule;
    StoredProduct z;         // data == nullptr: not kept
    T* activated = nullptr;  // [R, H]; nullptr: not wanted
  };

  static __device__ void piece(const Params& p, const Tile& tile, int64_t n, int64_t row0,
                               int64_t column, float (&acc)[8][4]) {
    const int lane = threadIdx.x & 31;
    const int q = lane & 3;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + lane / 4 + 8 * half;
      const bool in_rows = row < tile.row_end;
      uint32_t word[4];
      if (p.z.data != nullptr) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            word[j] = pack<T>(acc[4 * group + j][2 * half], acc[4 * group + j][2 * half + 1]);
          }
          transpose_quad(word);
          const int64_t at = column + 32 * group + 8 * q;
          store_product_chunk<T>(p.z, row, at, in_rows && at < n, word);
        }
      }
      if (p.activated == nullptr) continue;
      const float weight =
          in_rows && p.rule.row_weight != nullptr ? p.rule.row_weight[row] : 1.0f;
      const auto value = [&](float gate, float up, int64_t h) {
        return activate(p.rule.activation, weight * gate + p.rule.bias_at(tile.expert, h, false),
                        weight * up + p.rule.bias_at(tile.expert, h, true));
      };
      const int64_t h0 = column / 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* first = &acc[2 * i][2 * half];
        const float* second = &acc[2 * i + 1][2 * half];
        if (p.rule.pairs) {
          const int64_t h = h0 + 8 * i + q;
          word[i] = pack<T>(value(first[0], first[1], h), value(second[0], second[1], h + 4));
        } else {
          const int64_t h = h0 + 8 * i + 2 * q;
          word[i] = pack<T>(value(first[0], second[0], h), value(first[1], second[1], h + 1));
        }
      }
      transpose_quad(word);
      if (p.rule.pairs) {  // word i: h = 8 q + i and 8 q + i + 4
        const uint32_t low0 = __byte_perm(word[0], word[1], 0x5410);
        const uint32_t low1 = __byte_perm(word[2], word[3], 0x5410);
        const uint32_t high0 = __byte_perm(word[0], word[1], 0x7632);
        const uint32_t high1 = __byte_perm(word[2], word[3], 0x7632);
        word[0] = low0, word[1] = low1, word[2] = high0, word[3] = high1;
      }
      const int64_t h = h0 + 8 * q;
      if (in_rows && h < p.rule.hidden) {
        *reinterpret_cast<uint4*>(p.activated + row * p.rule.hidden + h) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
};

// ---- hidden gradient: from da = dy Wd (columns are h) to dz, the weighted activation and parts of
// the score gradient

template <typename T>
struct HiddenGradientEpilogue {
  struct Params {
    GateUpRule rule;
    StoredProduct z;
    const float* row_weight_after = nullptr;  // weights the rows after the experts; nullptr: 1
    T* dz = nullptr;                          // [R, 2H]: gradient of z
    T* dpre = nullptr;        // [R, 2H]: gradient of weight * z + bias; nullptr: not wanted
    T* activated = nullptr;   // [R, H]: a times the weight after; nullptr: not wanted
    float* score_parts = nullptr;  // [R, num_parts]: a sum a part of 64 columns; nullptr
    int64_t num_parts = 0;
  };

  static __device__ void piece(const Params& p, const Tile& tile, int64_t n, int64_t row0,
                               int64_t column, float (&acc)[8][4]) {
    const int lane = threadIdx.x & 31;
    const int q = lane & 3;
    StoredSixteen stored[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + lane / 4 + 8 * half;
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const int64_t h = column + 32 * group + 8 * q;
        stored[half][group] = load_product<T>(p.z, row, 2 * h, row < tile.row_end && h < n);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + lane / 4 + 8 * half;
      const bool in_rows = row < tile.row_end;
      const float before = in_rows && p.rule.row_weight != nullptr ? p.rule.row_weight[row] : 1.0f;
      const float after = in_rows && p.row_weight_after != nullptr ? p.row_weight_after[row] : 1.0f;
      float part = 0;
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const int64_t h0 = column + 32 * group;
        uint32_t first[4], second[4], activated[4], dpre_first[4], dpre_second[4];
        load_quad(p, stored[half][group], first, second);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 z0 = unpack<T>(first[i]);
          const float2 z1 = unpack<T>(second[i]);
          float gate[2] = {z0.x, p.rule.pairs ? z1.x : z0.y};
          float up[2] = {p.rule.pairs ? z0.y : z1.x, z1.y};
          float a[2], dgate[2], dup[2], weighted_gate[2], weighted_up[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int64_t h = h0 + 8 * i + 2 * q + c;
            const float da = acc[4 * group + i][2 * half + c];
            const ActivationGradient g = activate_gradient(
                p.rule.activation, before * gate[c] + p.rule.bias_at(tile.expert, h, false),
                before * up[c] + p.rule.bias_at(tile.expert, h, true));
            const float weighted = da * after;
            a[c] = g.value * after;
            dgate[c] = weighted * g.dgate;
            dup[c] = weighted * g.dup;
            // d/dweight of weight * row, or of weight * z.
            part += p.rule.row_weight == nullptr ? da * g.value
                                                 : dgate[c] * gate[c] + dup[c] * up[c];
            weighted_gate[c] = dgate[c] * before;
            weighted_up[c] = dup[c] * before;
          }
          activated[i] = pack<T>(a[0], a[1]);
          if (p.rule.pairs) {
            first[i] = pack<T>(weighted_gate[0], weighted_up[0]);
            second[i] = pack<T>(weighted_gate[1], weighted_up[1]);
            dpre_first[i] = pack<T>(dgate[0], dup[0]);
            dpre_second[i] = pack<T>(dgate[1], dup[1]);
          } else {
            first[i] = pack<T>(weighted_gate[0], weighted_gate[1]);
            second[i] = pack<T>(weighted_up[0], weighted_up[1]);
            dpre_first[i] = pack<T>(dgate[0], dgate[1]);
            dpre_second[i] = pack<T>(dup[0], dup[1]);
          }
        }
        const int64_t h = h0 + 8 * q;
        const bool valid = in_rows && h < n;
        const int64_t at = row * 2 * n + 2 * h;
        store_quad(p, first, second, p.dz + at, valid);
        if (p.dpre != nullptr) store_quad(p, dpre_first, dpre_second, p.dpre + at, valid);
        if (p.activated != nullptr) {
          transpose_quad(activated);
          if (valid) {
            *reinterpret_cast<uint4*>(p.activated + row * n + h) =
                make_uint4(activated[0], activated[1], activated[2], activated[3]);
          }
        }
      }
      if (p.score_parts != nullptr) {
        part = sum_quad(part);
        if (q == 0 && in_rows && column < n) {
          p.score_parts[row * p.num_parts + column / kPieceColumns] = part;
        }
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
      first[i] = p.rule.pairs ? word[2 * i] : word[i];
      second[i] = p.rule.pairs ? word[2 * i + 1] : word[4 + i];
    }
    transpose_quad(first);
    transpose_quad(second);
  }

  static __device__ void store_quad(const Params& p, uint32_t (&first)[4], uint32_t (&second)[4],
                                    T* to, bool valid) {
    transpose_quad(first);
    transpose_quad(second);
    if (!valid) return;
    uint4* chunk = reinterpret_cast<uint4*>(to);
    if (p.rule.pairs) {
      chunk[0] = make_uint4(first[0], second[0], first[1], second[1]);
      chunk[1] = make_uint4(first[2], second[2], first[3], second[3]);
    } else {
      chunk[0] = make_uint4(first[0], first[1], first[2], first[3]);
      chunk[1] = make_uint4(second[0], second[1], second[2], second[3]);
    }
  }
};

// ---- weight gradient: c [m, n] of an expert, in the stored layout, written or added

template <typename T>
struct WeightGradientEpilogue {
  struct Params {
    Matrix out;
    bool fp32 = false;  // the dtype of out; otherwise T
    bool accumulate = false;
    bool skip_gate = false;  // with a pairing: that half has no gradient
    bool skip_up = false;

    __device__ bool wants(int64_t row, int64_t column) const {
      if (out.pairing == Pairing::kNone) return true;
      return !(is_up(out.pairing == Pairing::kRowBlocks ? row : column) ? skip_up : skip_gate);
    }
  };

  static __device__ void piece(const Params& p, const Tile& tile, int64_t n, int64_t row0,
                               int64_t column, float (&acc)[8][4]) {
    const int lane = threadIdx.x & 31;
    const int q = lane & 3;
    if (p.accumulate && tile.depth == tile.depth_end) return;  // nothing to add
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + lane / 4 + 8 * half;
      const bool in_rows = row < tile.row_end;
      if (p.fp32) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int64_t at = column + 8 * j;
          if (!in_rows || at >= n || !p.wants(row, at)) continue;
          float2* to = reinterpret_cast<float2*>(p.out.at(tile.expert, row, at, sizeof(float))) + q;
          float2 value = make_float2(acc[j][2 * half], acc[j][2 * half + 1]);
          if (p.accumulate) {
            const float2 old = *to;
            value.x += old.x;
            value.y += old.y;
          }
          *to = value;
        }
        continue;
      }
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const int64_t at = column + 32 * group + 8 * q;
        const bool valid = in_rows && at < n && p.wants(row, at);
        uint4* to = valid ? reinterpret_cast<uint4*>(p.out.at(tile.expert, row, at, sizeof(T)))
                          : nullptr;
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
          const float* value = &acc[4 * group + j][2 * half];
          word[j] = pack<T>(value[0] + before.x, value[1] + before.y);
        }
        transpose_quad(word);
        if (valid) *to = make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
};

}  // namespace amoeba::kernels::cuda::device
