// Regions of the forward pass: pack tokens, gate and up with their activation, down, combine.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/rows.h"

namespace amoeba::kernels::cpu {

// Calls body(expert, first strip, last strip + 1) for what slices [begin, end) hold.
template <typename Body>
void for_each_strip_range(const Slices& slices, int64_t begin, int64_t end, const Body& body) {
  int64_t at = slices.begin[begin];
  const int64_t last = slices.begin[end];
  while (at < last) {
    const int64_t expert = at / slices.num_strips, first = at % slices.num_strips;
    const int64_t left = last - at, rest = slices.num_strips - first;
    const int64_t count = left < rest ? left : rest;
    body(expert, first, first + count);
    at += count;
  }
}

// Calls body(first block, last block + 1) for groups of an expert's blocks whose panels of
// num_units stay in the second cache while the strips of weights pass by.
template <typename Body>
void for_each_block_group(const Pass& p, int64_t expert, int64_t num_units, const Body& body) {
  constexpr int64_t kCacheBytes = 512 << 10;
  const int64_t end = p.first_block[expert + 1];
  for (int64_t begin = p.first_block[expert]; begin < end;) {
    int64_t last = begin, bytes = 0;
    do {
      bytes += p.blocks[last].num_lanes * num_units * 4;
      ++last;
    } while (last < end && bytes < kCacheBytes);
    body(begin, last);
    begin = last;
  }
}

template <typename F>
struct Forward {
  using R = Rows<F>;
  using P = Product<F>;
  using K = Packing<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Storage = typename F::Storage;
  using Sums = typename P::Sums;
  using Strip = WeightStrip<F>;
  static constexpr int64_t kLanes = V::kLanes;

  static const Pass& pass_of(void* context) { return *static_cast<const Pass*>(context); }

  // The outputs of a matrix are its rows, or its columns when transposed.
  static typename Strip::Weights weights_of(const Matrix& matrix, int64_t e, int64_t num_rows,
                                            int64_t num_columns) {
    return {static_cast<const Storage*>(matrix.data) + e * matrix.stride[0], matrix.stride[1],
            matrix.stride[2], num_rows, num_columns};
  }
  static typename Strip::Weights transposed(const typename Strip::Weights& w) {
    return {w.data, w.k_stride, w.n_stride, w.num_k, w.num_n};
  }

  struct Activated {
    Vec value, dgate, dup;  // a(g, u) and its derivatives
  };
  // d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g); a clamped value has derivative 0.
  static Activated activate(const Pass& p, Vec gate, Vec up) {
    if (p.activation == Activation::kSwiglu) {
      const Vec s = V::sigmoid(gate);
      return {gate * s * up, up * s * (1.0f + gate * (1.0f - s)), gate * s};
    }
    const Vec high = V::fill(p.limit), low = V::fill(-p.limit), zero{};
    const Vec g = gate > high ? high : gate;
    const Vec u = (up > high ? high : (up < low ? low : up)) + 1.0f;
    const Vec s = V::sigmoid(p.alpha * g);
    const Vec dgate = u * s * (1.0f + p.alpha * g * (1.0f - s));
    const Vec dup = g * s;
    return {g * s * u, gate > high ? zero : dgate, up > high || up < low ? zero : dup};
  }

  static void pack(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    typename R::Gathered rows;
    for (int64_t b = begin; b < end; ++b) {
      R::gather(p, p.blocks[b], p.x, p.score_before, rows);
      R::pack_panel(p, p.blocks[b], rows, R::has_dots(p.gate_up_dots, p.blocks[b]), p.x_panels);
    }
  }

  // sums = strip times the operand of a block, a panel or rows.
  static void multiply(Strip& strip, const Block& block, bool as_rows, const char* operand,
                       Sums& sums) {
    if (!as_rows) return strip.multiply(operand, block.num_lanes / kLanes, false, sums);
    const typename Strip::Weights& w = strip.weights();
    const int64_t left = w.num_n - strip.first();
    Dots<F>::strip(w.data + strip.first() * w.n_stride, w.n_stride, left < kLanes ? left : kLanes,
                   w.num_k, operand, block.num_rows, sums);
  }

  static const char* x_panel(const Pass& p, const Block& block) {
    return p.x_panels + block.lane * K::num_units(p.sizes.model_dim) * P::kUnitBytes;
  }

