// Rows in and out of panels: gathering and packing tokens, writing strips of rows, and the ordered
// sum over a token's choices.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/columns.h"
#include "kernels/cpu/fused/dots.h"
#include "kernels/cpu/fused/pass.h"
#include "kernels/cpu/fused/strip.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct Rows {
  using P = Product<F>;
  using K = Packing<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  using Sums = typename P::Sums;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kStrip = P::kStrip;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kUnitBytes = P::kUnitBytes;

  // -- Scalars
  // --------------------------------------------------------------------------------------
  static float load_scalar(const void* data, DType dtype, int64_t at) {
    if (dtype == DType::kF32) return static_cast<const float*>(data)[at];
    if (dtype == DType::kF64) {
      return static_cast<float>(static_cast<const double*>(data)[at]);
    }
    return V::widen(typename V::Shorts{} + static_cast<const uint16_t*>(data)[at])[0];
  }
  static void store_scalar(void* data, DType dtype, int64_t at, float value) {
    if (dtype == DType::kF32) {
      static_cast<float*>(data)[at] = value;
    } else if (dtype == DType::kF64) {
      static_cast<double*>(data)[at] = value;
    } else {
      static_cast<uint16_t*>(data)[at] = V::narrow(V::fill(value))[0];
    }
  }
  static float bias_of(const Matrix& bias, int64_t e, int64_t i) {
    if (bias.data == nullptr) return 0.0f;
    return load_scalar(bias.data, bias.dtype, e * bias.stride[0] + i * bias.stride[1]);
  }
  static int64_t slot_of(const Pass& p, int64_t row) {
    return p.sizes.has_slots ? p.row_slot[row] : row;
  }
  static int64_t token_of(const Pass& p, int64_t row) {
    return p.sizes.has_slots ? p.row_slot[row] / p.sizes.num_choices : row;
  }
  static float score_of(const Pass& p, int64_t row) {
    if (p.scores.data == nullptr) return 1.0f;
    const int64_t t = token_of(p, row), k = slot_of(p, row) - t * p.sizes.num_choices;
    return load_scalar(p.scores.data, p.scores.dtype,
                       t * p.scores.stride[0] + k * p.scores.stride[1]);
  }
  static const Storage* token_row(const View& view, int64_t t) {
    return static_cast<const Storage*>(view.data) + t * view.stride[0];
  }

  // -- Packing
  // -------------------------------------------------------------------------------------- The rows
  // of a block, gathered from tokens; nullptr in lanes without a row.
  struct Gathered {
    const Storage* rows[P::kWidth];
    float scales[P::kWidth];  // what each row is multiplied by
  };
  static void gather(const Pass& p, const Block& block, const View& from, bool scaled,
                     Gathered& to) {
    for (int64_t i = 0; i < block.num_lanes; ++i) {
      const bool has_row = i < block.num_rows;
      to.rows[i] = has_row ? token_row(from, token_of(p, block.row + i)) : nullptr;
      to.scales[i] = has_row && scaled ? score_of(p, block.row + i) : 1.0f;
    }
  }

  // Of an expert's only block: groups of blocks have panels.
  static bool has_dots(const Pass& p, bool pass_has, const Block& block) {
    return pass_has && block.num_rows <= Dots<F>::kMaxRows &&
           p.first_block[block.expert + 1] - p.first_block[block.expert] == 1;
  }

  // [D units][lanes], or [rows][D units] for dots.
  static void pack_panel(const Pass& p, const Block& block, const Gathered& from, bool as_rows,
                         char* panels) {
    const int64_t num_units = K::num_units(p.sizes.model_dim);
    char* panel = panels + block.lane * num_units * kUnitBytes;
    if (as_rows) {
      for (int64_t i = 0; i < block.num_rows; ++i) {
        char* row = panel + i * Dots<F>::row_stride(num_units) * kUnitBytes;
        for (int64_t unit = 0; unit < num_units; unit += kLanes) {
          const int64_t k = unit * kValues;
          V::store(row + unit * kUnitBytes,
                   K::load_units(from.rows[i] + k, p.sizes.model_dim - k, from.scales[i]));
        }
      }
      return;
    }
    for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
      K::transpose_rows(from.rows + v, from.scales + v, p.sizes.model_dim, 0, num_units,
                        panel + v * kUnitBytes, block.num_lanes * kUnitBytes);
    }
  }

  // [lanes][row_stride] values, or neighbouring rows as pairs: the right side of weight gradients.
  static void pack_rows(const Pass& p, const Block& block, const Gathered& from, char* to) {
    to += block.lane / kValues * p.row_stride * kUnitBytes;
    for (int64_t i = 0; i < block.num_rows; i += kValues, to += p.row_stride * kUnitBytes) {
      for (int64_t d = 0; d < p.sizes.model_dim; d += kLanes) {
        const Vec first = load_row(from, i, d, p.sizes.model_dim);
        Words words = (Words)first;
        if constexpr (kValues == 2) {
          const Vec second =
              i + 1 < block.num_rows ? load_row(from, i + 1, d, p.sizes.model_dim) : Vec{};
          words = V::pair(first, second);
        }
        V::store(to + d * kUnitBytes, words);
      }
    }
  }
  static Vec load_row(const Gathered& from, int64_t i, int64_t d, int64_t size) {
    const Vec values = load_padded(from.rows[i] + d, size - d);
    return from.scales[i] == 1.0f ? values : K::round_to_storage(values * from.scales[i]);
  }
  static Vec load_padded(const Storage* from, int64_t count) {
    if (count >= kLanes) return K::load_values(from);
    Storage padded[kLanes] = {};
    std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(Storage));
    return K::load_values(padded);
  }

  static void store_part(Storage* to, Vec value, int64_t count) {
    if (count >= kLanes) return K::store_values(to, value);
    Storage padded[kLanes];
    K::store_values(padded, value);
    std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(Storage));
  }

  // The same for the product with down: rows [first, first + kStrip) of H as a part of each row.
  static void store_hidden_rows(const Pass& p, const Block& block, int64_t first, const Sums& sums,
                                char* panels) {
    const int64_t num_units = K::num_units(p.sizes.hidden_dim);
    for (int64_t at = 0; at < kStrip && first + at < p.sizes.hidden_dim; at += kLanes) {
      char* panel = panels + (block.lane * num_units + (first + at) / kValues) * kUnitBytes;
      Words words[kLanes] = {};
      for (int64_t i = 0; i < kLanes && first + at + i < p.sizes.hidden_dim; ++i) {
        words[i] = V::template load<Words>(sums.value[at + i]);
      }
      V::transpose(words);
      for (int64_t i = 0; i < block.num_rows; ++i) {
        char* row = panel + i * Dots<F>::row_stride(num_units) * kUnitBytes;
        if constexpr (kValues == 2) {
          V::store(row, V::narrow((Vec)words[i]));
        } else {
          V::store(row, words[i]);
        }
      }
    }
  }

  // Rows [first, first + kStrip) of H as a part of a panel of H units.
  static void store_panel(const Pass& p, const Block& block, int64_t first, const Sums& sums,
                          char* panels) {
    const int64_t num_units = K::num_units(p.sizes.hidden_dim);
    char* panel =
        panels + (block.lane * num_units + first / kValues * block.num_lanes) * kUnitBytes;
    for (int64_t i = 0; i < kStrip && first + i < p.sizes.hidden_dim; i += kValues) {
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        const Vec value = V::template load<Vec>(&sums.value[i][v]);
        Words words = (Words)value;
        if constexpr (kValues == 2) {
          words = V::pair(value, first + i + 1 < p.sizes.hidden_dim
                                     ? V::template load<Vec>(&sums.value[i + 1][v])
                                     : Vec{});
        }
        V::store(panel + v * kUnitBytes, words);
      }
      panel += block.num_lanes * kUnitBytes;
    }
  }

  // The same rows as [H][lanes]: single values, so that a pair is two neighbouring rows of tokens.
  static void store_tokens(const Pass& p, const Block& block, int64_t first, const Sums& sums,
                           char* tokens) {
    constexpr int64_t kBytes = kUnitBytes / kValues;
    char* to = tokens + (block.lane * p.sizes.hidden_dim + first * block.num_lanes) * kBytes;
    for (int64_t i = 0; i < kStrip && first + i < p.sizes.hidden_dim; ++i) {
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        const Vec value = V::template load<Vec>(&sums.value[i][v]);
        if constexpr (kValues == 2) {
          V::store(to + v * kBytes, V::narrow(value));
        } else {
          V::store(to + v * kBytes, value);
        }
      }
      to += block.num_lanes * kBytes;
    }
  }

  // Where strip [first, ...) of D of a block's row i goes.
  static Storage* output_row(const Pass& p, const Block& block, int64_t i, int64_t first) {
    return reinterpret_cast<Storage*>(p.rows) + (block.row + i) * p.rows_stride + first;
  }
  // Asks for the lines that store_rows() will write, before the product that takes longer.
  static void prefetch_rows(const Pass& p, const Block& block, int64_t first) {
    for (int64_t i = 0; i < block.num_rows; ++i) {
      const char* line = reinterpret_cast<const char*>(output_row(p, block, i, first));
      for (int64_t at = 0; at < kStrip * static_cast<int64_t>(sizeof(Storage)); at += 64) {
        __builtin_prefetch(line + at, 1);
      }
    }
  }
  // Writes strip [first, first + kStrip) of D of a block's rows.
  static void store_rows(const Pass& p, const Block& block, int64_t first, const Sums& sums) {
    for (int64_t at = 0; at < kStrip && first + at < p.sizes.model_dim; at += kLanes) {
      const int64_t count = p.sizes.model_dim - first - at;
      for (int64_t v = 0; v < block.num_rows; v += kLanes) {
        Words words[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          words[i] = V::template load<Words>(&sums.value[at + i][v]);
        }
        V::transpose(words);
        for (int64_t i = 0; i < kLanes && v + i < block.num_rows; ++i) {
          store_part(output_row(p, block, v + i, first + at), (Vec)words[i], count);
        }
      }
    }
  }

  // -- Over tokens
  // ---------------------------------------------------------------------------------- output[t] =
  // sum over k, in order, of the rows of t, times their scores if `weighted`. In the rows entry the
  // rows are there already and those of no expert become zero.
  static void combine(const Pass& p, bool weighted, int64_t begin, int64_t end) {
    const int64_t size = p.sizes.model_dim;
    const Storage* rows = reinterpret_cast<const Storage*>(p.rows);
    for (int64_t t = begin; t < end; ++t) {
      if (!p.sizes.has_slots && t < p.offsets[p.sizes.num_experts]) continue;
      Storage* out = const_cast<Storage*>(token_row(p.output, t));
      for (int64_t d = 0; d < size; d += kLanes) {
        Vec sum{};
        for (int64_t k = 0; p.sizes.has_slots && k < p.sizes.num_choices; ++k) {
          const int64_t row = p.slot_row[t * p.sizes.num_choices + k];
          if (row < 0) continue;
          const float score = weighted ? score_of(p, row) : 1.0f;
          const Vec values = load_padded(rows + row * p.rows_stride + d, size - d);
          sum = F::Lanes::fma(V::fill(score), values, sum);
        }
        store_part(out + d, sum, size - d);
      }
    }
  }

  // Sum of a[d] * b[d] in a fixed order.
  static float dot(const Storage* a, const Storage* b, int64_t size) {
    Vec sum{};
    for (int64_t d = 0; d < size; d += kLanes) {
      sum = F::Lanes::fma(load_padded(a + d, size - d), load_padded(b + d, size - d), sum);
    }
    float total = 0.0f;
    for (int64_t i = 0; i < kLanes; ++i) total += sum[i];
    return total;
  }

  static void write_dscores(const Pass& p, int64_t begin, int64_t end) {
    const int64_t num_parts = p.hidden_slices.num_strips + 1;
    const Storage* rows = reinterpret_cast<const Storage*>(p.rows);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t k = 0; k < p.sizes.num_choices; ++k) {
        const int64_t row = p.slot_row[t * p.sizes.num_choices + k];
        float sum = 0.0f;
        if (row >= 0 && p.score_before) {
          sum = dot(rows + row * p.rows_stride, token_row(p.x, t), p.sizes.model_dim);
        } else if (row >= 0) {
          for (int64_t i = 0; i < num_parts; ++i) sum += p.score_parts[i * p.sizes.num_rows + row];
        }
        store_scalar(p.dscores.data, p.dscores.dtype,
                     t * p.dscores.stride[0] + k * p.dscores.stride[1], sum);
      }
    }
  }
};

}  // namespace amoeba::kernels::cpu
