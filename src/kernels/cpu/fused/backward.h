// Regions of the backward pass: pack tokens and dy; gradients of the hidden rows and
// pre-activations; of inputs and of weights (two kinds of slices in one region); combine.
//
// dy is not weighted before the product with down: with dA = dy Wd, the score's gradient is the sum
// over h of dA * a, so y is never needed, and dh = score * dA.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/forward.h"

namespace amoeba::kernels::cpu {

template <typename F>
struct Backward {
  using W = Forward<F>;
  using R = Rows<F>;
  using P = Product<F>;
  using K = Packing<F>;
  using V = typename P::V;
  using Vec = typename V::Vec;
  using Words = typename V::Words;
  using Storage = typename F::Storage;
  using Sums = typename P::Sums;
  using Strip = WeightStrip<F>;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kStrip = P::kStrip;
  static constexpr int64_t kValues = F::kValuesPerUnit;
  static constexpr int64_t kUnitBytes = P::kUnitBytes;
  static constexpr int64_t kTokenBytes = kUnitBytes / kValues;

  static void pack(void* context, int64_t begin, int64_t end) {
    const Pass& p = W::pass_of(context);
    typename R::Gathered rows;
    for (int64_t b = begin; b < end; ++b) {
      const Block& block = p.blocks[b];
      R::gather(p, block, p.x, p.score_before, rows);
      if (p.x_panels != nullptr) {
        R::pack_panel(p, block, rows, R::has_dots(p, p.gate_up_dots, block), p.x_panels);
      }
      R::pack_rows(p, block, rows, p.x_rows);
      R::gather(p, block, p.dy, false, rows);
      R::pack_panel(p, block, rows, false, p.dy_panels);
      R::pack_rows(p, block, rows, p.dy_rows);
      for (int64_t i = 0; i < block.num_lanes; ++i) {
        const bool has_row = i < block.num_rows;
        p.lane_scores[block.lane + i] =
            has_row ? (p.score_before ? 1.0f : R::score_of(p, block.row + i)) : 0.0f;
      }
      if (p.score_parts != nullptr) write_bias_part(p, block, rows);
    }
  }

  // The part of a score's gradient that the bias of down gives: dy . bd.
  static void write_bias_part(const Pass& p, const Block& block, const typename R::Gathered& dy) {
    float* part = p.score_parts + p.hidden_slices.num_strips * p.sizes.num_rows;
    for (int64_t i = 0; i < block.num_rows; ++i) {
      float sum = 0.0f;
      for (int64_t d = 0; p.weights.down_bias.data != nullptr && d < p.sizes.model_dim; ++d) {
        const auto* value = dy.rows[i] + d;
        sum +=
            R::load_scalar(value, p.dy.dtype, 0) * R::bias_of(p.weights.down_bias, block.expert, d);
      }
      part[block.row + i] = sum;
    }
  }

  // dA of a strip becomes the gradient of gate, up that of up, and gate the weighted activation.
  static void differentiate_strip(const Pass& p, const Block& block, int64_t first, Sums& dhidden,
                                  Sums& gate, Sums& up) {
    for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
      const Vec score = V::template load<Vec>(p.lane_scores + block.lane + v);
      Vec part{};
      for (int64_t i = 0; i < kStrip && first + i < p.sizes.hidden_dim; ++i) {
        float *da = &dhidden.value[i][v], *g = &gate.value[i][v], *u = &up.value[i][v];
        const Vec unweighted = V::template load<Vec>(da);
        const typename W::Activated a =
            W::activate(p, V::template load<Vec>(g), V::template load<Vec>(u));
        part = F::Lanes::fma(unweighted, a.value, part);
        V::store(da, unweighted * score * a.dgate);
        V::store(u, unweighted * score * a.dup);
        V::store(g, a.value * score);
      }
      if (p.score_parts == nullptr) continue;
      float* parts = p.score_parts + first / kStrip * p.sizes.num_rows + block.row;
      for (int64_t i = 0; i < kLanes && v + i < block.num_rows; ++i) parts[v + i] = part[i];
    }
  }

