// The autograd node that all expert backends share, and the SwiGLU formulas between their products.
//
// A backend supplies forward and backward on plain tensors; this node decides what is kept, skips
// the gradients of frozen inputs and refuses double backward. Only the tensors a backend returns as
// `saved` are kept besides the inputs; the activation silu(g) * u is computed again in backward.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <vector>

#include "amoeba/experts.h"

namespace amoeba::nn {

struct ExpertForward {
  at::Tensor y;                   // [R, D]
  std::vector<at::Tensor> saved;  // for backward
};

struct ExpertGradients {
  at::Tensor x, w1, w2, w3;  // undefined where not wanted
};

struct ExpertWanted {
  bool x, w1, w2, w3;
};

// A backend bound to the counts of one call. All tensors are detached; x, dy are contiguous.
class ExpertCall : public torch::CustomClassHolder {
 public:
  virtual ExpertForward forward(const at::Tensor& x, const ExpertWeights& weights) const = 0;
  virtual ExpertGradients backward(const at::Tensor& dy, const at::Tensor& x,
                                   const ExpertWeights& weights,
                                   const std::vector<at::Tensor>& saved,
                                   ExpertWanted wanted) const = 0;
  virtual int64_t index_bytes() const = 0;  // device tensors that the call itself holds
};

// Runs the call differentiably and adds what backward keeps alive to stats.saved_bytes.
at::Tensor run_expert_call(const c10::intrusive_ptr<ExpertCall>& call, const at::Tensor& x,
                           const ExpertWeights& weights, ExpertStats& stats);

// In a backward: refuses one whose own gradient is asked for.
void check_first_order();

// From the gradient of the activation: d_act becomes scratch, all shapes are equal.
struct SwigluGradients {
  at::Tensor act, d_gate, d_up;  // act: silu(gate) * up, computed again
};
void swiglu_backward_out(SwigluGradients& out, at::Tensor& d_act, const at::Tensor& gate,
                         const at::Tensor& up);

}  // namespace amoeba::nn