  // Pre-activations of one strip: the products plus their biases.
  static void add_bias(const Matrix& bias, const Block& block, int64_t first, int64_t size,
                       Sums& sums) {
    if (bias.data == nullptr) return;
    for (int64_t i = 0; i < kLanes && first + i < size; ++i) {
      const Vec value = V::fill(R::bias_of(bias, block.expert, first + i));
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        float* at = &sums.value[i][v];
        V::store(at, V::template load<Vec>(at) + value);
      }
    }
  }

  struct Strips {
    Strip gate, up;
    Strips(const Pass& p, int64_t e, int64_t first)
        : gate(weights_of(p.weights.gate, e, p.sizes.hidden_dim, p.sizes.model_dim), first),
          up(weights_of(p.weights.up, e, p.sizes.hidden_dim, p.sizes.model_dim), first) {}
  };
  static void pre_activations(const Pass& p, Strips& strips, const Block& block, int64_t first,
                              Sums& gate, Sums& up) {
    const bool as_rows = R::has_dots(p.gate_up_dots, block);
    multiply(strips.gate, block, as_rows, x_panel(p, block), gate);
    multiply(strips.up, block, as_rows, x_panel(p, block), up);
    add_bias(p.weights.gate_bias, block, first, p.sizes.hidden_dim, gate);
    add_bias(p.weights.up_bias, block, first, p.sizes.hidden_dim, up);
  }

  // Where rows [first, ...) of the saved gate (which = 0) or up (1) of a block lie: [lanes] each.
  static Storage* saved_rows(char* saved, const Pass& p, const Block& block, int which,
                             int64_t first) {
    return reinterpret_cast<Storage*>(saved) + 2 * block.lane * p.sizes.hidden_dim +
           (which * p.sizes.hidden_dim + first) * block.num_lanes;
  }

  // Replaces gate by the activation, and keeps both for backward.
  static void activate_strip(const Pass& p, const Block& block, int64_t first, Sums& gate,
                             const Sums& up) {
    for (int64_t i = 0; i < kLanes && first + i < p.sizes.hidden_dim; ++i) {
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        const Vec g = V::template load<Vec>(&gate.value[i][v]);
        const Vec u = V::template load<Vec>(&up.value[i][v]);
        if (p.saved_gate != nullptr) {
          K::store_values(saved_rows(p.saved_gate, p, block, 0, first + i) + v, g);
          K::store_values(saved_rows(p.saved_gate, p, block, 1, first + i) + v, u);
        }
        V::store(&gate.value[i][v], activate(p, g, u).value);
      }
    }
  }

  static void gate_up(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    const int64_t num_units = K::num_units(p.sizes.model_dim);
    for_each_strip_range(p.hidden_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      for_each_block_group(p, e, num_units, [&](int64_t b0, int64_t b1) {
        Sums gate, up;
        for (int64_t s = s0; s < s1; ++s) {
          Strips strips(p, e, s * kLanes);
          for (int64_t b = b0; b < b1; ++b) {
            const Block& block = p.blocks[b];
            pre_activations(p, strips, block, s * kLanes, gate, up);
            activate_strip(p, block, s * kLanes, gate, up);
            if (R::has_dots(p.down_dots, block)) {
              R::store_hidden_rows(p, block, s * kLanes, gate, p.hidden_panels);
            } else {
              R::store_panel(p, block, s * kLanes, gate, p.hidden_panels);
            }
          }
        }
      });
    });
  }

  static void down(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    const int64_t num_units = K::num_units(p.sizes.hidden_dim);
    for_each_strip_range(p.model_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      for_each_block_group(p, e, num_units, [&](int64_t b0, int64_t b1) {
        Sums sums;
        for (int64_t s = s0; s < s1; ++s) {
          Strip strip(weights_of(p.weights.down, e, p.sizes.model_dim, p.sizes.hidden_dim),
                      s * kLanes);
          for (int64_t b = b0; b < b1; ++b) {
            const Block& block = p.blocks[b];
            multiply(strip, block, R::has_dots(p.down_dots, block),
                     p.hidden_panels + block.lane * num_units * P::kUnitBytes, sums);
            add_bias(p.weights.down_bias, block, s * kLanes, p.sizes.model_dim, sums);
            R::store_rows(p, block, s * kLanes, sums);
          }
        }
      });
    });
  }

  static void combine(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    R::combine(p, !p.score_before, begin, end);
  }
};

}  // namespace amoeba::kernels::cpu
