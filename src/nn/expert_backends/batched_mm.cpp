// batched_mm_padded and batched_mm_capacity: rows are scattered to [E, C, D], three batched
// products, and gathered back. The two differ only in C: the largest count, or a capacity fixed by
// the shapes.
//
// A row without a place (tail, or over capacity) shares one scratch row past the end that no
// product reads; gathering reads zeros there. So its output and gradient are exact zeros, whatever
// it holds. Shapes: R rows, D model, H hidden, E experts, C places an expert.
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "amoeba/error.h"
#include "nn/expert_backends/backends.h"
#include "nn/expert_backends/expert_function.h"
#include "nn/expert_layout.h"
#include "nn/swiglu.h"

namespace amoeba::nn {
namespace {

class BatchedMm : public ExpertCall {
 public:
  // layout.expert_of and position are [R]; rows at position >= capacity have no place.
  BatchedMm(const ExpertLayout& layout, int64_t num_experts, int64_t capacity)
      : num_experts_(num_experts), capacity_(capacity) {
    const at::Tensor place = layout.expert_of.mul(capacity).add_(layout.position);
    const at::Tensor has_place =
        layout.expert_of.lt(num_experts).logical_and_(layout.position.lt(capacity));
    place_ = place.masked_fill(has_place.logical_not_(), num_places());
  }

  int64_t num_places() const { return num_experts_ * capacity_; }
  int64_t index_bytes() const override { return static_cast<int64_t>(place_.nbytes()); }

  ExpertForward forward(const at::Tensor& x, const ExpertWeights& weights) const override {
    const at::Tensor rows = scatter(x);                                 // [E, C, D]
    const at::Tensor gate = at::bmm(rows, weights.w1.transpose(1, 2));  // [E, C, H]
    const at::Tensor up = at::bmm(rows, weights.w3.transpose(1, 2));    // [E, C, H]
    at::Tensor act = at::empty_like(gate);
    swiglu_out(act, gate, up);
    const at::Tensor y =
        gather(x, [&](at::Tensor& out) { at::bmm_out(out, act, weights.w2.transpose(1, 2)); });
    return {y, {gate, up}};
  }

  ExpertGradients backward(const at::Tensor& dy, const at::Tensor& x, const ExpertWeights& weights,
                           const std::vector<at::Tensor>& saved,
                           ExpertWanted wanted) const override {
    const at::Tensor &gate = saved[0], &up = saved[1];
    const at::Tensor d_out = scatter(dy);           // [E, C, D]
    at::Tensor d_act = at::bmm(d_out, weights.w2);  // [E, C, H]
    SwigluGradients hidden = {at::empty_like(gate), at::empty_like(gate), at::empty_like(gate)};
    swiglu_backward_out(hidden, d_act, gate, up);
    ExpertGradients result;
    if (wanted.w2) result.w2 = at::bmm(d_out.transpose(1, 2), hidden.act);
    if (wanted.w1 || wanted.w3) {
      const at::Tensor rows = scatter(x);
      if (wanted.w1) result.w1 = at::bmm(hidden.d_gate.transpose(1, 2), rows);
      if (wanted.w3) result.w3 = at::bmm(hidden.d_up.transpose(1, 2), rows);
    }
    if (wanted.x) {
      result.x = gather(x, [&](at::Tensor& out) {
        at::bmm_out(out, hidden.d_gate, weights.w1);
        out.baddbmm_(hidden.d_up, weights.w3);
      });
    }
    return result;
  }

 private:
  at::Tensor places(const at::Tensor& buffer) const {  // [E*C + 1, D] -> [E, C, D], no scratch row
    return buffer.narrow(0, 0, num_places()).view({num_experts_, capacity_, buffer.size(1)});
  }

  at::Tensor scatter(const at::Tensor& rows) const {  // [R, D] -> [E, C, D], padding is zero
    at::Tensor buffer = at::zeros({num_places() + 1, rows.size(1)}, rows.options());
    return places(buffer.index_copy_(0, place_, rows));
  }

  template <typename Fill>  // fill writes [E, C, D]; the result is [R, D] like `rows`
  at::Tensor gather(const at::Tensor& rows, const Fill& fill) const {
    const at::Tensor buffer = at::empty({num_places() + 1, rows.size(1)}, rows.options());
    buffer.select(0, num_places()).zero_();
    at::Tensor out = places(buffer);
    fill(out);
    return buffer.index_select(0, place_);
  }

  int64_t num_experts_;
  int64_t capacity_;
  at::Tensor place_;  // [R] int64: e * C + position, or E * C
};

at::Tensor run_batched(const at::Tensor& x, const ExpertLayout& layout, int64_t capacity,
                       const ExpertWeights& weights, ExpertStats& stats) {
  const auto call = c10::make_intrusive<BatchedMm>(layout, weights.w1.size(0), capacity);
  stats.padded_rows += call->num_places();
  return run_expert_call(call, x, weights, stats);
}

}  // namespace

at::Tensor run_batched_mm_padded(const at::Tensor& x, const at::Tensor& counts,
                                 const ExpertWeights& weights, const ExpertOptions&,
                                 ExpertStats& stats) {
  stats.host_syncs += counts.is_cpu() ? 0 : 1;
  const auto capacity = std::max<int64_t>(1, counts.max().item<int64_t>());
  return run_batched(x, expert_layout(counts, x.size(0)), capacity, weights, stats);
}

at::Tensor run_batched_mm_capacity(const at::Tensor& x, const at::Tensor& counts,
                                   const ExpertWeights& weights, const ExpertOptions& options,
                                   ExpertStats& stats) {
  const double factor = options.capacity_factor;
  AMOEBA_CHECK(std::isfinite(factor) && factor > 0, "batched_mm_capacity: capacity_factor is ",
               factor, ", want a finite number > 0");
  const int64_t num_rows = x.size(0);
  const double mean = static_cast<double>(num_rows) / static_cast<double>(counts.size(0));
  const double wanted = std::ceil(mean * factor);
  const int64_t capacity = wanted < static_cast<double>(num_rows)
                               ? std::max<int64_t>(1, static_cast<int64_t>(wanted))
                               : num_rows;
  const at::Tensor dropped = counts.sub(capacity).clamp_min_(0).sum();
  stats.dropped_rows = stats.dropped_rows.defined() ? stats.dropped_rows.add(dropped) : dropped;
  return run_batched(x, expert_layout(counts, num_rows), capacity, weights, stats);
}

}  // namespace amoeba::nn
