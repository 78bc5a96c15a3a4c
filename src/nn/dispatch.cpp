#include "nn/dispatch.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "amoeba/error.h"
#include "nn/cpu_math.h"
#include "nn/parallel.h"

namespace amoeba::nn {

namespace {

AMOEBA_CPU_CLONES
void add_scaled(const float* x, float scale, float* y, int64_t size) {
  for (int64_t d = 0; d < size; ++d) y[d] += scale * x[d];
}

AMOEBA_CPU_CLONES
void scale(const float* x, float factor, float* y, int64_t size) {
  for (int64_t d = 0; d < size; ++d) y[d] = factor * x[d];
}

at::Tensor weighted_sum(const at::Tensor& rows, const at::Tensor& scores,
                        const at::Tensor& slot_row, int64_t top_k) {
  const int64_t tokens = slot_row.size(0) / top_k, size = rows.size(1);
  if (!has_cpu_loop(rows)) {
    at::Tensor slots = rows.index_select(0, slot_row).view({tokens, top_k, size}).to(at::kFloat);
    if (scores.defined()) slots = slots * scores.unsqueeze(2);
    at::Tensor y = slots.select(1, 0);
    for (int64_t k = 1; k < top_k; ++k) y = y + slots.select(1, k);
    return y.to(rows.scalar_type());
  }
  at::Tensor y = at::empty({tokens, size}, rows.options());
  const float* in = rows.const_data_ptr<float>();
  const float* weight = scores.defined() ? scores.const_data_ptr<float>() : nullptr;
  const int64_t* row_of = slot_row.const_data_ptr<int64_t>();
  float* out = y.mutable_data_ptr<float>();
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::fill_n(out + t * size, size, 0.0f);
      for (int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
        add_scaled(in + row_of[slot] * size, weight == nullptr ? 1.0f : weight[slot],
                   out + t * size, size);
      }
    }
  });
  return y;
}

// Tokens to rows, and rows to the sum of each token: each is the other's backward.
class GatherRows : public torch::autograd::Function<GatherRows> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& row_token, const at::Tensor& slot_row,
                            int64_t top_k) {
    context->save_for_backward({slot_row});
    context->saved_data["top_k"] = top_k;
    return x.index_select(0, row_token);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    return {weighted_sum(grad_outputs[0].contiguous(), {}, context->get_saved_variables()[0],
                         context->saved_data["top_k"].toInt()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

class SumRows : public torch::autograd::Function<SumRows> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& row_token, const at::Tensor& slot_row,
                            int64_t top_k) {
    context->save_for_backward({row_token});
    return weighted_sum(rows, {}, slot_row, top_k);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    return {grad_outputs[0].index_select(0, context->get_saved_variables()[0]), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

struct CombineGradients {
  at::Tensor rows;
  at::Tensor scores;
};

CombineGradients combine_backward(const at::Tensor& rows, const at::Tensor& scores,
                                  const at::Tensor& row_slot, const at::Tensor& slot_row,
                                  const at::Tensor& dy) {
  const int64_t tokens = scores.size(0), top_k = scores.size(1), size = rows.size(1);
  if (!has_cpu_loop(rows)) {
    const at::Tensor slots =
        rows.index_select(0, slot_row).view({tokens, top_k, size}).to(at::kFloat);
    const at::Tensor row_scores = scores.reshape(-1).index_select(0, row_slot).unsqueeze(1);
    const at::Tensor dy_rows = dy.index_select(0, row_slot.div(top_k, "floor"));  // [R, D]
    return {(dy_rows * row_scores).to(rows.scalar_type()),
            (slots * dy.to(at::kFloat).unsqueeze(1)).sum(-1)};
  }
  CombineGradients grads{at::empty_like(rows), at::empty_like(scores)};
  const float *in = rows.const_data_ptr<float>(), *weight = scores.const_data_ptr<float>();
  const float* dy_data = dy.const_data_ptr<float>();
  const int64_t* row_of = slot_row.const_data_ptr<int64_t>();
  float* drows = grads.rows.mutable_data_ptr<float>();
  float* dscores = grads.scores.mutable_data_ptr<float>();
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin * top_k; slot < end * top_k; ++slot) {
      const int64_t row = row_of[slot] * size;
      const float* dy_row = dy_data + slot / top_k * size;
      dscores[slot] = dot(in + row, dy_row, size);
      scale(dy_row, weight[slot], drows + row, size);
    }
  });
  return grads;
}

class CombineRows : public torch::autograd::Function<CombineRows> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& scores, const at::Tensor& row_slot,
                            const at::Tensor& slot_row) {
    context->save_for_backward({rows, scores, row_slot, slot_row});
    return weighted_sum(rows, scores, slot_row, scores.size(1));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const auto saved = context->get_saved_variables();
    CombineGradients grads =
        combine_backward(saved[0], saved[1], saved[2], saved[3], grad_outputs[0].contiguous());
    return {grads.rows, grads.scores, at::Tensor(), at::Tensor()};
  }
};

at::Tensor row_tokens(const Routes& routes) { return routes.row_slot.div(routes.top_k, "floor"); }

// Counting sort: one pass to count, one to place; the order of slots within an expert is kept.
Routes sort_on_cpu(const at::Tensor& flat, int64_t num_experts, int64_t top_k) {
  const int64_t num_slots = flat.numel();
  Routes routes{at::empty_like(flat), at::empty_like(flat), top_k};
  const int64_t* ids = flat.const_data_ptr<int64_t>();
  int64_t* row_slot = routes.row_slot.mutable_data_ptr<int64_t>();
  int64_t* slot_row = routes.slot_row.mutable_data_ptr<int64_t>();
  std::vector<int64_t> next(static_cast<size_t>(num_experts + 2), 0);
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    AMOEBA_CHECK(ids[slot] >= 0 && ids[slot] <= num_experts, "sort_by_expert: id ", ids[slot],
                 " of slot ", slot, ", want 0 to ", num_experts, " (skipped)");
    ++next[static_cast<size_t>(ids[slot] + 1)];
  }
  for (int64_t e = 0; e <= num_experts; ++e) {
    next[static_cast<size_t>(e + 1)] += next[static_cast<size_t>(e)];
  }
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    const int64_t row = next[static_cast<size_t>(ids[slot])]++;
    row_slot[row] = slot;
    slot_row[slot] = row;
  }
  return routes;
}

}  // namespace

Routes sort_by_expert(const at::Tensor& expert_ids, int64_t num_experts) {
  const at::Tensor flat = expert_ids.reshape(-1).contiguous();
  const int64_t top_k = expert_ids.size(1);
  if (flat.is_cpu()) return sort_on_cpu(flat, num_experts, top_k);
  const at::Tensor row_slot = at::argsort(flat, /*stable=*/true);
  const at::Tensor rows = at::arange(flat.numel(), flat.options());
  return {row_slot, at::empty_like(row_slot).scatter_(0, row_slot, rows), top_k};
}

at::Tensor gather_rows(const at::Tensor& x, const Routes& routes) {
  return GatherRows::apply(x, row_tokens(routes), routes.slot_row, routes.top_k);
}

at::Tensor combine_rows(const at::Tensor& rows, const at::Tensor& scores, const Routes& routes) {
  if (!scores.defined()) {
    return SumRows::apply(rows.contiguous(), row_tokens(routes), routes.slot_row, routes.top_k);
  }
  return CombineRows::apply(rows.contiguous(), scores.contiguous(), routes.row_slot,
                            routes.slot_row);
}

}  // namespace amoeba::nn
