// Causal attention of one document and kv head, forward and backward, for sequences whose keys and
// values stay in cache. Every product is c[i][n] = sum over k of a(i, k) * b[k][n] with `a`
// broadcast and `b` in vectors, so only keys and values are transposed, once for all their queries:
//   S = q K^T,  P = softmax(S),  y = P v,
//   dP = dy v^T,  dS = P (dP - sum(dy y)),  dq = dS k,  dk = dS^T q,  dv = P^T dy
// (Dao et al., 2022, section B.4). Scores of a block of queries are held whole: no rescaling.
// Each sum has one owner and one order. `L` names the lanes of one instruction set and lives in an
// anonymous namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "nn/cpu_attention/pass.h"
#include "nn/vector_exp.h"

namespace amoeba::nn::cpu_attention {

template <typename L>
struct Attention {
  using Vec = typename L::Vec;  // kLanes floats
  using Ints = typename L::Ints;
  using Words = typename L::Words;
  static constexpr int64_t kLanes = L::kLanes;
  static constexpr int64_t kRows = L::kRows;  // of a register tile
  static constexpr int64_t kMaxVectors = 3;
  static constexpr int64_t kBlock = 32;  // queries
  static_assert(kBlock % kRows == 0);

  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

  // -- Products -----------------------------------------------------------------------------------
  struct Left {
    const float* data;  // a(i, k) at data + i * stride + k * k_stride
    int64_t stride, k_stride;
  };
  struct Matrix {
    float* data;
    int64_t stride;  // of a row; columns are side by side

    float* row(int64_t i) const { return data + i * stride; }
  };

  static Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

