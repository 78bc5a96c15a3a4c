// for_loop: one expert at a time, in blocks of rows.
//
// A block's products and its activation run together, so the temporaries stay in cache and only
// gate and up are written out; on the CPU blocks run on different threads with one thread each.
// Block borders depend on the counts alone and weight gradients are one product an expert, so the
// result does not depend on the number of threads. Shapes: R rows, D model, H hidden, E experts, B
// rows of a block.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>

#include "amoeba/error.h"
#include "nn/expert_backends/backends.h"
#include "nn/expert_backends/expert_function.h"
#include "nn/parallel.h"
#include "nn/swiglu.h"

namespace amoeba::nn {
namespace {

// Small enough for the temporaries of a block to stay in a core's cache, large enough for the
// products to run at full speed. On other devices an expert is one block: launches cost more.
constexpr int64_t kBlockRows = 512;

struct Block {
  int64_t expert, begin, size;
};

class ForLoop : public ExpertCall {
 public:
  ForLoop(const int64_t* counts, int64_t num_experts, int64_t num_rows, bool on_cpu)
      : on_cpu_(on_cpu) {
    for (int64_t e = 0; e < num_experts; ++e) {
      experts_.push_back({e, num_counted_rows_, counts[e]});
      const int64_t block_rows = on_cpu ? kBlockRows : std::max<int64_t>(counts[e], 1);
      for (int64_t done = 0; done < counts[e]; done += block_rows) {
        blocks_.push_back({e, num_counted_rows_ + done, std::min(block_rows, counts[e] - done)});
      }
      num_counted_rows_ += counts[e];
    }
    AMOEBA_ASSERT(num_counted_rows_ <= num_rows);
  }

  int64_t num_counted_rows() const { return num_counted_rows_; }
  int64_t index_bytes() const override { return 0; }

  ExpertForward forward(const at::Tensor& x, const ExpertWeights& weights) const override {
    const auto [w1, w2, w3] = unbind(weights);
    const int64_t hidden_dim = weights.w1.size(1);
    at::Tensor gate = at::empty({x.size(0), hidden_dim}, x.options());
    at::Tensor up = at::empty_like(gate);
    at::Tensor y = at::empty_like(x);
    zero_tail(y);
    for_each(blocks_, [&](const Block& block) {
      const at::Tensor x_b = rows(x, block);  // [B, D]
      at::Tensor gate_b = rows(gate, block), up_b = rows(up, block), y_b = rows(y, block);
      at::mm_out(gate_b, x_b, w1[block.expert].t());
      at::mm_out(up_b, x_b, w3[block.expert].t());
      at::Tensor act_b = at::empty_like(gate_b);  // [B, H]
      swiglu_out(act_b, gate_b, up_b);
      at::mm_out(y_b, act_b, w2[block.expert].t());
    });
    return {y, {gate, up}};
  }

  ExpertGradients backward(const at::Tensor& dy, const at::Tensor& x, const ExpertWeights& weights,
                           const std::vector<at::Tensor>& saved,
                           ExpertWanted wanted) const override {
    const auto [w1, w2, w3] = unbind(weights);
    const at::Tensor &gate = saved[0], &up = saved[1];
    SwigluGradients hidden = {at::empty_like(gate), at::empty_like(gate), at::empty_like(gate)};
    ExpertGradients result;
    if (wanted.x) {
      result.x = at::empty_like(x);
      zero_tail(result.x);
    }
    for_each(blocks_, [&](const Block& block) {
      const at::Tensor gate_b = rows(gate, block);
      SwigluGradients hidden_b = {rows(hidden.act, block), rows(hidden.d_gate, block),
                                  rows(hidden.d_up, block)};
      at::Tensor d_act_b = at::mm(rows(dy, block), w2[block.expert]);  // [B, H]
      swiglu_backward_out(hidden_b, d_act_b, gate_b, rows(up, block));
      if (!wanted.x) return;
      at::Tensor dx_b = rows(result.x, block);
      at::mm_out(dx_b, hidden_b.d_gate, w1[block.expert]);
      dx_b.addmm_(hidden_b.d_up, w3[block.expert]);
    });

    struct WeightGradient {
      const at::Tensor &left, &right;  // gradient of expert e: left_e^T right_e
      at::Tensor out;                  // [E, ...], undefined when not wanted
    };
    const auto like = [](bool is_wanted, const at::Tensor& w) {
      return is_wanted ? at::empty(w.sizes(), w.options()) : at::Tensor();
    };
    std::array<WeightGradient, 3> products = {{{hidden.d_gate, x, like(wanted.w1, weights.w1)},
                                               {dy, hidden.act, like(wanted.w2, weights.w2)},
                                               {hidden.d_up, x, like(wanted.w3, weights.w3)}}};
    for_each(experts_, [&](const Block& expert) {
      for (const WeightGradient& product : products) {
        if (!product.out.defined()) continue;
        at::Tensor out_e = product.out.select(0, expert.expert);
        at::mm_out(out_e, rows(product.left, expert).t(), rows(product.right, expert));
      }
    });
    result.w1 = products[0].out;
    result.w2 = products[1].out;
    result.w3 = products[2].out;
    return result;
  }

 private:
  struct Slices {
    std::vector<at::Tensor> w1, w2, w3;
  };
  static Slices unbind(const ExpertWeights& weights) {
    return {weights.w1.unbind(), weights.w2.unbind(), weights.w3.unbind()};
  }

  static at::Tensor rows(const at::Tensor& tensor, const Block& block) {
    return tensor.narrow(0, block.begin, block.size);
  }

  void zero_tail(at::Tensor& tensor) const {
    tensor.narrow(0, num_counted_rows_, tensor.size(0) - num_counted_rows_).zero_();
  }

  template <typename Body>
  void for_each(const std::vector<Block>& blocks, const Body& body) const {
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(blocks[i]);
    };
    const auto size = static_cast<int64_t>(blocks.size());
    if (on_cpu_) {
      parallel_for(size, run);
    } else {
      run(0, size);
    }
  }

  bool on_cpu_;
  int64_t num_counted_rows_ = 0;
  std::vector<Block> experts_;
  std::vector<Block> blocks_;
};

}  // namespace

at::Tensor run_for_loop(const at::Tensor& x, const at::Tensor& counts, const ExpertWeights& weights,
                        const ExpertOptions&, ExpertStats& stats) {
  stats.host_syncs += counts.is_cpu() ? 0 : 1;
  const at::Tensor host_counts = counts.cpu();
  const auto call = c10::make_intrusive<ForLoop>(host_counts.const_data_ptr<int64_t>(),
                                                 counts.size(0), x.size(0), x.is_cpu());
  stats.padded_rows += call->num_counted_rows();
  return run_expert_call(call, x, weights, stats);
}

}  // namespace amoeba::nn
