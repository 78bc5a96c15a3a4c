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

// Some neighbouring blocks of one expert.
struct Group {
  int64_t expert, begin, end;
};

// Calls body(group) for groups of an expert's blocks whose panels of
// num_units stay in the second cache while the strips of weights pass by.
constexpr int64_t kMaxGroup = 8;
template <typename Body>
void for_each_block_group(const Pass& p, int64_t expert, int64_t num_units, const Body& body) {
  const int64_t end = p.first_block[expert + 1];
  for (int64_t begin = p.first_block[expert]; begin < end;) {
    int64_t last = begin, bytes = 0;
    do {
      bytes += p.blocks[last].num_lanes * num_units * 4;
      ++last;
    } while (last < end && last - begin < kMaxGroup && bytes < p.group_bytes);
    body(Group{expert, begin, last});
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
  static constexpr int64_t kStrip = P::kStrip;

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
      R::pack_panel(p, p.blocks[b], rows, R::has_dots(p, p.gate_up_dots, p.blocks[b]), p.x_panels);
    }
  }

  // sums[i] (+)= strip times the operands of a group of blocks that lie in `panels`, of as many
  // units a lane as the sum has.
  static void multiply(const Pass& p, const Strip& strip, Group group, const char* panels, bool add,
                       Sums* sums) {
    const typename Strip::Weights& w = strip.weights();
    const int64_t num_units = K::num_units(w.num_k);
    const auto panel_of = [&](int64_t i) {
      const Block& block = p.blocks[group.begin + i];
      return Panel{panels + block.lane * num_units * P::kUnitBytes, block.num_lanes * P::kUnitBytes,
                   block.num_lanes / kLanes};
    };
    const Block& first = p.blocks[group.begin];
    if (Columns<F>::takes(w, strip.first(), first.num_rows)) {  // an expert's only block then
      Columns<F>::strip(w, strip.first(), panel_of(0), first.num_rows, add, sums[0]);
    } else {
      strip.multiply(group.end - group.begin, panel_of, add, sums);
    }
  }
  // The same where blocks of few rows may have their operand as rows.
  static void multiply_rows(const Pass& p, const Strip& strip, Group group, const char* panels,
                            bool pass_has_dots, Sums* sums) {
    const Block& block = p.blocks[group.begin];
    if (!R::has_dots(p, pass_has_dots, block))
      return multiply(p, strip, group, panels, false, sums);
    const typename Strip::Weights& w = strip.weights();
    const int64_t left = w.num_n - strip.first();
    Dots<F>::strip(w.data + strip.first() * w.n_stride, w.n_stride, left < kStrip ? left : kStrip,
                   w.num_k, panels + block.lane * K::num_units(w.num_k) * P::kUnitBytes,
                   block.num_rows, sums[0]);
  }

  // Adds the biases of a strip.
  static void add_bias(const Matrix& bias, const Block& block, int64_t first, int64_t size,
                       Sums& sums) {
    if (bias.data == nullptr) return;
    for (int64_t i = 0; i < kStrip && first + i < size; ++i) {
      const Vec value = V::fill(R::bias_of(bias, block.expert, first + i));
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        float* at = &sums.value[i][v];
        V::store(at, V::template load<Vec>(at) + value);
      }
    }
  }

  // Gate or up of one strip: the products plus their biases.
  static void pre_activations(const Pass& p, const Matrix& weights, const Matrix& bias, Group group,
                              int64_t first, Sums* sums) {
    const Strip strip(weights_of(weights, group.expert, p.sizes.hidden_dim, p.sizes.model_dim),
                      first);
    multiply_rows(p, strip, group, p.x_panels, p.gate_up_dots, sums);
    for (int64_t b = group.begin; b < group.end; ++b) {
      add_bias(bias, p.blocks[b], first, p.sizes.hidden_dim, sums[b - group.begin]);
    }
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
    for (int64_t i = 0; i < kStrip && first + i < p.sizes.hidden_dim; ++i) {
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
      for_each_block_group(p, e, num_units, [&](Group group) {
        for (int64_t s = s0; s < s1; ++s) gate_up_strip(p, group, s * kStrip);
      });
    });
  }
  static void gate_up_strip(const Pass& p, Group group, int64_t first) {
    Sums gate[kMaxGroup], up[kMaxGroup];
    pre_activations(p, p.weights.gate, p.weights.gate_bias, group, first, gate);
    pre_activations(p, p.weights.up, p.weights.up_bias, group, first, up);
    for (int64_t b = group.begin; b < group.end; ++b) {
      const Block& block = p.blocks[b];
      Sums& sums = gate[b - group.begin];
      activate_strip(p, block, first, sums, up[b - group.begin]);
      if (R::has_dots(p, p.down_dots, block)) {
        R::store_hidden_rows(p, block, first, sums, p.hidden_panels);
      } else {
        R::store_panel(p, block, first, sums, p.hidden_panels);
      }
    }
  }

  static void down(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    const int64_t num_units = K::num_units(p.sizes.hidden_dim);
    for_each_strip_range(p.model_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      for_each_block_group(p, e, num_units, [&](Group group) {
        for (int64_t s = s0; s < s1; ++s) down_strip(p, group, s * kStrip);
      });
    });
  }
  static void down_strip(const Pass& p, Group group, int64_t first) {
    Sums sums[kMaxGroup];
    for (int64_t b = group.begin; b < group.end; ++b) R::prefetch_rows(p, p.blocks[b], first);
    const Strip strip(
        weights_of(p.weights.down, group.expert, p.sizes.model_dim, p.sizes.hidden_dim), first);
    multiply_rows(p, strip, group, p.hidden_panels, p.down_dots, sums);
    for (int64_t b = group.begin; b < group.end; ++b) {
      Sums& own = sums[b - group.begin];
      add_bias(p.weights.down_bias, p.blocks[b], first, p.sizes.model_dim, own);
      R::store_rows(p, p.blocks[b], first, own);
    }
  }

  static void combine(void* context, int64_t begin, int64_t end) {
    const Pass& p = pass_of(context);
    R::combine(p, !p.score_before, begin, end);
  }
};

}  // namespace amoeba::kernels::cpu
