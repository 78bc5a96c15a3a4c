// The product of all fused kernels: a strip of kLanes outputs times one block of rows,
//   out[n][lane] = sum over k of weights(n, k) * panel[k][lane],
// with weights broadcast from where they are stored and lanes side by side in vectors. `F` is one
// configuration: lanes, storage type, unit (see pass.h) and the multiply-add of units.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/vectors.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct Product {
  using V = Vectors<typename F::Lanes>;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kRows = F::Lanes::kRows;              // outputs of one register tile
  static constexpr int64_t kMaxVectors = F::Lanes::kMaxVectors;  // vectors of lanes in a block
  static constexpr int64_t kWidth = kMaxVectors * kLanes;
  static constexpr int64_t kUnitBytes = 4;
  static_assert(kLanes % kRows == 0);

  // [kLanes][kWidth] sums of a strip; a narrower block uses the first lanes of each row.
  struct Sums {
    alignas(64) float value[kLanes][kWidth];
  };

  // One side of the product in bytes: unit (i, k) at data + i * stride + k * k_stride.
  struct Side {
    const char* data;
    int64_t stride, k_stride;
  };

  // sums (+)= broadcast units of `left` times vectors of `right`, whose stride is that of lanes.
  // What is there is added last: the error of a long sum grows with its blocks, not with its terms.
  template <int64_t kVectors, bool kAdd>
  static void tile(const Side& left, const Side& right, int64_t count, float* out) {
    Vec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) sums[i][v] = Vec{};
    }
    const char *a = left.data, *b = right.data;
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k) {
      Vec vectors[kVectors];
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) {
        vectors[v] = V::template load<Vec>(b + v * static_cast<int64_t>(sizeof(Vec)));
      }
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRows; ++i) {
        const Vec unit = V::fill(V::template load<float>(a + i * left.stride));
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) {
          sums[i][v] = F::multiply_add(unit, vectors[v], sums[i][v]);
        }
      }
      a += left.k_stride;
      b += right.k_stride;
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) {
        float* at = out + i * kWidth + v * kLanes;
        V::store(at, kAdd ? V::template load<Vec>(at) + sums[i][v] : sums[i][v]);
      }
    }
  }

  // A whole strip: kLanes outputs.
  static void strip(Side left, const Side& right, int64_t count, int64_t num_vectors, bool add,
                    Sums& sums) {
    for (int64_t i = 0; i < kLanes; i += kRows, left.data += kRows * left.stride) {
      float* out = sums.value[i];
      switch (num_vectors * 2 + (add ? 1 : 0)) {
        case 2:
          tile<1, false>(left, right, count, out);
          break;
        case 3:
          tile<1, true>(left, right, count, out);
          break;
        case 4:
          tile<2, false>(left, right, count, out);
          break;
        case 5:
          tile<2, true>(left, right, count, out);
          break;
        case 6:
          tile<3, false>(left, right, count, out);
          break;
        default:
          tile<3, true>(left, right, count, out);
      }
    }
  }
};

// Packing of stored values into units.
template <typename F>
struct Packing {
  using P = Product<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kValues = F::kValuesPerUnit;

  static int64_t num_units(int64_t num_values) { return (num_values + kValues - 1) / kValues; }

  static Vec load_values(const Storage* from) {  // kLanes values
    if constexpr (sizeof(Storage) == 2) {
      return V::widen(V::template load<typename V::Shorts>(from));
    } else {
      return V::template load<Vec>(from);
    }
  }
  static void store_values(Storage* to, Vec value) {
    if constexpr (sizeof(Storage) == 2) {
      V::store(to, V::narrow(value));
    } else {
      V::store(to, value);
    }
  }
  static Vec round_to_storage(Vec value) {
    if constexpr (sizeof(Storage) == 2) {
      return (Vec)V::round_bf16(value);
    } else {
      return value;
    }
  }

  // kLanes units of one row, each value times `scale` rounded to the storage type.
  static Words load_units(const Storage* from, float scale) {
    if constexpr (kValues == 2) {
      const Words units = V::template load<Words>(from);
      if (scale == 1.0f) return units;
      return V::pair(V::low_half(units) * scale, V::high_half(units) * scale);
    } else {
      const Vec values = load_values(from);
      return scale == 1.0f ? (Words)values : (Words)round_to_storage(values * scale);
    }
  }
  static Words load_units(const Storage* from, int64_t num_values, float scale) {
    if (num_values >= kLanes * kValues) return load_units(from, scale);
    Storage padded[kLanes * kValues] = {};
    if (num_values > 0) {
      std::memcpy(padded, from, static_cast<size_t>(num_values) * sizeof(Storage));
    }
    return load_units(padded, scale);
  }