  template <int64_t kVectors, bool kAdd>
  static void tile(const Left& left, const Matrix& right, int64_t count, const Matrix& out) {
    Vec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) sums[i][v] = Vec{};
    }
    const float *a = left.data, *b = right.data;
    for (int64_t k = 0; k < count; ++k, a += left.k_stride, b += right.stride) {
      Vec vectors[kVectors];
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) vectors[v] = load(b + v * kLanes);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kRows; ++i) {
        const float value = a[i * left.stride];
#pragma GCC unroll 3
        for (int64_t v = 0; v < kVectors; ++v) sums[i][v] += value * vectors[v];
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v) {
        float* at = out.row(i) + v * kLanes;
        store(at, kAdd ? load(at) + sums[i][v] : sums[i][v]);
      }
    }
  }

  // kRows rows of `size` columns, a multiple of kLanes.
  template <bool kAdd>
  static void multiply(const Left& left, Matrix right, int64_t count, Matrix out, int64_t size) {
    for (int64_t left_over = size / kLanes; left_over > 0;) {
      const int64_t vectors = smaller(left_over, kMaxVectors);
      if (vectors == 3) {
        tile<3, kAdd>(left, right, count, out);
      } else if (vectors == 2) {
        tile<2, kAdd>(left, right, count, out);
      } else {
        tile<1, kAdd>(left, right, count, out);
      }
      left_over -= vectors;
      right.data += vectors * kLanes;
      out.data += vectors * kLanes;
    }
  }

  // -- Scratch ------------------------------------------------------------------------------------
  // Rows are padded with zeros to whole vectors, queries and keys to whole tiles.
  struct Scratch {
    Matrix k, v;                     // [S, width]
    Matrix k_columns, v_columns;     // [width, S], the same transposed
    Matrix dk, dv;                   // [S, width]
    Matrix q, dy, y, dq;             // [kBlock, width]
    Matrix p, ds;                    // [kBlock, S]
    int64_t key_width, value_width;  // padded
    int64_t size;                    // floats

    Scratch(const Pass& pass, int64_t length, float* data) : size(0) {
      key_width = round_up(pass.key_dim);
      value_width = round_up(pass.value_dim);
      const int64_t rows = (length + kBlock - 1) / kBlock * kBlock;
      // Not a power of two: columns of a large one would fall in few sets of the cache.
      const int64_t columns = round_up(rows) + kLanes;
      const auto take = [&](int64_t num_rows, int64_t stride) {
        const Matrix matrix{data + size, stride};
        size += num_rows * stride;
        return matrix;
      };
      k = take(rows, key_width);
      v = take(rows, value_width);
      k_columns = take(key_width, columns);
      v_columns = take(value_width, columns);
      dk = take(rows, key_width);
      dv = take(rows, value_width);
      q = take(kBlock, key_width);
      dq = take(kBlock, key_width);
      dy = take(kBlock, value_width);
      y = take(kBlock, value_width);
      p = take(kBlock, columns);
      ds = take(kBlock, columns);
    }
  };

  static const float* row_of(const Heads& heads, int64_t token, int64_t head) {
    return heads.data + token * heads.token_stride + head * heads.head_stride;
  }
  static float* mutable_row(const Heads& heads, int64_t token, int64_t head) {
    return heads.data + token * heads.token_stride + head * heads.head_stride;
  }

  static void prefetch(const float* row, int64_t width) {
    constexpr int64_t kLine = 16;  // floats
    for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(row + d);
  }

  // Rows [begin, end) of a head, times `scale`, to rows [0, count) of `to`; the rest is zeros.
  static void copy_rows(const Heads& from, int64_t head, int64_t begin, int64_t end, int64_t width,
                        float scale, const Matrix& to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      float* out = to.row(i);
      const int64_t used = begin + i < end ? width : 0;
      const float* in = used > 0 ? row_of(from, begin + i, head) : nullptr;
      // The next block's: heads of neighbouring tokens lie too far apart for the CPU to guess.
      if (begin + i + kBlock < end) prefetch(row_of(from, begin + i + kBlock, head), width);
      for (int64_t d = 0; d < used; ++d) out[d] = in[d] * scale;
      for (int64_t d = used; d < to.stride; ++d) out[d] = 0.0f;
    }
  }
  static void store_rows(const Matrix& from, const Heads& to, int64_t head, int64_t begin,
                         int64_t count, int64_t width, float scale) {
    for (int64_t i = 0; i < count; ++i) {
      const float* in = from.row(i);
      float* out = mutable_row(to, begin + i, head);
      for (int64_t d = 0; d < width; ++d) out[d] = in[d] * scale;
    }
  }
  static void transpose(const Matrix& from, int64_t num_rows, int64_t width, const Matrix& to) {
    constexpr int64_t kSquare = 16;
    for (int64_t i = 0; i < num_rows; i += kSquare) {
      const int64_t rows = smaller(kSquare, num_rows - i);
      for (int64_t d = 0; d < width; ++d) {
        for (int64_t j = 0; j < rows; ++j) to.row(d)[i + j] = from.row(i + j)[d];
      }
    }
  }
  static void zero(const Matrix& matrix, int64_t num_rows) {
    for (int64_t i = 0; i < num_rows * matrix.stride; ++i) matrix.data[i] = 0.0f;
  }

  // Lane l of `v` in place of lane l ^ kWidth.
  template <int64_t kWidth, int64_t... kLane>
  static Vec swapped(Vec v, std::integer_sequence<int64_t, kLane...>) {
    return __builtin_shufflevector(v, v, (kLane ^ kWidth)...);
  }
  // One value of all lanes, combined pair by pair, within registers.
  template <int64_t kWidth = kLanes / 2, typename Combine>
  static float reduce(Vec v, const Combine& combine) {
    if constexpr (kWidth == 0) {
      return v[0];
    } else {
      v = combine(v, swapped<kWidth>(v, std::make_integer_sequence<int64_t, kLanes>()));
      return reduce<kWidth / 2>(v, combine);
    }
  }
  static float sum_lanes(Vec v) {
    return reduce(v, [](Vec a, Vec b) { return a + b; });
  }
  template <int32_t... kLane>
  static auto lanes_of(std::integer_sequence<int32_t, kLane...>) {
    return Ints{kLane...};
  }
  // The first `count` lanes of `v`, then those of `rest`.
  static Vec first_lanes(Vec v, int64_t count, Vec rest) {
    const Ints lanes = lanes_of(std::make_integer_sequence<int32_t, kLanes>());
    return lanes < static_cast<int32_t>(count) ? v : rest;
  }

  // Of values[0, count), which may be read up to whole vectors.
  static float largest(const float* values, int64_t count) {
    const auto larger = [](Vec a, Vec b) { return a > b ? a : b; };
    Vec max = Vec{} + values[0];
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) max = larger(load(values + j), max);
    if (j < count) max = larger(first_lanes(load(values + j), count - j, max), max);
    return reduce(max, larger);
  }

  // scores[j] = e^(scores[j] - shift) for j < count, 0 up to `end`; returns their sum.
  static float exponentials(float* scores, float shift, int64_t count, int64_t end) {
    Vec sum{};
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      const Vec value = exponential<Vec, Words>(load(scores + j) - shift);
      store(scores + j, value);
      sum += value;
    }
    for (; j < end; j += kLanes) {
      const Vec value =
          first_lanes(exponential<Vec, Words>(load(scores + j) - shift), count - j, Vec{});
      store(scores + j, value);
      sum += value;
    }
    return sum_lanes(sum);
  }

  // A block of queries of one head: rows [begin, begin + count) of the document.
  struct Queries {
    int64_t head, begin, count;

    // Keys that a tile of rows from `row` on sees, in whole vectors.
    int64_t num_keys(int64_t row) const { return round_up(begin + row + kRows); }
  };
  template <typename Body>
  static void for_each_queries(const Pass& pass, const Task& task, const Body& body) {
    for (int64_t h = 0; h < pass.heads_per_kv; ++h) {
      for (int64_t begin = 0; begin < task.length; begin += kBlock) {
        body(Queries{task.kv_head * pass.heads_per_kv + h, begin,
                     smaller(kBlock, task.length - begin)});
      }
    }
  }

  static void load_keys(const Pass& pass, const Task& task, const Scratch& s) {
    const int64_t end = task.begin + task.length;
    const int64_t rows = (task.length + kBlock - 1) / kBlock * kBlock;
    copy_rows(pass.k, task.kv_head, task.begin, end, pass.key_dim, 1.0f, s.k, rows);
    copy_rows(pass.v, task.kv_head, task.begin, end, pass.value_dim, 1.0f, s.v, rows);
    transpose(s.k, rows, s.key_width, s.k_columns);
  }
  static void load_queries(const Pass& pass, const Task& task, const Queries& queries,
                           const Scratch& s) {
    copy_rows(pass.q, queries.head, task.begin + queries.begin, task.begin + task.length,
              pass.key_dim, pass.scale, s.q, kBlock);
  }
  static float* lse_of(const Pass& pass, const Task& task, const Queries& queries) {
    return pass.lse + queries.head * pass.num_tokens + task.begin + queries.begin;
  }

  static void forward(const Pass& pass, const Task& task, float* scratch) {
    const Scratch s(pass, task.length, scratch);
    load_keys(pass, task, s);
    for_each_queries(pass, task, [&](const Queries& queries) {
      load_queries(pass, task, queries, s);
      float* lse = lse_of(pass, task, queries);
      for (int64_t row = 0; row < queries.count; row += kRows) {
        const int64_t num_keys = queries.num_keys(row);
        multiply<false>({s.q.row(row), s.q.stride, 1}, s.k_columns, pass.key_dim,
                        {s.p.row(row), s.p.stride}, num_keys);
        float inverse[kRows];
        for (int64_t i = 0; i < kRows; ++i) {
          float* scores = s.p.row(row + i);
          const int64_t seen = queries.begin + row + i + 1;
          const float max = largest(scores, seen);
          const float sum = exponentials(scores, max, seen, num_keys);
          inverse[i] = 1.0f / sum;
          if (row + i < queries.count) lse[row + i] = max + std::log(sum);
        }
        multiply<false>({s.p.row(row), s.p.stride, 1}, s.v, num_keys, {s.y.row(row), s.y.stride},
                        s.value_width);
        for (int64_t i = 0; i < kRows && row + i < queries.count; ++i) {
          store_rows({s.y.row(row + i), s.y.stride}, pass.y, queries.head,
                     task.begin + queries.begin + row + i, 1, pass.value_dim, inverse[i]);
        }
      }
    });
  }

  static float dot(const float* a, const float* b, int64_t size) {  // size: whole vectors
    float lanes[kLanes] = {};
    for (int64_t d = 0; d < size; d += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += a[d + l] * b[d + l];
    }
    return sum_lanes(load(lanes));
  }

  // P, dS and dq of a block of queries.
  static void differentiate_queries(const Pass& pass, const Task& task, const Queries& queries,
                                    const Scratch& s) {
    const float* lse = lse_of(pass, task, queries);
    for (int64_t row = 0; row < queries.count; row += kRows) {
      const int64_t num_keys = queries.num_keys(row);
      multiply<false>({s.q.row(row), s.q.stride, 1}, s.k_columns, pass.key_dim,
                      {s.p.row(row), s.p.stride}, num_keys);
      multiply<false>({s.dy.row(row), s.dy.stride, 1}, s.v_columns, pass.value_dim,
                      {s.ds.row(row), s.ds.stride}, num_keys);
      for (int64_t i = row; i < row + kRows; ++i) {
        const bool is_query = i < queries.count;
        float *p = s.p.row(i), *ds = s.ds.row(i);
        exponentials(p, is_query ? lse[i] : 0.0f, is_query ? queries.begin + i + 1 : 0, num_keys);
        const float dot_dy_y = dot(s.dy.row(i), s.y.row(i), s.value_width);
        for (int64_t j = 0; j < num_keys; ++j) ds[j] = p[j] * (ds[j] - dot_dy_y);
      }
      multiply<false>({s.ds.row(row), s.ds.stride, 1}, s.k, num_keys, {s.dq.row(row), s.dq.stride},
                      s.key_width);
    }
  }

  static void backward(const Pass& pass, const Task& task, float* scratch) {
    const Scratch s(pass, task.length, scratch);
    load_keys(pass, task, s);
    const int64_t rows = (task.length + kBlock - 1) / kBlock * kBlock;
    transpose(s.v, rows, s.value_width, s.v_columns);
    zero(s.dk, rows);
    zero(s.dv, rows);
    for_each_queries(pass, task, [&](const Queries& queries) {
      const int64_t begin = task.begin + queries.begin, end = task.begin + task.length;
      load_queries(pass, task, queries, s);
      copy_rows(pass.dy, queries.head, begin, end, pass.value_dim, 1.0f, s.dy, kBlock);
      copy_rows(pass.y, queries.head, begin, end, pass.value_dim, 1.0f, s.y, kBlock);
      differentiate_queries(pass, task, queries, s);
      store_rows(s.dq, pass.dq, queries.head, begin, queries.count, pass.key_dim, pass.scale);
      const int64_t num_rows = (queries.count + kRows - 1) / kRows * kRows;
      for (int64_t j = 0; j < queries.begin + queries.count; j += kRows) {
        // Queries before key j do not see it.
        const int64_t first = j > queries.begin ? j - queries.begin : 0;
        multiply<true>({s.ds.row(first) + j, 1, s.ds.stride}, {s.q.row(first), s.q.stride},
                       num_rows - first, {s.dk.row(j), s.dk.stride}, s.key_width);
        multiply<true>({s.p.row(first) + j, 1, s.p.stride}, {s.dy.row(first), s.dy.stride},
                       num_rows - first, {s.dv.row(j), s.dv.stride}, s.value_width);
      }
    });
    store_rows(s.dk, pass.dk, task.kv_head, task.begin, task.length, pass.key_dim, 1.0f);
    store_rows(s.dv, pass.dv, task.kv_head, task.begin, task.length, pass.value_dim, 1.0f);
  }

  static int64_t scratch_floats(const Pass& pass, int64_t length) {
    return Scratch(pass, length, nullptr).size;
  }
};

template <typename L>
constexpr Kernels kernels_of() {
  return {Attention<L>::scratch_floats, Attention<L>::forward, Attention<L>::backward};
}

}  // namespace amoeba::nn::cpu_attention
