// Products of experts with few rows, which reading their weights limits: weights and rows both lie
// with k side by side, and every vector of weights is multiplied as it comes with all rows.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/strip.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct Dots {
  using P = Product<F>;
  using K = Packing<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kMaxRows = kLanes / 2;  // of a block whose operand is kept as rows

  // Rows of such a block lie this many units apart, in the memory of its panel.
  static constexpr int64_t row_stride(int64_t num_units) {
    return (num_units + kLanes - 1) / kLanes * kLanes;
  }

  // out[i][r] = sum over k of weights[i][k] * rows[r][k]
  template <int64_t kOutputs, int64_t kRows>
  static void tile(const Storage* weights, int64_t weight_stride, int64_t num_k, const char* rows,
                   float* out) {
    static_assert(kOutputs * kRows <= kLanes);
    constexpr int64_t kStep = kLanes * F::kValuesPerUnit;
    const int64_t stride = row_stride(K::num_units(num_k)) * P::kUnitBytes;
    Vec sums[kOutputs][kRows] = {};
    for (int64_t k = 0; k < num_k; k += kStep) {
      const int64_t left = num_k - k;
      const char* from = rows + k / F::kValuesPerUnit * P::kUnitBytes;
      Vec values[kOutputs];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kOutputs; ++i) {
        const Storage* at = weights + i * weight_stride + k;
        values[i] = (Vec)K::load_units(at, left, 1.0f);
        __builtin_prefetch(at + kOutputs * weight_stride, 0, 2);  // what the next tile reads
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) {
        const Vec row = left >= kStep ? V::template load<Vec>(from + r * stride)
                                      : load_first(from + r * stride, K::num_units(left));
#pragma GCC unroll 4
        for (int64_t i = 0; i < kOutputs; ++i) {
          sums[i][r] = F::multiply_add(values[i], row, sums[i][r]);
        }
      }
    }
    Words words[kLanes] = {};
#pragma GCC unroll 16
    for (int64_t j = 0; j < kOutputs * kRows; ++j) words[j] = (Words)sums[j / kRows][j % kRows];
    V::transpose(words);
    Vec totals{};
    for (int64_t j = 0; j < kLanes; ++j) totals += (Vec)words[j];
    for (int64_t j = 0; j < kOutputs * kRows; ++j) {
      out[j / kRows * P::kWidth + j % kRows] = totals[j];
    }
  }
  static Vec load_first(const char* from, int64_t num_units) {
    float padded[kLanes] = {};
    std::memcpy(padded, from, static_cast<size_t>(num_units * P::kUnitBytes));
    return V::template load<Vec>(padded);
  }

  // A strip of `num_outputs` outputs; lanes without a row get zeros.
  static void strip(const Storage* weights, int64_t weight_stride, int64_t num_outputs,
                    int64_t num_k, const char* rows, int64_t num_rows, typename P::Sums& sums) {
    for (int64_t i = 0; i < P::kStrip; ++i) V::store(sums.value[i], Vec{});
    const auto run = [&]<int64_t kRows>(std::integral_constant<int64_t, kRows>) {
      constexpr int64_t kOutputs = kRows * 4 <= kLanes ? 4 : 2;
      int64_t i = 0;
      for (; i + kOutputs <= num_outputs; i += kOutputs) {
        tile<kOutputs, kRows>(weights + i * weight_stride, weight_stride, num_k, rows,
                              sums.value[i]);
      }
      for (; i < num_outputs; ++i) {
        tile<1, kRows>(weights + i * weight_stride, weight_stride, num_k, rows, sums.value[i]);
      }
    };
    with_rows<1>(num_rows, run);
  }
  template <int64_t kRows, typename Run>
  static void with_rows(int64_t num_rows, const Run& run) {
    if constexpr (kRows < kMaxRows) {
      if (num_rows > kRows) return with_rows<kRows + 1>(num_rows, run);
    }
    run(std::integral_constant<int64_t, kRows>());
  }
};

}  // namespace amoeba::kernels::cpu
