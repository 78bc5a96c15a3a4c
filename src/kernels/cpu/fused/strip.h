// The product of all fused kernels: a strip of kStrip outputs times one block of rows,
//   out[n][lane] = sum over k of weights(n, k) * panel[k][lane],
// with weights broadcast from where they are stored and lanes side by side in vectors. `F` is one
// configuration: lanes, storage type, unit (see pass.h) and the multiply-add of units.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/vectors.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct VectorProduct {
  using V = Vectors<typename F::Lanes>;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kRows = F::Lanes::kRows;              // outputs of one register tile
  static constexpr int64_t kMaxVectors = F::Lanes::kMaxVectors;  // vectors of lanes in a block
  static constexpr int64_t kWidth = kMaxVectors * kLanes;
  static constexpr int64_t kUnitBytes = 4;
  // Outputs of a strip. Two vectors, so that columns of weights are read by neighbouring lines.
  static constexpr int64_t kStrip = 2 * kLanes;
  static_assert(kLanes % kRows == 0);
  // Of a strip that is packed: units of its outputs side by side, not those of each output.
  static constexpr bool kPacksOutputs = true;

  // [kStrip][kWidth] sums of a strip; a narrower block uses the first lanes of each row.
  struct Sums {
    alignas(64) float value[kStrip][kWidth];
  };

  // One side of the product in bytes: unit (i, k) at data + i * stride + k * k_stride.
  struct Side {
    const char* data;
    int64_t stride, k_stride;
  };

  // A part of the sum over k.
  struct Segment {
    Side left, right;
    int64_t count;
  };

  // out (+)= over all segments, broadcast units of `left`, from output `first` on, times vectors of
  // `right`, whose stride is that of lanes. What is there is added last: the error of a long sum
  // grows with its parts, not with its terms.
  template <int64_t kVectors>
  static void tile(const Segment* segments, int64_t num_segments, int64_t first, bool add,
                   float* out) {
    Vec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
      for (int64_t v = 0; v < kVectors; ++v) sums[i][v] = Vec{};
    }
    for (int64_t s = 0; s < num_segments; ++s) {
      const auto& [left, right, count] = segments[s];
      const char *a = left.data + first * left.stride, *b = right.data;
#pragma GCC unroll 2
      for (int64_t k = 0; k < count; ++k) {
        Vec vectors[kVectors];
#pragma GCC unroll 6
        for (int64_t v = 0; v < kVectors; ++v) {
          vectors[v] = V::template load<Vec>(b + v * static_cast<int64_t>(sizeof(Vec)));
        }
#pragma GCC unroll 8
        for (int64_t i = 0; i < kRows; ++i) {
          const Vec unit = V::fill(V::template load<float>(a + i * left.stride));
#pragma GCC unroll 6
          for (int64_t v = 0; v < kVectors; ++v) {
            sums[i][v] = F::multiply_add(unit, vectors[v], sums[i][v]);
          }
        }
        a += left.k_stride;
        b += right.k_stride;
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 6
      for (int64_t v = 0; v < kVectors; ++v) {
        float* at = out + i * kWidth + v * kLanes;
        V::store(at, add ? V::template load<Vec>(at) + sums[i][v] : sums[i][v]);
      }
    }
  }

  // A whole strip: kStrip outputs.
  template <int64_t kVectors = 1>
  static void strip(const Segment* segments, int64_t num_segments, int64_t num_vectors, bool add,
                    Sums& sums) {
    if constexpr (kVectors < kMaxVectors) {
      if (num_vectors > kVectors) {
        return strip<kVectors + 1>(segments, num_segments, num_vectors, add, sums);
      }
    }
    for (int64_t i = 0; i < kStrip; i += kRows) {
      tile<kVectors>(segments, num_segments, i, add, sums.value[i]);
    }
  }
};