  // Units [begin, end) of kLanes rows to to[unit - begin][lane], `stride` bytes a unit. A row that
  // is nullptr gives zeros.
  static void transpose_rows(const Storage* const* rows, const float* scales, int64_t num_values,
                             int64_t begin, int64_t end, char* to, int64_t stride) {
    for (int64_t unit = begin; unit < end; unit += kLanes) {
      Words words[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t k = unit * kValues;
        words[i] = rows[i] == nullptr ? Words{}
                                      : load_units(rows[i] + k, num_values - k,
                                                   scales == nullptr ? 1.0f : scales[i]);
      }
      V::transpose(words);
      const int64_t count = end - unit < kLanes ? end - unit : kLanes;
      for (int64_t i = 0; i < count; ++i) V::store(to + (unit - begin + i) * stride, words[i]);
    }
  }
};

// A strip of stored weights as the broadcast side, packed piece by piece unless the values of an
// output are side by side: single columns a row apart cost more than copying them, pairs need it,
// and a strip may end past the last output.
template <typename F>
class WeightStrip {
  using P = Product<F>;
  using V = typename P::V;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kMaxPacked = 1024;  // units

 public:
  // Value (n, k) at data + n * n_stride + k * k_stride.
  struct Weights {
    const Storage* data;
    int64_t n_stride, k_stride;
    int64_t num_n, num_k;
  };

  WeightStrip(const Weights& weights, int64_t n) : w_(weights), n_(n) {
    num_units_ = Packing<F>::num_units(w_.num_k);
    const bool is_whole = n + kLanes <= w_.num_n;
    num_direct_ = F::kReadsInPlace && is_whole && w_.k_stride == 1 ? w_.num_k / kValues : 0;
  }

  // sums (+)= this strip times a panel of num_vectors vectors of lanes.
  void multiply(const char* panel, int64_t num_vectors, bool add, typename P::Sums& sums) {
    const int64_t panel_stride = num_vectors * kLanes * P::kUnitBytes;
    if (num_direct_ > 0) {
      constexpr int64_t kBytes = sizeof(Storage);
      P::strip({(const char*)(w_.data + n_ * w_.n_stride), w_.n_stride * kBytes,
                w_.k_stride * kBytes * kValues},
               {panel, 0, panel_stride}, num_direct_, num_vectors, add, sums);
      add = true;
    }
    for (int64_t begin = num_direct_; begin < num_units_; begin += kMaxPacked, add = true) {
      const int64_t end = begin + kMaxPacked < num_units_ ? begin + kMaxPacked : num_units_;
      if (packed_begin_ != begin) pack(begin, end);
      P::strip({packed_, P::kUnitBytes, kLanes * P::kUnitBytes},
               {panel + begin * panel_stride, 0, panel_stride}, end - begin, num_vectors, add,
               sums);
    }
  }

  const Weights& weights() const { return w_; }
  int64_t first() const { return n_; }

 private:
  void pack(int64_t begin, int64_t end) {
    packed_begin_ = begin;
    constexpr int64_t kStride = kLanes * P::kUnitBytes;
    const int64_t num_n = w_.num_n - n_ < kLanes ? w_.num_n - n_ : kLanes;
    const Storage* data = w_.data + n_ * w_.n_stride;
    if (w_.k_stride == 1) {
      const Storage* rows[kLanes] = {};
      for (int64_t i = 0; i < num_n; ++i) rows[i] = data + i * w_.n_stride;
      Packing<F>::transpose_rows(rows, nullptr, w_.num_k, begin, end, packed_, kStride);
      return;
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      Words words{};
      for (int64_t j = 0; j < kValues && unit * kValues + j < w_.num_k; ++j) {
        words |= values_at(data + (unit * kValues + j) * w_.k_stride, num_n, j);
      }
      V::store(packed_ + (unit - begin) * kStride, words);
    }
  }

  // Value k of every output, where it belongs in a unit: in the upper half for the second of a
  // pair.
  Words values_at(const Storage* from, int64_t num_n, int64_t half) const {
    Storage gathered[kLanes] = {};
    if (w_.n_stride != 1 || num_n < kLanes) {
      for (int64_t i = 0; i < num_n; ++i) gathered[i] = from[i * w_.n_stride];
      from = gathered;
    }
    if constexpr (kValues == 2) {
      return V::widen_words(V::template load<typename V::Shorts>(from)) << (half == 0 ? 0 : 16);
    } else {
      return (Words)Packing<F>::load_values(from);
    }
  }

  Weights w_;
  int64_t n_, num_units_, num_direct_;
  int64_t packed_begin_ = -1;
  alignas(64) char packed_[kMaxPacked * kLanes * P::kUnitBytes];
};

}  // namespace amoeba::kernels::cpu
