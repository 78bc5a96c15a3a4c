// Products of experts with few rows where the outputs of a weight lie side by side. Reading weights
// limits them: a vector of weights is multiplied as it comes by the rows, broadcast from their
// panel.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/strip.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct Columns {
  using P = Product<F>;
  using K = Packing<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kVectors = P::kStrip / kLanes;
  static constexpr int64_t kMaxRows = kLanes / 2;

  // Whole strips only: a vector past the last column may lie past the last weight.
  static bool takes(const StoredWeights<F>& w, int64_t first, int64_t num_rows) {
    return num_rows <= kMaxRows && w.n_stride == 1 && first + P::kStrip <= w.num_n;
  }

  // Rows of weights lie pages apart, where no hardware looks ahead.
  static void prefetch_next_strip(const Storage* weights, int64_t k_stride) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Storage));
#pragma GCC unroll 2
    for (int64_t j = 0; j < kValues; ++j) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < P::kStrip; i += kLine) {
        __builtin_prefetch(weights + j * k_stride + P::kStrip + i, 0, 2);
      }
    }
  }

  // out[i][n] = sum over k of weights(n, k) * panel[k][i]
  template <int64_t kRows>
  static void tile(const Storage* weights, int64_t k_stride, int64_t num_k, const Panel& panel,
                   Vec (&out)[kVectors][kLanes]) {
    Vec sums[kRows][kVectors] = {};
    const char* lanes = panel.data;
    for (int64_t k = 0; k < num_k; k += kValues) {
      Vec vectors[kVectors];
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        vectors[v] = K::load_column(weights + v * kLanes, k_stride, k + 1 < num_k);
      }
      if constexpr (kRows > 1 || sizeof(Storage) == 2) prefetch_next_strip(weights, k_stride);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRows; ++i) {
        const Vec unit = V::fill(V::template load<float>(lanes + i * P::kUnitBytes));
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) {
          sums[i][v] = F::multiply_add(unit, vectors[v], sums[i][v]);
        }
      }
      weights += kValues * k_stride;
      lanes += panel.stride;
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) out[v][i] = sums[i][v];
    }
  }

  // sums (+)= the strip of outputs that begins with `first`; lanes without a row get zeros.
  static void strip(const StoredWeights<F>& w, int64_t first, const Panel& panel, int64_t num_rows,
                    bool add, typename P::Sums& sums) {
    Vec out[kVectors][kLanes] = {};
    const auto run = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>) {
      tile<kRows>(w.data + first, w.k_stride, w.num_k, panel, out);
    };
    with_rows<1>(num_rows, run);
    for (int64_t v = 0; v < kVectors; ++v) {
      Words words[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) words[i] = (Words)out[v][i];
      V::transpose(words);
      for (int64_t i = 0; i < kLanes; ++i) {
        float* at = sums.value[v * kLanes + i];
        const Vec value = (Vec)words[i];
        V::store(at, add ? V::template load<Vec>(at) + value : value);
      }
    }
  }
  // The next power of two: lanes without a row hold zeros.
  template <int64_t kRows, typename Run>
  static void with_rows(int64_t num_rows, const Run& run) {
    if constexpr (kRows < kMaxRows) {
      if (num_rows > kRows) return with_rows<2 * kRows>(num_rows, run);
    }
    run(std::integral_constant<int64_t, kRows>());
  }
};

}  // namespace amoeba::kernels::cpu