// What F's regions multiply with; tiles.h has another one for configurations with tiles.
template <typename F>
struct Product : VectorProduct<F> {};

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

  // A unit of kLanes neighbouring outputs, whose values are k_stride apart.
  static Vec load_column(const Storage* from, int64_t k_stride, bool has_second) {
    if constexpr (kValues == 2) {
      using Shorts = typename V::Shorts;
      const Words low = V::widen_words(V::template load<Shorts>(from));
      if (!has_second) return (Vec)low;
      return (Vec)(low | V::widen_words(V::template load<Shorts>(from + k_stride)) << 16);
    } else {
      return load_values(from);
    }
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

// Value (n, k) at data + n * n_stride + k * k_stride.
template <typename F>
struct StoredWeights {
  const typename F::Storage* data;
  int64_t n_stride, k_stride;
  int64_t num_n, num_k;
};

// One block's operand: unit k of its lanes at data + k * stride bytes.
struct Panel {
  const char* data;
  int64_t stride, num_vectors;
};

// A strip of stored weights as the broadcast side, packed piece by piece unless the values of an
// output are side by side: columns a row apart cost more than copying them, pairs need it, and a
// strip may end past the last output.
template <typename F>
class WeightStrip {
  using P = Product<F>;
  using V = typename P::V;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kStrip = P::kStrip;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kMaxPacked = 512;  // units; what is packed stays in the second cache
  // Bytes from one output and from one unit to the next. Outputs a power of two apart would share
  // few sets of the first cache.
  static constexpr int64_t kOutputStride =
      P::kUnitBytes * (P::kPacksOutputs ? 1 : kMaxPacked + kLanes);
  static constexpr int64_t kUnitStride = P::kUnitBytes * (P::kPacksOutputs ? kStrip : 1);
  static constexpr int64_t kPackedBytes =
      P::kPacksOutputs ? kMaxPacked * kUnitStride : kStrip * kOutputStride;

 public:
  using Weights = StoredWeights<F>;

  WeightStrip(const Weights& weights, int64_t n) : w_(weights), n_(n) {
    num_units_ = Packing<F>::num_units(w_.num_k);
    const bool is_whole = n + kStrip <= w_.num_n;
    num_direct_ = F::kReadsInPlace && is_whole && w_.k_stride == 1 ? w_.num_k / kValues : 0;
  }

  // sums[i] (+)= this strip times panel(i), for i of [0, count): every piece is packed once.
  template <typename PanelOf>
  void multiply(int64_t count, const PanelOf& panel_of, bool add, typename P::Sums* sums) const {
    if (num_direct_ > 0) {
      constexpr int64_t kBytes = sizeof(Storage);
      const char* data = (const char*)(w_.data + n_ * w_.n_stride);
      multiply_piece({data, w_.n_stride * kBytes, w_.k_stride * kBytes * kValues}, 0, num_direct_,
                     count, panel_of, add, sums);
      add = true;
    }
    alignas(64) char packed[kPackedBytes];
    for (int64_t begin = num_direct_; begin < num_units_; begin += kMaxPacked, add = true) {
      const int64_t end = begin + kMaxPacked < num_units_ ? begin + kMaxPacked : num_units_;
      pack(begin, end, packed);
      multiply_piece({packed, kOutputStride, kUnitStride}, begin, end, count, panel_of, add, sums);
    }
  }

  const Weights& weights() const { return w_; }
  int64_t first() const { return n_; }

 private:
  template <typename PanelOf>
  static void multiply_piece(const typename P::Side& left, int64_t begin, int64_t end,
                             int64_t count, const PanelOf& panel_of, bool add,
                             typename P::Sums* sums) {
    for (int64_t i = 0; i < count; ++i) {
      const Panel panel = panel_of(i);
      const typename P::Segment segment = {
          left, {panel.data + begin * panel.stride, 0, panel.stride}, end - begin};
      P::strip(&segment, 1, panel.num_vectors, add, sums[i]);
    }
  }

  void pack(int64_t begin, int64_t end, char* packed) const {
    if (w_.k_stride != 1) return pack_columns(begin, end, packed);
    for (int64_t i = 0; i < kStrip; i += kLanes, packed += kLanes * kOutputStride) {
      const Storage* rows[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        rows[j] = n_ + i + j < w_.num_n ? w_.data + (n_ + i + j) * w_.n_stride : nullptr;
      }
      if constexpr (P::kPacksOutputs) {
        Packing<F>::transpose_rows(rows, nullptr, w_.num_k, begin, end, packed, kUnitStride);
      } else {
        for (int64_t j = 0; j < kLanes; ++j) {
          copy_row(rows[j], begin, end, packed + j * kOutputStride);
        }
      }
    }
  }

  // Units [begin, end) of one output, up to whole vectors; a row that is nullptr gives zeros.
  void copy_row(const Storage* row, int64_t begin, int64_t end, char* to) const {
    for (int64_t unit = begin; unit < end; unit += kLanes, to += kLanes * kUnitStride) {
      const int64_t k = unit * kValues;
      V::store(to, row == nullptr ? Words{} : Packing<F>::load_units(row + k, w_.num_k - k, 1.0f));
    }
  }

  void pack_columns(int64_t begin, int64_t end, char* packed) const {
    constexpr int64_t kStep = P::kPacksOutputs ? 1 : kLanes;
    const Storage* outputs = w_.data + n_ * w_.n_stride;
    const int64_t num_n = w_.num_n - n_;
    const int64_t last = w_.num_k / kValues < end ? w_.num_k / kValues : end;
    int64_t whole = begin;
    if (w_.n_stride == 1 && num_n >= kStrip && last > begin) {
      whole += (last - begin) / kStep * kStep;
    }
    pack_columns<true>(w_, outputs, num_n, begin, whole, packed);
    pack_columns<false>(w_, outputs, num_n, whole, end, packed + (whole - begin) * kUnitStride);
  }

  // `kIsWhole`: kStrip outputs lie side by side and all values of the units are there. The lines of
  // a row of weights are read together.
  template <bool kIsWhole>
  static void pack_columns(Weights w, const Storage* outputs, int64_t num_n, int64_t begin,
                           int64_t end, char* packed) {
    if constexpr (P::kPacksOutputs) {
      for (int64_t unit = begin; unit < end; ++unit, packed += kUnitStride) {
        for (int64_t i = 0; i < kStrip; i += kLanes) {
          const Storage* from = outputs + i * w.n_stride;
          V::store(packed + i * kOutputStride, column<kIsWhole>(w, from, num_n - i, unit));
        }
      }
    } else {
      for (int64_t unit = begin; unit < end; unit += kLanes, packed += kLanes * kUnitStride) {
        Words words[kStrip / kLanes][kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {  // zeros past the end
          for (int64_t i = 0; i < kStrip; i += kLanes) {
            const Storage* from = outputs + i * w.n_stride;
            words[i / kLanes][j] = column<kIsWhole>(w, from, num_n - i, unit + j);
          }
        }
        for (int64_t i = 0; i < kStrip; ++i) {
          if (i % kLanes == 0) V::transpose(words[i / kLanes]);
          V::store(packed + i * kOutputStride, words[i / kLanes][i % kLanes]);
        }
      }
    }
  }

  // One unit of kLanes outputs, of which num_n are there.
  template <bool kIsWhole>
  static Words column(const Weights& w, const Storage* outputs, int64_t num_n, int64_t unit) {
    const Storage* from = outputs + unit * kValues * w.k_stride;
    if constexpr (kIsWhole) return (Words)Packing<F>::load_column(from, w.k_stride, true);
    Words words{};
    for (int64_t j = 0; j < kValues && unit * kValues + j < w.num_k; ++j) {
      words |= values_at(from + j * w.k_stride, w.n_stride, num_n, j);
    }
    return words;
  }

  // Value k of kLanes outputs, of which num_n are there, where it belongs in a unit: in the upper
  // half for the second of a pair.
  static Words values_at(const Storage* from, int64_t n_stride, int64_t num_n, int64_t half) {
    Storage gathered[kLanes] = {};
    if (n_stride != 1 || num_n < kLanes) {
      for (int64_t i = 0; i < kLanes && i < num_n; ++i) gathered[i] = from[i * n_stride];
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
};

}  // namespace amoeba::kernels::cpu
