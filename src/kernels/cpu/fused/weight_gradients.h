// Weight gradients: strip [first, first + kStrip) of H times all of D, summed over an expert's rows
// in order and stored once, past the caches where nobody reads them soon.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/backward.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct WeightGradients {
  using W = Forward<F>;
  using R = Rows<F>;
  using P = Product<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  using Sums = typename P::Sums;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kStrip = P::kStrip;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kUnitBytes = P::kUnitBytes;
  static constexpr int64_t kTokenBytes = kUnitBytes / kValues;

  // One gradient as seen from here: element (h, d) at data + h * h_stride + d * d_stride.
  struct Target {
    void* data;
    DType dtype;
    int64_t h_stride, d_stride;
  };
  static Target target_of(const Matrix& matrix, int64_t e, bool is_down) {
    const int64_t bytes = matrix.dtype == DType::kF32 ? 4 : static_cast<int64_t>(sizeof(Storage));
    return {static_cast<char*>(matrix.data) + e * matrix.stride[0] * bytes, matrix.dtype,
            matrix.stride[is_down ? 2 : 1], matrix.stride[is_down ? 1 : 2]};
  }

  // `count` values along a contiguous dimension, or kLanes if that is less.
  template <typename T>
  static void store_line(const Pass& p, T* to, Vec value, int64_t count) {
    constexpr bool kIsFloat = sizeof(T) == 4;
    T padded[kLanes];
    T* at = to;
    if (count < kLanes) {
      if (p.accumulate) std::memcpy(padded, to, static_cast<size_t>(count) * sizeof(T));
      at = padded;
    }
    if (p.accumulate) {
      if constexpr (kIsFloat) {
        value = V::template load<Vec>(at) + value;
      } else {
        value = V::widen(V::template load<typename V::Shorts>(at)) + value;
      }
    }
    if constexpr (kIsFloat) {
      const bool is_line = count >= kLanes && reinterpret_cast<uintptr_t>(at) % sizeof(Vec) == 0;
      F::Lanes::store(p.streams && is_line, at, value);
    } else {
      V::store(at, V::narrow(value));
    }
    if (count < kLanes) std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
  }

  // As much memory as a vector of fp32.
  static void store_pair(const Pass& p, Storage* to, Vec first, Vec second) {
    const bool is_line = reinterpret_cast<uintptr_t>(to) % sizeof(Vec) == 0;
    F::Lanes::store(p.streams && is_line, reinterpret_cast<float*>(to), V::narrow(first, second));
  }

  template <typename T>
  static void store_typed(const Pass& p, const Target& target, int64_t h, int64_t d,
                          const Sums& sums, int64_t num_d) {
    T* data = static_cast<T*>(target.data);
    const int64_t num_h = p.sizes.hidden_dim - h < kStrip ? p.sizes.hidden_dim - h : kStrip;
    if (target.d_stride == 1) {
      for (int64_t i = 0; i < num_h; ++i) {
        T* row = data + (h + i) * target.h_stride + d;
        int64_t j = 0;
        if constexpr (sizeof(T) == 2) {
          for (; !p.accumulate && j + 2 * kLanes <= num_d; j += 2 * kLanes) {
            const float* value = &sums.value[i][j];
            store_pair(p, row + j, V::template load<Vec>(value),
                       V::template load<Vec>(value + kLanes));
          }
        }
        for (; j < num_d; j += kLanes) {
          store_line(p, row + j, V::template load<Vec>(&sums.value[i][j]), num_d - j);
        }
      }
      return;
    }
    for (int64_t at = 0; at < num_h; at += kLanes) {
      for (int64_t j = 0; j < num_d; j += kLanes) {
        Words words[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          words[i] = V::template load<Words>(&sums.value[at + i][j]);
        }
        V::transpose(words);
        for (int64_t k = 0; k < kLanes && j + k < num_d; ++k) {
          T* column = data + (h + at) * target.h_stride + (d + j + k) * target.d_stride;
          if (target.h_stride == 1) {
            store_line(p, column, (Vec)words[k], num_h - at);
          } else {
            store_apart(p, target, column, (Vec)words[k], num_h - at);
          }
        }
      }
    }
  }
  template <typename T>
  static void store_apart(const Pass& p, const Target& target, T* to, Vec value, int64_t count) {
    for (int64_t i = 0; i < kLanes && i < count; ++i) {
      const int64_t at = i * target.h_stride;
      float sum = value[i];
      if (p.accumulate) sum += R::load_scalar(to, target.dtype, at);
      R::store_scalar(to, target.dtype, at, sum);
    }
  }

  // target(h, d) = sum over the rows of e of tokens[h][row] * rows[row][d], for strips [s0, s1) of
  // H; rows pass by some columns at a time, and stay in the caches while strips do. In bf16 two
  // vectors are what a vector of fp32 is, and whole lines are stored.
  static void write(const Pass& p, const Target& target, int64_t e, int64_t s0, int64_t s1,
                    const char* tokens, const char* rows) {
    const int64_t d_size = p.sizes.model_dim;
    if (p.first_block[e] == p.first_block[e + 1] && p.accumulate) return;
    const int64_t width = target.dtype == DType::kF32 ? P::kWidth : 2 * kLanes;
    Sums sums;
    for (int64_t d = 0; d < d_size; d += width) {
      const int64_t num_d = d_size - d < width ? d_size - d : width;
      for (int64_t s = s0; s < s1; ++s) {
        sum_rows(p, e, s * kStrip, tokens, rows + d * kUnitBytes, (num_d + kLanes - 1) / kLanes,
                 sums);
        if (target.dtype == DType::kF32) {
          store_typed<float>(p, target, s * kStrip, d, sums, num_d);
        } else {
          store_typed<Storage>(p, target, s * kStrip, d, sums, num_d);
        }
      }
    }
  }
  static void sum_rows(const Pass& p, int64_t e, int64_t h, const char* tokens, const char* rows,
                       int64_t num_vectors, Sums& sums) {
    const int64_t b0 = p.first_block[e], b1 = p.first_block[e + 1];
    if (b0 == b1) std::memset(&sums, 0, sizeof sums);
    constexpr int64_t kMaxSegments = 16;
    typename P::Segment segments[kMaxSegments];
    for (int64_t b = b0; b < b1;) {
      const bool add = b > b0;
      int64_t count = 0;
      for (; b < b1 && count < kMaxSegments; ++b) {
        const Block& block = p.blocks[b];
        const int64_t stride = block.num_lanes * kTokenBytes;
        segments[count++] = {
            {tokens + block.lane * p.sizes.hidden_dim * kTokenBytes + h * stride, stride,
             kUnitBytes},
            {rows + block.lane / kValues * p.row_stride * kUnitBytes, 0, p.row_stride * kUnitBytes},
            (block.num_rows + kValues - 1) / kValues};
      }
      P::strip(segments, count, num_vectors, add, sums);
    }
  }

  static void write_bias(const Pass& p, const Matrix& bias, int64_t e, int64_t i, float sum) {
    const int64_t at = e * bias.stride[0] + i * bias.stride[1];
    if (p.accumulate) sum += R::load_scalar(bias.data, bias.dtype, at);
    R::store_scalar(bias.data, bias.dtype, at, sum);
  }

  static void write_hidden_bias(const Pass& p, const Matrix& bias, int64_t e, int64_t s0,
                                int64_t s1, const char* tokens) {
    const int64_t end = s1 * kStrip < p.sizes.hidden_dim ? s1 * kStrip : p.sizes.hidden_dim;
    for (int64_t i = s0 * kStrip; bias.data != nullptr && i < end; ++i) {
      float sum = 0.0f;
      for (int64_t b = p.first_block[e]; b < p.first_block[e + 1]; ++b) {
        const Block& block = p.blocks[b];
        const char* row =
            tokens + (block.lane * p.sizes.hidden_dim + i * block.num_lanes) * kTokenBytes;
        const DType dtype = kTokenBytes == 4 ? DType::kF32 : DType::kBF16;
        for (int64_t j = 0; j < block.num_rows; ++j) sum += R::load_scalar(row, dtype, j);
      }
      write_bias(p, bias, e, i, sum);
    }
  }

  // Sum of score * dy over the rows of e.
  static void write_down_bias(const Pass& p, int64_t e) {
    for (int64_t d = 0; d < p.sizes.model_dim; d += kLanes) {
      Vec sum{};
      for (int64_t b = p.first_block[e]; b < p.first_block[e + 1]; ++b) {
        const Block& block = p.blocks[b];
        for (int64_t i = 0; i < block.num_rows; i += kValues) {
          const char* row =
              p.dy_rows + ((block.lane + i) / kValues * p.row_stride + d) * kUnitBytes;
          const Words units = V::template load<Words>(row);
          const float* scores = p.lane_scores + block.lane + i;
          if constexpr (kValues == 2) {
            sum += V::low_half(units) * scores[0];
            if (i + 1 < block.num_rows) sum += V::high_half(units) * scores[1];
          } else {
            sum += (Vec)units * scores[0];
          }
        }
      }
      for (int64_t i = 0; i < kLanes && d + i < p.sizes.model_dim; ++i) {
        write_bias(p, p.gradients.down_bias, e, d + i, sum[i]);
      }
    }
  }

  static void dweights(void* context, int64_t begin, int64_t end) {
    const Pass& p = W::pass_of(context);
    const Matrices& g = p.gradients;
    for_each_strip_range(p.gradient_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      if (g.gate.data != nullptr) {
        write(p, target_of(g.gate, e, false), e, s0, s1, p.dgate_tokens, p.x_rows);
      }
      if (g.up.data != nullptr) {
        write(p, target_of(g.up, e, false), e, s0, s1, p.dup_tokens, p.x_rows);
      }
      if (g.down.data != nullptr) {
        write(p, target_of(g.down, e, true), e, s0, s1, p.hidden_tokens, p.dy_rows);
      }
      write_hidden_bias(p, g.gate_bias, e, s0, s1, p.dgate_tokens);
      write_hidden_bias(p, g.up_bias, e, s0, s1, p.dup_tokens);
      if (s0 == 0 && g.down_bias.data != nullptr) write_down_bias(p, e);
    });
    F::Lanes::finish_streams();
  }
};

template <typename F>
constexpr FusedKernels kernels_of() {
  return {F::Lanes::kLanes,     F::Lanes::kMaxVectors, Product<F>::kStrip,
          F::kValuesPerUnit,    Forward<F>::pack,      Forward<F>::gate_up,
          Forward<F>::down,     Forward<F>::combine,   Backward<F>::pack,
          Backward<F>::dhidden, Backward<F>::dinput,   WeightGradients<F>::dweights,
          Backward<F>::combine};
}

}  // namespace amoeba::kernels::cpu