  static void load_saved(const Pass& p, const Block& block, int64_t first, Sums& gate, Sums& up) {
    for (int64_t i = 0; i < kStrip && first + i < p.sizes.hidden_dim; ++i) {
      const Storage* g = W::saved_rows(p.saved_gate, p, block, 0, first + i);
      const Storage* u = W::saved_rows(p.saved_gate, p, block, 1, first + i);
      for (int64_t v = 0; v < block.num_lanes; v += kLanes) {
        V::store(&gate.value[i][v], K::load_values(g + v));
        V::store(&up.value[i][v], K::load_values(u + v));
      }
    }
  }

  static void dhidden(void* context, int64_t begin, int64_t end) {
    const Pass& p = W::pass_of(context);
    const int64_t num_units = K::num_units(p.sizes.model_dim);
    for_each_strip_range(p.hidden_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      for_each_block_group(p, e, num_units, [&](Group group) {
        for (int64_t s = s0; s < s1; ++s) dhidden_strip(p, group, s * kStrip);
      });
    });
  }
  static void dhidden_strip(const Pass& p, Group group, int64_t first) {
    const int64_t d = p.sizes.model_dim, h = p.sizes.hidden_dim;
    Sums da[kMaxGroup], gate[kMaxGroup], up[kMaxGroup];
    const Strip down(W::transposed(W::weights_of(p.weights.down, group.expert, d, h)), first);
    W::multiply(p, down, group, p.dy_panels, false, da);
    if (p.saved_gate == nullptr) {
      W::pre_activations(p, p.weights.gate, p.weights.gate_bias, group, first, gate);
      W::pre_activations(p, p.weights.up, p.weights.up_bias, group, first, up);
    }
    for (int64_t b = group.begin; b < group.end; ++b) {
      const int64_t i = b - group.begin;
      finish_dhidden(p, p.blocks[b], first, da[i], gate[i], up[i]);
    }
  }
  static void finish_dhidden(const Pass& p, const Block& block, int64_t first, Sums& da, Sums& gate,
                             Sums& up) {
    if (p.saved_gate != nullptr) load_saved(p, block, first, gate, up);
    differentiate_strip(p, block, first, da, gate, up);
    R::store_panel(p, block, first, da, p.dgate_panels);
    R::store_panel(p, block, first, up, p.dup_panels);
    if (kValues == 2) {
      R::store_tokens(p, block, first, da, p.dgate_tokens);
      R::store_tokens(p, block, first, up, p.dup_tokens);
    }
    R::store_tokens(p, block, first, gate, p.hidden_tokens);
  }

  static void dinput(void* context, int64_t begin, int64_t end) {
    const Pass& p = W::pass_of(context);
    const int64_t num_units = K::num_units(p.sizes.hidden_dim);
    for_each_strip_range(p.model_slices, begin, end, [&](int64_t e, int64_t s0, int64_t s1) {
      for_each_block_group(p, e, 2 * num_units, [&](Group group) {
        for (int64_t s = s0; s < s1; ++s) dinput_strip(p, group, s * kStrip);
      });
    });
  }
  static void dinput_strip(const Pass& p, Group group, int64_t first) {
    const int64_t d = p.sizes.model_dim, h = p.sizes.hidden_dim;
    Sums sums[kMaxGroup];
    for (int64_t b = group.begin; b < group.end; ++b) R::prefetch_rows(p, p.blocks[b], first);
    const Strip gate(W::transposed(W::weights_of(p.weights.gate, group.expert, h, d)), first);
    W::multiply(p, gate, group, p.dgate_panels, false, sums);
    const Strip up(W::transposed(W::weights_of(p.weights.up, group.expert, h, d)), first);
    W::multiply(p, up, group, p.dup_panels, true, sums);
    for (int64_t b = group.begin; b < group.end; ++b) {
      R::store_rows(p, p.blocks[b], first, sums[b - group.begin]);
    }
  }

  static void combine(void* context, int64_t begin, int64_t end) {
    const Pass& p = W::pass_of(context);
    if (p.output.data != nullptr) R::combine(p, p.score_before, begin, end);
    if (p.dscores.data != nullptr) R::write_dscores(p, begin, end);
  }
};

}  // namespace amoeba::kernels::cpu
